"""Several runs after one another in the same processes, which take a while to start.

several_runs.py CONFIG [key=value ...] -- CONFIG [key=value ...] -- ...
"""

import sys
from itertools import groupby

from pixel_sail.command import tool
from pixel_sail.config import load_config
from pixel_sail.train import distributed
from pixel_sail.train.loop import train


@tool
def main() -> None:
    with distributed.joined():
        for is_border, words in groupby(sys.argv[1:], lambda word: word == "--"):
            if not is_border:
                config, *overrides = words
                train(load_config(config, overrides))


if __name__ == "__main__":
    main()
