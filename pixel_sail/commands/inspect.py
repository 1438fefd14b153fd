"""Turns the model's input back into images and text: decoded tokens, patches, masks and prompted regions.

    python tools/inspect_data.py configs/scratch.yaml --out outputs/inspect
    python tools/inspect_data.py --source muse --root data/scenes --out outputs/inspect --count 8

With a config: the first samples of its stream, encoded with its settings (it loads the tokenizer, but no weights).
With a source: evenly spread samples, and a tokenizer trained on their text. Writes <name>.png, which has for each
sample the image in its patches, plain and with masks filled and prompted patches outlined; and <name>.txt with all
tokens. Tokens between >> and << have labels: they are what the model learns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole

MAX_COUNT = 1000  # samples in one image


@tool
def main() -> None:
    arguments = _parse()
    with importing():
        from pixel_sail.commands.work import inspect as work
    work.run(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", help="a training config; or give --source")
    parser.add_argument("overrides", nargs="*", help="values of the config, as key.sub=value")
    parser.add_argument("--source", help="a source: a name in data/README.md")
    parser.add_argument("--split", default="train")
    parser.add_argument("--root", type=Path, help="data root, for --source")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=whole(1, MAX_COUNT), default=8, help="number of samples")
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.source is None):
        parser.error("give either a CONFIG or --source NAME")
    if arguments.source and arguments.root is None:
        parser.error("--source needs --root")
    if arguments.count < 1:
        parser.error("--count must be 1 or more")
    return arguments
