"""Are the scores of masks, and presence, worth something? AUROC, rank correlation and calibration beside a constant.

    python tools/mask_scores.py refcoco_val.jsonl grefcoco_val.jsonl --benchmark refcoco:val --benchmark grefcoco:val

Takes predictions files that tools/test.py wrote of a model with a score head (architecture.mask_scores), one for each
--benchmark. Prints a table; with --out also writes mask_scores.json and, with matplotlib, reliability.png.
pixel_sail/studies/mask_scores.py explains the columns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole


@tool
def main() -> None:
    arguments = _parse()
    with importing():
        from pixel_sail.durable import write_json
        from pixel_sail.evaluate.runner import checked_lines, open_benchmark
        from pixel_sail.studies.mask_scores import Scored, draw, table
        from pixel_sail.studies.plotting import why_no_plots
        from pixel_sail.writable import check_writable
    if arguments.out is not None:
        check_writable(arguments.out)
    scored = {}
    for file, name in zip(arguments.predictions, arguments.benchmark, strict=True):
        benchmark = open_benchmark(name, arguments.data_root, arguments.max_images)
        scored[name] = Scored.of(benchmark, checked_lines(file, benchmark), str(file))
    shown = scored | ({"all": Scored.joined(list(scored.values()))} if len(scored) > 1 else {})
    results = {name: part.result() for name, part in shown.items()}
    print(table(results))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / "mask_scores.json", results, indent=2)
        print(why_no_plots() or draw(scored, arguments.out / "reliability.png"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, nargs="+", action="extend", help="one for each --benchmark")
    parser.add_argument("--benchmark", action="append", required=True, help="what the file answers: grefcoco:val")
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--max-images", type=whole(1), metavar="N", help="only the first N, as given to tools/test.py")
    parser.add_argument("--out", type=Path, help="folder for mask_scores.json and reliability.png")
    arguments = parser.parse_args()
    if len(arguments.predictions) != len(arguments.benchmark):
        parser.error(f"{len(arguments.predictions)} predictions files for {len(arguments.benchmark)} --benchmark")
    if len(set(arguments.benchmark)) < len(arguments.benchmark):
        parser.error("a --benchmark is given more than once")
    return arguments
