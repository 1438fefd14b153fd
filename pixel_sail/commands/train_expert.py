"""Trains a small Mask2Former, an expert to distil from. `python tools/train_expert.py CONFIG [key=value ...]`"""

from __future__ import annotations

import argparse

from pixel_sail.command import importing, tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file, see configs/expert_scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example lr=1e-4 dir=runs/a")
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.scenes.expert_config import load_expert_training
        from pixel_sail.scenes.expert_run import quality_line
        from pixel_sail.scenes.expert_training import train_expert
    config = load_expert_training(arguments.config, arguments.overrides)
    values = train_expert(config)
    print(f"{quality_line(values)}\nthe expert is {config.dir / 'expert'}")
