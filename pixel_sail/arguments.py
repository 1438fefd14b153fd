"""Types of command-line arguments, and those that several commands take. Only commands import this module."""

from __future__ import annotations

import argparse
from collections.abc import Callable

SHARD_GB = 2.0  # default of --shard-gb


def share(text: str) -> float:
    """A number above 0 and at most 1; argparse says so where it is not, and exits with 2."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a number above 0 and at most 1")
    return number


def probability(text: str) -> float:
    """A number from 0 to 1; argparse says so where it is not, and exits with 2."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a number from 0 to 1")
    return number


def add_min_presence(parser: argparse.ArgumentParser) -> None:
    """Adds --min-presence, of the commands that ask a model; None where it is left out."""
    parser.add_argument(
        "--min-presence",
        type=probability,
        metavar="P",
        help="no mask for what is less likely to be there (0 to 1; default: what the model says; needs a score head)",
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number from `least` to `most`; argparse says so where it is not, and exits with 2."""
    wanted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most:,}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{text!r:.80} is not {wanted}")
        return number

    return parse


def shard_gb(text: str) -> float:
    """The value of --shard-gb. Raises ValueError for what is no size of a file; argparse says so and exits with 2."""
    size = float(text)
    if not 0 < size < 1e6:
        raise ValueError(text)
    return size
