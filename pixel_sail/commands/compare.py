"""Compares two models on the benchmarks that both were scored on: differences with intervals, and a page of the cases.

    python tools/test.py MODEL_A --benchmark refcoco:val --out outputs/a
    python tools/test.py MODEL_B --benchmark refcoco:val --out outputs/b
    python tools/compare.py outputs/a outputs/b --data-root data/scenes --out outputs/compare.html

A and B are folders that tools/test.py wrote. A difference is B minus A, in percent; its interval is 95 % of a paired
bootstrap over images. Scores of words, such as METEOR, are not compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="A", help="a folder of tools/test.py")
    parser.add_argument("second", type=Path, metavar="B")
    parser.add_argument("--benchmark", action="append", help="only this one; may be repeated")
    parser.add_argument("--by", metavar="GROUPING", help="also in each group of cases, for example: object size")
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--out", type=Path, default=Path("outputs/compare.html"), help="the page to write")
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.commands.work import compare as work
    work.run(arguments)
