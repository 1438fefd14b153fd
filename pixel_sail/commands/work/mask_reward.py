"""What `pixel-sail mask-reward` does: the seeds of a study one after the other, and the table."""

from __future__ import annotations

import argparse

from pixel_sail.config import ConfigError
from pixel_sail.interrupts import how_far
from pixel_sail.locks import Busy, locked
from pixel_sail.studies.mask_reward.plan import load_plan
from pixel_sail.studies.mask_reward.stages import run_seed
from pixel_sail.studies.mask_reward.table import write
from pixel_sail.writable import check_writable, writing_into


def run(arguments: argparse.Namespace) -> None:
    plan = load_plan(arguments.config)
    folder, seeds = plan.study.dir, arguments.seed or plan.study.seeds
    unknown = sorted(set(seeds) - set(plan.study.seeds))
    if unknown:
        raise ConfigError(f"{arguments.config} has no seed {unknown[0]}; its seeds are {plan.study.seeds}")
    check_writable(folder)
    for seed in () if arguments.table else seeds:
        try:
            with locked(folder / f"seed_{seed}.lock", f"seed {seed} of {folder}"):
                plan.check_same(seed)
                message = f"stopped in seed {seed}; the same command does its unfinished stages"
                with writing_into(folder), how_far(lambda message=message: message):
                    run_seed(plan, seed)
        except Busy as busy:
            print(f"{busy}; this process goes on with the next seed", flush=True)
    print(write(plan))
    print(f"written: {folder / 'mask_reward.md'}, {folder / 'mask_reward.json'}")
