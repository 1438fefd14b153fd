"""Run experts of a config once over all training images and store their features in their `cache` folders.

python tools/cache_expert.py configs/a.yaml --expert sam2
python tools/cache_expert.py configs/a.yaml --expert masks --expert patches    # one expert, two `at`: it runs once
deepspeed tools/cache_expert.py configs/a.yaml --expert sam2       # one process per GPU
python tools/cache_expert.py configs/a.yaml --expert sam2 --shard 0/4     # shares by hand; then once without --shard

Repeat the command after a kill, or after images were added or changed: only missing features are computed.
"""

from __future__ import annotations

import argparse

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--expert", action="append", required=True, help="its name in the config; may be repeated")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; else this process's GPU, or the CPU")
    parser.add_argument("--shard", type=_shard, help="I/N: only share I (counted from 0) of N of the images")
    parser.add_argument("--batch", type=whole(1), default=8, help="images per forward pass of the expert")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it
    a = parser.parse_args()
    with importing():
        from pixel_sail.config import load_config
        from pixel_sail.devices import choose_device
        from pixel_sail.experts.fill_cache import cache_experts, finish_cache
        from pixel_sail.ranks import together
        from pixel_sail.train import distributed
        from pixel_sail.weights.start import with_start
    chosen = None if a.device is None else choose_device(a.device)
    with distributed.joined():
        config = together(lambda: with_start(load_config(a.config, a.overrides)))
        process, processes = a.shard or (distributed.rank(), distributed.world_size())
        progress = distributed.rank() == 0
        device = chosen or distributed.device()
        problems = together(lambda: cache_experts(config, a.expert, device, process, processes, a.batch, progress))
        for problem in problems:
            print(f"left out: {problem}")
        if a.shard is not None:
            print(f"share {process} of {processes} is stored; when all are, run this once without --shard")
        elif distributed.rank() == 0:
            for name in dict.fromkeys(a.expert):
                print(finish_cache(config, name, progress))


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N with 0 <= I < N, for example 0/4")
    return int(number), int(of)
