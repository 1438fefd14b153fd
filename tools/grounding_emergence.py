"""When does grounding emerge in an answer? Histograms of the place and the concept of the best phrase, and examples.

    python tools/grounding_emergence.py runs/quickstart/export --data-root data/scenes --out outputs/emergence
    python tools/grounding_emergence.py llava-1.5-7b-hf --segmenter sam:sam-vit-huge --data-root data --out out
    python tools/grounding_emergence.py --phrases outputs/attend/phrases.jsonl --data-root data --out out

With a MODEL it first runs tools/attend_segment.py in <out>/attend, which continues an interrupted call and needs spaCy.
--phrases takes the phrases.jsonl of an earlier run. Written: emergence.json; emergence.png, if matplotlib is installed;
emergence_<concept>.png with examples. docs/pixfoundation.md explains them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pixel_sail.command import tool
from pixel_sail.arguments import whole
from pixel_sail.config import REPOSITORY
from pixel_sail.evaluate.pixfoundation import pixcvbench, pixmmvp
from pixel_sail.studies.attend_segment.phrases import require_spacy_model
from pixel_sail.studies.emergence.best_phrase import read_answers, summarize, table, write_results
from pixel_sail.studies.emergence.figures import write_examples, write_histograms
from pixel_sail.studies.plotting import why_no_plots
from pixel_sail.studies.tool_process import run_tool
from pixel_sail.writable import check_writable

READERS = {pixmmvp.KIND: pixmmvp.read_objects, pixcvbench.KIND: pixcvbench.read_objects}


@tool
def main() -> None:
    arguments = _parse()
    check_writable(arguments.out)
    objects = {target.index: target for target in READERS[arguments.benchmark](arguments.data_root)}
    answers = read_answers(arguments.phrases or _attend(arguments), objects)
    results = summarize(answers, objects)
    written = [write_results(results, arguments.out)]
    if not why_no_plots():
        written.append(write_histograms(results, arguments.out))
    written += write_examples(results, objects, arguments.out, arguments.examples)
    print("\n".join([table(results), *filter(None, [why_no_plots()]), f"written: {', '.join(map(str, written))}"]))


def _attend(arguments: argparse.Namespace) -> Path:
    """Run attend-and-segment on the model and return the path of its phrases. SystemExit if it fails.

    Its process prints why. Raises ConfigError without spaCy.
    """
    require_spacy_model()
    out = arguments.out / "attend"
    command = [sys.executable, str(REPOSITORY / "tools/attend_segment.py"), arguments.model]
    command += ["--family", arguments.family, "--segmenter", arguments.segmenter or f"pixel_sail:{arguments.model}"]
    command += ["--benchmark", arguments.benchmark, "--data-root", str(arguments.data_root), "--out", str(out)]
    for option in ("max_images", "prompt"):
        value = getattr(arguments, option)
        if value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    status = run_tool(command)
    if status:
        raise SystemExit(status)
    return out / "phrases.jsonl"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder or hub name; omit it with --phrases")
    parser.add_argument("--phrases", type=Path, help="a phrases.jsonl of tools/attend_segment.py")
    parser.add_argument("--benchmark", choices=tuple(READERS), default=pixmmvp.KIND)
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


if __name__ == "__main__":
    main()
