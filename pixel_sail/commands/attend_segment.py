"""Masks from the attention of any multimodal model, trained to segment or not: PixFoundation's attend-and-segment.

    python tools/attend_segment.py /models/llava-1.5-7b-hf --segmenter sam:/models/sam-vit-huge \\
        --benchmark pixmmvp --data-root data --out outputs/attend
    python tools/attend_segment.py data/models/tiny --segmenter pixel_sail:data/models/tiny \\
        --benchmark pixmmvp --data-root data/scenes --out outputs/attend
    python tools/test.py --predictions outputs/attend/predictions/oracle.jsonl --benchmark pixmmvp --data-root data

Needs spaCy and an English model of it (pip install 'pixel_sail[phrases]'; python -m spacy download en_core_web_sm).

Families: our own models, llava (1.5), qwen_vl (Qwen2-VL, Qwen2.5-VL), internvl (the -hf checkpoints), gemma3. The
model also answers the benchmark's questions. A model that was trained to answer with masks may say nothing but [SEG],
which contains no noun phrase: then give a --prompt that it answers in words. Written: phrases.jsonl, predictions/ of
the oracle and of the automatic choice, metrics.json. Repeat an interrupted call to continue it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole

# As the modules of the study have them, whose imports take seconds.
FAMILIES = ("pixel_sail", "llava", "qwen_vl", "internvl", "gemma3")
SEGMENTERS = ("sam", "sam2", "pixel_sail")
BENCHMARKS = ("pixmmvp", "pixcvbench")
PROMPT = "Describe {expression} in detail."
FIELDS = ("{expression}", "{question}", "{options}")
MAX_NEW_TOKENS = 2**16


@tool
def main() -> None:
    arguments = _parse()
    with importing():
        from pixel_sail.commands.work import attend_segment as work
    work.run(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder (or hub name): an export of ours, or a Hugging Face model")
    parser.add_argument("--family", default="auto", choices=("auto", *FAMILIES))
    parser.add_argument("--segmenter", required=True, metavar="KIND:PATH", help=f"KIND: {', '.join(SEGMENTERS)}")
    parser.add_argument("--benchmark", default=BENCHMARKS[0], choices=BENCHMARKS)
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-images", type=whole(1), help="only the first N images")
    parser.add_argument("--prompt", default=PROMPT, help=f"may contain {', '.join(FIELDS)}")
    parser.add_argument("--max-new-tokens", type=whole(1, MAX_NEW_TOKENS), default=256)
    parser.add_argument(
        "--select", default="words", choices=("words", "model"), help="automatic choice: by words, or ask the model"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    return parser.parse_args()
