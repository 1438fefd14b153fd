"""What a run leaves in its folder, read by training itself, by a new start (train.init_from) and by tools/export.py.

run.dir/checkpoints/step_00000010/
    state.json       step, config, data fingerprint, number of processes, bad samples so far
    checksums.json   size and SHA-256 of every other file (checksums.py); older checkpoints have none
    engine/          DeepSpeed's own files: weights and optimizer state, one shard per process (engine_files.py)
    model/           config.json and tokenizer, so that the weights can be read without the base of the run
run.dir/export/      the finished model
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixel_sail.errors import WeightsError
from pixel_sail.files import check_regular, read_json

STATE = "state.json"
ENGINE = "engine"  # folder of DeepSpeed's files in a checkpoint; DeepSpeed calls it the tag
MODEL = "model"  # folder of config.json and tokenizer in a checkpoint
SET_ASIDE = ".damaged"  # ends the name of a damaged checkpoint that a run went around
MAX_STATE_BYTES = 2**26  # 64 MiB, of state.json
MAX_DEPTH = 32  # of the values in state.json
_NAME = re.compile(r"step_(\d{8,18})")


class DamagedCheckpoint(WeightsError):
    """A checkpoint that is not whole. All ranks find the same."""

    on_all_ranks = True


@dataclass(frozen=True)
class TrainState:
    """The progress of a run. Everything random is a function of seed and position, so no generator is saved."""

    step: int  # optimizer steps completed
    bad_samples: int
    world_size: int
    data: list[dict[str, Any]]  # Mixture.fingerprint()
    config: dict[str, Any]
    experts: dict[str, str] = field(default_factory=dict)  # Distillation.fingerprints

    @property
    def zero_stage(self) -> int:
        return self.config["train"]["zero_stage"]


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint; None for any other name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a checkpoint, a folder step_* of a run."""
    try:
        return (folder / STATE).is_file()
    except OSError:  # no permission
        return False


def saved_steps(folder: Path) -> list[Path]:
    """Whatever has the name of a checkpoint in `folder`, whole or not, oldest first."""
    return sorted((path for path in folder.glob("step_*") if step_of(path) is not None), key=step_of)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, without those that lack their state.json."""
    return [path for path in saved_steps(folder) if is_checkpoint(path)]


def read_state(checkpoint: Path) -> TrainState:
    """The state.json of a checkpoint. Its config is as it was written: see config.upgraded.

    Raises DamagedCheckpoint for what no run has written.
    """
    path = checkpoint / STATE
    check_regular(path, MAX_STATE_BYTES, DamagedCheckpoint)
    values = read_json(path, error=DamagedCheckpoint)
    if problem := _problem_of(values):
        raise DamagedCheckpoint(f"{path} is damaged: {problem}")
    state = TrainState(**values)
    if step_of(checkpoint) not in (None, state.step):
        raise DamagedCheckpoint(f"{path} is of step {state.step}, but its folder is named {checkpoint.name}")
    return state


def _problem_of(values: Any) -> str | None:
    kinds = {"step": int, "bad_samples": int, "world_size": int, "data": list, "config": dict, "experts": dict}
    if not isinstance(values, dict):
        return "it holds no object"
    if missing := sorted(kinds.keys() - values.keys() - {"experts"}):  # which older versions did not write
        return f"{', '.join(missing)} is missing"
    if unknown := sorted(values.keys() - kinds.keys()):
        return f"unknown keys: {', '.join(unknown)[:200]}"
    for key, value in values.items():
        if type(value) is not kinds[key]:
            return f"{key} is no {kinds[key].__name__}"
    for key, least in (("step", 1), ("bad_samples", 0), ("world_size", 1)):
        if values[key] < least:
            return f"{key} is {values[key]}"
    if not all(isinstance(source, dict) for source in values["data"]):
        return "data is no list of objects"
    if not all(isinstance(value, str) for value in values.get("experts", {}).values()):
        return "experts are no text"
    if _depth_exceeds(values, MAX_DEPTH):
        return f"its values are nested more than {MAX_DEPTH} deep"
    train = values["config"].get("train")
    if not isinstance(train, dict) or train.get("zero_stage") not in range(4) or type(train["zero_stage"]) is not int:
        return "config has no train.zero_stage from 0 to 3"
    return None


def _depth_exceeds(value: Any, limit: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return limit == 0 if not children else limit == 0 or any(_depth_exceeds(child, limit - 1) for child in children)
