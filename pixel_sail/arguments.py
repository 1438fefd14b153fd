"""Types of command-line arguments. Only tools import this module."""

from __future__ import annotations

import argparse
from collections.abc import Callable


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
