"""When does grounding emerge in an answer? Histograms of the place and the concept of the best phrase, and examples.

    python tools/grounding_emergence.py data/models/tiny --data-root data/scenes --out outputs/emergence
    python tools/grounding_emergence.py llava-1.5-7b-hf --segmenter sam:sam-vit-huge --data-root data --out out
    python tools/grounding_emergence.py --phrases outputs/attend/phrases.jsonl --data-root data --out out

With a MODEL it first runs tools/attend_segment.py in <out>/attend, which continues an interrupted call and needs spaCy.
--phrases takes the phrases.jsonl of an earlier run. Written: emergence.json; emergence.png, if matplotlib is installed;
emergence_<concept>.png with examples. docs/pixfoundation.md explains them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole

BENCHMARKS = ("pixmmvp", "pixcvbench")


@tool
def main() -> None:
    arguments = _parse()
    with importing():
        from pixel_sail.commands.work import grounding_emergence as work
    work.run(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder or hub name; omit it with --phrases")
    parser.add_argument("--phrases", type=Path, help="a phrases.jsonl of tools/attend_segment.py")
    parser.add_argument("--benchmark", choices=BENCHMARKS, default=BENCHMARKS[0])
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=whole(0), default=8, metavar="N", help="images of each concept")
    parser.add_argument("--max-images", type=whole(1), help="only the first N images; with a MODEL")
    parser.add_argument("--family", default="auto", help="of tools/attend_segment.py")
    parser.add_argument("--segmenter", help="of tools/attend_segment.py; pixel_sail:MODEL by default")
    parser.add_argument("--prompt", help="of tools/attend_segment.py: what the model is asked; with a MODEL")
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.phrases is None):
        parser.error("give either a MODEL or --phrases FILE")
    return arguments
