"""`pixel-sail SUBCOMMAND ...`, and `python -m pixel_sail`: finds the module of a subcommand and calls its `main`."""

from __future__ import annotations

import importlib
import sys

import pixel_sail.command  # noqa: F401  from here on Ctrl-C is quiet

# Subcommand -> what it does; its module is pixel_sail/commands/<subcommand>.py. The studies come last.
SUBCOMMANDS = {
    "train": "train a model from a config, fine-tune one, or predict its memory (--plan)",
    "test": "score a model, or a file of predictions, on benchmarks",
    "perplexity": "what training on images has cost a model's language",
    "predict": "segment what a text names in an image, or ask about it",
    "demo": "the same in the browser",
    "convert": "make a model folder from released weights or a language model",
    "export": "publish a run or checkpoint as a folder with a model card",
    "data": "draw the embedded dataset; check which datasets are under a root",
    "inspect": "show what the model is given: tokens, patches, masks, regions",
    "compare": "two scored models: paired differences, and a page of cases",
    "config": "all config keys with types, defaults and meanings",
    "shards": "write the mixture of a config as webdataset shards",
    "cache-expert": "store the features of frozen experts for distillation",
    "train-expert": "train a small Mask2Former to distil from",
    "bench": "measure speed and memory",
    "gpu-check": "prove on a GPU what only a GPU can show",
    "ablate": "train and score the variants of an ablation",
    "mask-reward": "compare a reward for masks with supervised fine-tuning",
    "attend-segment": "masks from the attention of any multimodal model",
    "grounding-emergence": "when grounding emerges in an answer",
    "mask-errors": "why cIoU is low: lost pixels by cause",
    "mask-scores": "what scores of masks and presence are worth",
}


def main() -> None:
    first, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if first in SUBCOMMANDS:
        sys.argv = [f"pixel-sail {first}", *arguments]  # as argparse names the command
        importlib.import_module(f"pixel_sail.commands.{first.replace('-', '_')}").main()
    else:
        _answer(first)


def _answer(first: str) -> None:
    """--help, --version, or a wrong subcommand, which ends with 2 as argparse does."""
    if first in ("-h", "--help"):
        print(f"usage: pixel-sail SUBCOMMAND ...\n\n{_list()}\n\npixel-sail SUBCOMMAND --help says more.")
    elif first == "--version":
        print(f"pixel-sail {pixel_sail.__version__}")
    else:
        print(f"pixel-sail: there is no subcommand {first!r}; there are\n{_list()}", file=sys.stderr)
        raise SystemExit(2)


def _list() -> str:
    return "\n".join(f"  {name:<21}{meaning}" for name, meaning in SUBCOMMANDS.items())
