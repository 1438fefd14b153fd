"""Convert released weights to a pixel_sail model folder.

    python tools/convert.py research CHECKPOINT --out models/research      the research code's Pixel-SAIL
    python tools/convert.py solo CHECKPOINT --out models/solo              SOLO-7B
    python tools/convert.py sail CHECKPOINT --out models/sail              SAIL-7B
    python tools/convert.py evev2 CHECKPOINT --out models/evev2            EVE-7B-HD-v2.0
    python tools/convert.py neo CHECKPOINT --out models/neo                NEO 2B and 9B
    python tools/convert.py language-model Qwen/Qwen2.5-0.5B-Instruct --out models/new_base
    python tools/convert.py language-model smollm2-135m --out models/smollm2 --max-side-px 256

The folder is what train.init_from, tools/test.py, tools/predict.py and PixelSail.from_pretrained take. A CHECKPOINT is
a downloaded folder with config.json, *.safetensors or *.bin, and the tokenizer's files; of the research code it may be
an iter_N.pth with these beside it. It is converted shard by shard, and the peak memory is printed. docs/released.md
says what to download of each base. Parts that a base lacks start from random weights and must be trained:
docs/convert.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import SHARD_GB, shard_gb

BASES = ("solo", "sail", "evev2", "neo")
DTYPES = ("same", "bf16", "fp32")


@tool
def main() -> None:
    a = _parse()
    with importing():
        from pixel_sail.commands.work import convert as work
    work.run(a)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = parser.add_subparsers(dest="family", required=True)
    research = families.add_parser("research", help="a checkpoint in the research code's key names")
    language = families.add_parser("language-model", help="any Hugging Face decoder as a new base")
    language.add_argument("--patch-size", type=int, default=16)
    language.add_argument("--in-memory", action="store_true", help="let transformers load a local folder into memory")
    bases = [families.add_parser(name, help=f"a released {name} checkpoint") for name in BASES]
    for family in (language, *bases):
        family.add_argument("--max-side-px", type=int, help="default: the multiple of the patch up to 1024; evev2: 800")
        family.add_argument("--mask-stride", type=int, help="pixels per mask logit; default: 4, or 7 for patches of 14")
        family.add_argument("--mask-dim", type=int, default=256)
    for family in (research, language, *bases):
        family.add_argument("source", help="local folder" + ("; hub name, or smollm2-135m" * (family is language)))
        family.add_argument("--out", type=Path, required=True)
        family.add_argument("--question", help="what `segment` asks, with {expression}")
        family.add_argument("--dtype", choices=DTYPES, default="same", help="dtype of the written weights")
        family.add_argument("--shard-gb", type=shard_gb, default=SHARD_GB, help="largest size of a file")
        family.add_argument("--seed", type=int, default=0, help="seed of the new parts")
    return parser.parse_args()
