"""Trains a small Mask2Former, an expert to distil from. `python tools/train_expert.py CONFIG [key=value ...]`"""

from __future__ import annotations

import argparse
import sys

from pixel_sail.command import tool
from pixel_sail.config import ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.scenes.expert_config import load_expert_training
from pixel_sail.scenes.expert_training import quality_line, train_expert
from pixel_sail.types import BadSample


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file, see configs/expert_scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example lr=1e-4 dir=runs/a")
    arguments = parser.parse_args()
    try:
        config = load_expert_training(arguments.config, arguments.overrides)
        values = train_expert(config)
    except (ConfigError, DatasetError, BadSample, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    print(f"{quality_line(values)}\nthe expert is {config.dir / 'expert'}")


if __name__ == "__main__":
    main()
