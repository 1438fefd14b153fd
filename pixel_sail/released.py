"""Where the released small model is, which a clone and an installed package bring along."""

import argparse
from pathlib import Path

from pixel_sail.shipped import SHIPPED

_CLONE, _NAME = Path(__file__).parents[1], Path("data/models/tiny")
RELEASED = _CLONE / _NAME if (_CLONE / _NAME).is_dir() else SHIPPED / _NAME


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="an export folder, or a run; default: the small model, data/models/tiny",
    )


def model_or_released(parser: argparse.ArgumentParser, checkpoint: Path | None) -> Path:
    """The checkpoint that was given, or the small model. Without either, an error of the command line."""
    if checkpoint is None and not RELEASED.is_dir():
        parser.error(f"give a checkpoint: the small model that comes along is not at {RELEASED}")
    return RELEASED if checkpoint is None else checkpoint
