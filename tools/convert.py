"""Convert released weights to a pixel_sail model folder.

    python tools/convert.py research CHECKPOINT --out models/research      the research code's Pixel-SAIL
    python tools/convert.py solo CHECKPOINT --out models/solo              SOLO-7B
    python tools/convert.py sail CHECKPOINT --out models/sail              SAIL-7B
    python tools/convert.py evev2 CHECKPOINT --out models/evev2            EVE-7B-HD-v2.0
    python tools/convert.py language-model Qwen/Qwen2.5-0.5B-Instruct --out models/new_base
    python tools/convert.py language-model smollm2-135m --out models/smollm2 --max-side-px 256

The folder is what train.init_from, tools/test.py, tools/predict.py and PixelSail.from_pretrained take. A CHECKPOINT is
a downloaded folder with config.json, *.safetensors and the tokenizer's files. It is converted shard by shard, and the
peak memory is printed. Parts that a base lacks start from random weights and must be trained: docs/convert.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pixel_sail.command import tool
from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.data.templates import QUESTIONS
from pixel_sail.durable import rust_errors
from pixel_sail.folders.weight_files import check_finite
from pixel_sail.weights.convert.evev2 import plan_evev2
from pixel_sail.weights.convert.language_model import from_language_model, plan_language_model
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.research import plan_research
from pixel_sail.weights.convert.sail import plan_sail
from pixel_sail.weights.convert.solo import plan_solo
from pixel_sail.weights.convert.streaming import Conversion, write
from pixel_sail.weights.files import SHARD_BYTES, check_new, new_folder, peak_bytes, shard_gb

BASES = {"solo": plan_solo, "sail": plan_sail, "evev2": plan_evev2}
DTYPES = {"same": None, "bf16": torch.bfloat16, "fp32": torch.float32}


@tool
def main() -> None:
    a = _parse()
    torch.manual_seed(a.seed)
    check_new(a.out)
    plan = _plan(a)
    parameters = _write_in_memory(a) if plan is None else write(plan, a.out, int(a.shard_gb * 1e9), DTYPES[a.dtype])
    for difference in [] if plan is None else plan.config.differences or []:
        print(f"differs from the base: {difference}")
    print(f"{a.out}: {parameters / 1e6:.1f} million parameters, {peak_bytes() / 1e9:.1f} GB of memory at most")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = parser.add_subparsers(dest="family", required=True)
    research = families.add_parser("research", help="a checkpoint in the research code's key names")
    language = families.add_parser("language-model", help="any Hugging Face decoder as a new base")
    language.add_argument("--patch-size", type=int, default=16)
    language.add_argument("--in-memory", action="store_true", help="let transformers load a local folder into memory")
    bases = [families.add_parser(name, help=f"a released {name} checkpoint") for name in BASES]
    for family in (language, *bases):
        family.add_argument("--max-side-px", type=int, help="default: the largest multiple of the patch up to 1024")
        family.add_argument("--mask-stride", type=int, help="pixels per mask logit; default: 4, or 7 for patches of 14")
        family.add_argument("--mask-dim", type=int, default=256)
    for family in (research, language, *bases):
        family.add_argument("source", help="local folder" + ("; hub name, or smollm2-135m" * (family is language)))
        family.add_argument("--out", type=Path, required=True)
        family.add_argument("--question", default=QUESTIONS[0], help="what `segment` asks, with {expression}")
        family.add_argument("--dtype", choices=DTYPES, default="same", help="dtype of the written weights")
        family.add_argument("--shard-gb", type=shard_gb, default=SHARD_BYTES / 1e9, help="largest size of a file")
        family.add_argument("--seed", type=int, default=0, help="seed of the new parts")
    return parser.parse_args()


def _plan(a: argparse.Namespace) -> Conversion | None:
    """The conversion; None for a language model that transformers must load into memory (from the hub, or a GGUF)."""
    if a.family == "research":
        return plan_research(Path(a.source), a.question)
    if a.family in BASES:
        return BASES[a.family](Path(a.source), NewParts(a.max_side_px, a.mask_stride, a.mask_dim, a.question))
    if a.in_memory or not Path(a.source).is_dir():
        return None
    return plan_language_model(Path(a.source), _architecture(a), a.question)


def _architecture(a: argparse.Namespace) -> Architecture:
    return NewParts(a.max_side_px, a.mask_stride, a.mask_dim).architecture(a.patch_size)


def _write_in_memory(a: argparse.Namespace) -> int:
    model, tokenizer = from_language_model(ModelSection(base=a.source), _architecture(a), a.question)
    model = model.to(DTYPES[a.dtype] or torch.float32)
    check_finite(model.state_dict(), f"{a.source} as {model.dtype}")
    with new_folder(a.out) as folder, rust_errors(folder):
        model.save_pretrained(folder, max_shard_size=int(a.shard_gb * 1e9))
        tokenizer.save_pretrained(folder)
    return model.num_parameters()


if __name__ == "__main__":
    main()
