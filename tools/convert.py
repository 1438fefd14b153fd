"""Makes a pixel_sail checkpoint folder from released weights.

    python tools/convert.py research CHECKPOINT --out models/research      the research code's Pixel-SAIL
    python tools/convert.py language-model Qwen/Qwen2.5-0.5B-Instruct --out models/new_base
    python tools/convert.py language-model smollm2-135m --out models/smollm2 --max-side-px 256

The folder is what train.init_from, tools/test.py, tools/predict.py and PixelSail.from_pretrained take. A language model
as base has no vision yet: its patch embedding, prompt fusion and mask head are random and must be trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pixel_sail.config import ModelSection
from pixel_sail.convert.language_model import from_language_model
from pixel_sail.convert.research import from_research
from pixel_sail.data.templates import QUESTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = parser.add_subparsers(dest="family", required=True)
    research = families.add_parser("research", help="a checkpoint in the research code's key names")
    research.add_argument("source", type=Path)
    language = families.add_parser("language-model", help="any Hugging Face decoder as a new base")
    language.add_argument("source", help="local folder, hub name, or smollm2-135m (`make smollm`)")
    language.add_argument("--patch-size", type=int, default=16)
    language.add_argument("--max-side-px", type=int, default=1024)
    language.add_argument("--mask-stride", type=int, default=4)
    language.add_argument("--mask-dim", type=int, default=256)
    language.add_argument("--seed", type=int, default=0, help="of the new parts")
    for family in (research, language):
        family.add_argument("--out", type=Path, required=True)
        family.add_argument("--question", default=QUESTIONS[0], help="what `segment` asks, with {expression}")
    a = parser.parse_args()
    if a.out.exists() and any(a.out.iterdir()):
        raise SystemExit(f"error: {a.out} is not empty; give another --out")
    try:
        if a.family == "research":
            model, tokenizer = from_research(a.source, a.question)
        else:
            torch.manual_seed(a.seed)
            section = ModelSection(
                base=a.source,
                patch_size=a.patch_size,
                max_side_px=a.max_side_px,
                mask_stride=a.mask_stride,
                mask_dim=a.mask_dim,
            )
            model, tokenizer = from_language_model(section, a.question)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    model.save_pretrained(a.out)
    tokenizer.save_pretrained(a.out)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{a.out}: {millions:.1f} million parameters, chat format {model.config.chat_format}")


if __name__ == "__main__":
    main()
