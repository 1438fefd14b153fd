"""What a run leaves in its folder, for those that read it: training itself, a new start, an export.

run.dir/checkpoints/step_00000010/
    state.json    step, config, data fingerprint, number of processes, bad samples so far
    engine/       DeepSpeed's own files: weights, optimizer state, one shard for each process
    model/        config.json and tokenizer, so that the weights can be read without what the run started from
run.dir/export/   the finished model
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixel_sail.durable import PARTIAL

STATE = "state.json"
ENGINE = "engine"  # the folder of DeepSpeed's files in a checkpoint, and what DeepSpeed calls its tag
MODEL = "model"  # the folder of config.json and tokenizer in a checkpoint


@dataclass(frozen=True)
class TrainState:
    """Where a run stands. Everything random is a function of seed and position, so no generator needs saving."""

    step: int  # optimizer steps completed
    bad_samples: int
    world_size: int
    data: list[dict[str, Any]]  # Mixture.fingerprint()
    config: dict[str, Any]
    experts: dict[str, str] = field(default_factory=dict)  # Distillation.fingerprints


def is_checkpoint(folder: Path) -> bool:
    """Whether this is a folder step_* of a run."""
    return (folder / STATE).is_file()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that are whole, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != PARTIAL and is_checkpoint(path))


def read_state(checkpoint: Path) -> TrainState:
    return TrainState(**json.loads((checkpoint / STATE).read_text()))
