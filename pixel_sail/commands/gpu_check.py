"""Prove on one GPU what only a GPU can show, in minutes: kernels, parity, speed, ZeRO, generation, a real training.

python tools/gpu_check.py
python tools/gpu_check.py --only kernels speed --minutes 4

Each check is a JSON line, printed as soon as it is known; a table follows at the end. --out holds checks.jsonl, a log
for each stage, and gpu.md, the page for docs/results. A stage that fails or takes too long does not stop the next one.
Exit status: 1 if a check failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole
from pixel_sail.bench.gpu.stages import MINUTES, STAGES


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="folder to write")
    parser.add_argument("--minutes", type=whole(1, 600), default=MINUTES, help="for all stages together")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=[*STAGES], help="these stages, in this order")
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.bench.gpu.runner import check_gpu
        from pixel_sail.devices import choose_device
    choose_device("cuda")
    if not check_gpu(arguments.out, arguments.only, arguments.minutes):
        raise SystemExit(1)
