"""Why is cIoU low? The loss of referring masks by cause: another object, edges, neighbours, background, holes.

    python tools/mask_errors.py runs/scratch/scores/predictions/refcoco_val.jsonl --benchmark refcoco:val

Takes a predictions file of tools/test.py, or of any model in that format. Prints a table; for the embedded dataset also
by kind of expression. pixel_sail/studies/mask_errors.py explains the columns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--benchmark", required=True, help="refcoco, refcoco+ or refcocog, a colon and a split")
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument(
        "--max-images", type=whole(1), metavar="N", help="only the first N images, as given to tools/test.py"
    )
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.evaluate.predictions import in_case_order, read_lines
        from pixel_sail.evaluate.runner import open_benchmark
        from pixel_sail.studies.mask_errors import mask_errors, table
    benchmark = open_benchmark(arguments.benchmark, arguments.data_root, arguments.max_images)
    lines = read_lines(arguments.predictions, benchmark)
    lines = in_case_order(benchmark, lines, str(arguments.predictions))
    errors = mask_errors(benchmark.cases, lines, arguments.data_root, arguments.benchmark)
    print(table(errors))
