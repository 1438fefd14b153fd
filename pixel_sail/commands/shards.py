"""Draws the mixture of a config into webdataset shards, or verifies the checksums of shards.

python tools/make_shards.py configs/scratch.yaml --out data/scenes_shards --samples 20000
python tools/make_shards.py --out data/scenes_shards --verify
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole
from pixel_sail.interrupts import how_far
from pixel_sail.workers import MAX_WORKERS

MAX_SAMPLES = 10**9  # their names have nine digits


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="a YAML file, see configs/; its data.mixture and run.seed are drawn")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--samples", type=whole(1, MAX_SAMPLES), help="number of samples, from the start of the stream")
    parser.add_argument("--samples-per-shard", type=whole(1, MAX_SAMPLES), default=1000)
    parser.add_argument(
        "--workers", type=whole(1, MAX_WORKERS), default=os.cpu_count(), help="processes; all cores by default"
    )
    parser.add_argument("--verify", action="store_true", help="recompute the checksums of --out")
    args = parser.parse_intermixed_args()
    if args.verify:
        _verify(args.out)
    elif args.config is None or args.samples is None:
        parser.error("give a config and --samples, or --verify")
    else:
        _make(args)


def _make(args: argparse.Namespace) -> None:
    with importing():
        from pixel_sail.config import load_config
        from pixel_sail.data.write_shards import make_shards
        from pixel_sail.evaluate.held_out import held_out_images
        from pixel_sail.experts.features import cached_features
        from pixel_sail.weights.start import with_start
    config = with_start(load_config(args.config, args.overrides))
    features = cached_features(config)
    index = make_shards(
        config,
        args.out,
        args.samples,
        args.samples_per_shard,
        args.workers,
        progress=True,
        features=features,
        held_out=held_out_images(config),
    )
    _report(index, args.out)


def _verify(out: Path) -> None:
    with importing():
        from pixel_sail.data.verify_shards import verify_shards
    with how_far(lambda: "the shards are not verified; the same command starts again"):
        problems = verify_shards(out, progress=True)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        sys.exit(f"{out}: {len(problems)} problems; delete the damaged files and make the shards again:\n{listed}")
    print(f"{out}: no file has changed since it was written")


def _report(index: dict, out: Path) -> None:
    for problem in index["problems"]:
        print(f"left out: {problem}")
    for line in index.get("excluded", ()):
        print(line)
    for entry, samples in zip(index["request"]["mixture"], index["samples_per_source"], strict=True):
        print(f"{entry['source']} ({entry['split']}): {samples} samples")
    size = sum(shard["bytes"] for shard in index["shards"])
    mean = size / index["samples"]
    print(f"{out}: {index['samples']} samples in {len(index['shards'])} shards, {mean:.0f} bytes per sample")
