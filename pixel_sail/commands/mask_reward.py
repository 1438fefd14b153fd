"""Does a reward for masks teach more than supervised fine-tuning at equal steps? An experiment with three seeds.

    OMP_NUM_THREADS=1 python tools/mask_reward.py configs/mask_reward.yaml
    python tools/mask_reward.py configs/mask_reward.yaml --seed 0     # one seed; may be repeated
    python tools/mask_reward.py configs/mask_reward.yaml --table      # of the finished stages; starts none

Every seed has a supervised start, and arms that go on from it. All run in this process, on a CPU. Repeat the command to
continue: finished stages are not done again. Start it several times at once, and each process takes the seeds on which
no other works. Results: mask_reward.md and mask_reward.json in the `dir` of the config. See docs/mask_reward.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a study file, see configs/mask_reward.yaml")
    parser.add_argument("--seed", type=int, action="append", default=[], metavar="N", help="may be repeated")
    parser.add_argument("--table", action="store_true", help="write the results of the finished stages and start none")
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.commands.work import mask_reward as work
    work.run(arguments)
