"""The process of one stage: `python -m pixel_sail.bench.gpu.child STAGE FOLDER SECONDS [--rehearsed]`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from pixel_sail.bench.gpu.checks import Report


def main(arguments: list[str]) -> None:
    stage, folder, seconds, *rehearsed = arguments
    os.environ["DS_ACCELERATOR"] = "cuda"
    report = Report(stage, Path(folder), float(seconds), rehearsed == ["--rehearsed"])
    report.work.mkdir(parents=True, exist_ok=True)
    with report.part("the stage"):
        importlib.import_module(f"pixel_sail.bench.gpu.{stage}").run(report)


if __name__ == "__main__":
    main(sys.argv[1:])
