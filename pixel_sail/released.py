"""Where the released small model is, which a clone brings along."""

import argparse
from pathlib import Path

RELEASED = Path(__file__).parents[1] / "data" / "models" / "tiny"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", help="an export folder, or a run; default: data/models/tiny of the clone"
    )


def model_or_released(parser: argparse.ArgumentParser, checkpoint: Path | None) -> Path:
    """The checkpoint that was given, or the small model. Without either, an error of the command line."""
    if checkpoint is None and not RELEASED.is_dir():
        parser.error("give a checkpoint: the small model is in clones of the repository, not in installed packages")
    return RELEASED if checkpoint is None else checkpoint
