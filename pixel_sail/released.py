"""Where the released small model is, which a clone brings along."""

from pathlib import Path

RELEASED = Path(__file__).parents[1] / "data" / "models" / "tiny"
MODEL_HELP = "an export folder, or a run; default: data/models/tiny of the clone"
