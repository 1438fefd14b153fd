"""What a run leaves in its folder, read by training itself, by a new start (train.init_from) and by tools/export.py.

run.dir/checkpoints/step_00000010/
    state.json    step, config, data fingerprint, number of processes, bad samples so far
    engine/       DeepSpeed's own files: weights and optimizer state, one shard per process
    model/        config.json and tokenizer, so that the weights can be read without the base of the run
run.dir/export/   the finished model
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixel_sail.durable import PARTIAL

STATE = "state.json"
ENGINE = "engine"  # folder of DeepSpeed's files in a checkpoint; DeepSpeed calls it the tag
MODEL = "model"  # folder of config.json and tokenizer in a checkpoint


@dataclass(frozen=True)
class TrainState:
    """The progress of a run. Everything random is a function of seed and position, so no generator is saved."""

    step: int  # optimizer steps completed
    bad_samples: int
    world_size: int
    data: list[dict[str, Any]]  # Mixture.fingerprint()
    config: dict[str, Any]
    experts: dict[str, str] = field(default_factory=dict)  # Distillation.fingerprints


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a checkpoint, a folder step_* of a run."""
    return (folder / STATE).is_file()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != PARTIAL and is_checkpoint(path))


def read_state(checkpoint: Path) -> TrainState:
    """The state.json of a checkpoint. Its config is as it was written: see config.upgraded."""
    return TrainState(**json.loads((checkpoint / STATE).read_text()))
