"""Trains and scores every variant of an ablation with every seed, and writes one table with plots.

    python tools/ablate.py configs/ablation.yaml
    python tools/ablate.py configs/ablation.yaml --only plain --only upsampling
    python tools/ablate.py configs/ablation.yaml --table          # of the finished runs; starts no run

Each run is one call of tools/train.py and one of tools/test.py in its own folder. Repeat the command to continue:
finished runs are not done again. Start it several times at once (for example once for each GPU, with
CUDA_VISIBLE_DEVICES), and each process takes the runs that no other process works on. Results: ablation.md,
ablation.json and ablation_*.png in the `dir` of the config, updated after every run. See docs/ablation.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="an ablation file, see configs/ablation.yaml")
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT", help="may be repeated")
    parser.add_argument("--table", action="store_true", help="write the results of the finished runs and start no run")
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.commands.work import ablate as work
    work.run(arguments)
