"""Train a model: `python tools/train.py CONFIG [key.sub=value ...]`, or the same under the `deepspeed` launcher."""

from __future__ import annotations

import argparse

from pixel_sail.command import importing, tool
from pixel_sail.commands.config import print_keys


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", help="a YAML file, see configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="for example train.lr=1e-4 run.dir=runs/a"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # passed by the launcher; equals LOCAL_RANK
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="BEGINNING",
        help="print all config keys, or those of train, data.pro, ...",
    )
    parser.add_argument("--plan", action="store_true", help="print parameters and memory of the run, and stop")
    parser.add_argument("--gpus", type=int, default=8, help="with --plan: GPUs of all machines together (default 8)")
    parser.add_argument("--gpu-memory-gib", type=float, default=80, help="with --plan: of one GPU (default 80)")
    arguments = parser.parse_intermixed_args()
    if arguments.keys is not None:
        print_keys(arguments.keys)
        return
    if arguments.config is None:
        parser.error("give a config, for example configs/scratch.yaml")
    if arguments.plan:
        with importing():
            from pixel_sail.bench.plan import plan
            from pixel_sail.config import load_config
        print(plan(load_config(arguments.config, arguments.overrides), arguments.gpus, arguments.gpu_memory_gib))
        return
    with importing():
        from pixel_sail.config import load_config
        from pixel_sail.ranks import together
        from pixel_sail.train import distributed
        from pixel_sail.train.loop import train
    with distributed.joined():
        train(together(lambda: load_config(arguments.config, arguments.overrides)))
