"""Measure speed and memory and print one JSON line.

python tools/bench.py step --preset research-512 --mask-stride 4 --reference
python tools/bench.py blocks --device cuda --dtype bfloat16
python tools/bench.py data configs/scratch.yaml
python tools/bench.py data configs/scratch.yaml --shards data/scenes_shards
python tools/bench.py start /tmp/annotations --scale 0.1
python tools/bench.py distill configs/a_config_with_experts.yaml --steps 8
python tools/bench.py score data/models/tiny --data-root data/scenes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pixel_sail.command import importing, tool
from pixel_sail.arguments import share, whole
from pixel_sail.interrupts import how_far

MAX_THREADS = 1024
PRESETS = ("research-512", "tiny")


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="forward and backward of one step")
    step.add_argument("--preset", choices=PRESETS, default="research-512")
    step.add_argument("--mask-stride", type=whole(1), default=4)
    step.add_argument(
        "--head", choices=("tapered", "constant"), default="tapered", help="channel widths of our mask head"
    )
    step.add_argument("--reference", action="store_true", help="also measure the plain implementation, interleaved")
    step.add_argument("--images", type=whole(1, 64), default=1, help="of the sample; also measures it with one")
    step.add_argument("--mask-scores", action="store_true", help="with a score head; also measures it without")
    step.add_argument("--repeats", type=whole(1), default=5)
    step.add_argument("--threads", type=whole(1, MAX_THREADS), default=2)
    step.add_argument("--device", default="cpu")
    step.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    blocks = commands.add_parser("blocks", help="mask blocks, uncompiled and compiled in both forms")
    blocks.add_argument("--images", type=whole(1), default=4)
    blocks.add_argument("--height", type=whole(1, 1024), default=64, help="patches")
    blocks.add_argument("--width", type=whole(1, 1024), default=64, help="patches")
    blocks.add_argument("--repeats", type=whole(1), default=5)
    blocks.add_argument("--device", default="cuda")
    blocks.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    data = commands.add_parser("data", help="samples per second through encode and pack")
    data.add_argument("config")
    data.add_argument("overrides", nargs="*", metavar="key.sub=value")
    data.add_argument("--samples", type=whole(1), default=200)
    data.add_argument("--side", type=whole(32, 8192), help="first enlarge the images to this longer side, in pixels")
    data.add_argument("--shards", type=Path, help="also the same samples from this folder, interleaved")
    start = commands.add_parser("start", help="time and memory of opening annotation files of published counts")
    start.add_argument("folder", type=Path, help="where the files are made, about 3 GB at scale 1")
    start.add_argument("--scale", type=share, default=0.1, help="of the published counts, 1 at most")
    start.add_argument("--workers", type=whole(1, 64), nargs="+", default=[1, 2, 4])
    start.add_argument("--samples", type=whole(1), default=300, help="drawn of each source in each worker")
    distill = commands.add_parser("distill", help="a training step without experts, with cached and online ones")
    distill.add_argument("config")
    distill.add_argument("overrides", nargs="*", metavar="key.sub=value")
    distill.add_argument("--steps", type=whole(1), default=8)
    score = commands.add_parser("score", help="expressions per second with and without sharing the image")
    score.add_argument("checkpoint", type=Path)
    score.add_argument("--data-root", type=Path, required=True)
    score.add_argument("--benchmark", default="refcoco:val")
    score.add_argument("--images", type=whole(1), default=20)
    a = parser.parse_args()
    with how_far(lambda: "nothing is kept of a measurement; the same command starts it again"):
        print(json.dumps(_measure(a)))


def _measure(a: argparse.Namespace) -> dict[str, Any]:
    with importing():
        import torch

        from pixel_sail.bench.blocks import measure_blocks
        from pixel_sail.bench.distill import measure_distill
        from pixel_sail.bench.start import measure_start
        from pixel_sail.bench.step import measure
        from pixel_sail.bench.throughput import measure_data, measure_score, measure_shards
        from pixel_sail.config import load_config
        from pixel_sail.devices import choose_device
    if a.command == "step":
        choose_device(a.device)
        torch.set_num_threads(a.threads)
        dtype = getattr(torch, a.dtype)
        return measure(
            a.preset,
            a.mask_stride,
            a.head == "tapered",
            a.reference,
            a.repeats,
            a.device,
            dtype,
            a.images,
            a.mask_scores,
        )
    elif a.command == "blocks":
        device = str(choose_device(a.device))
        return measure_blocks(a.images, a.height, a.width, a.repeats, device, getattr(torch, a.dtype))
    elif a.command == "data" and a.shards is not None:
        return measure_shards(load_config(a.config, a.overrides), a.shards, a.samples)
    elif a.command == "data":
        return measure_data(load_config(a.config, a.overrides), a.samples, a.side)
    elif a.command == "start":
        return measure_start(a.folder, a.scale, a.samples, a.workers)
    elif a.command == "distill":
        return measure_distill(load_config(a.config, a.overrides), a.steps)
    else:
        return measure_score(a.checkpoint, a.data_root, a.benchmark, a.images)
