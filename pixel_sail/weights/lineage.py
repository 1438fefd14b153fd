"""The runs that a model comes from, found by `train.init_from`: what a model card says about earlier stages."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail import yaml_file
from pixel_sail.errors import FileError
from pixel_sail.files import read_json
from pixel_sail.weights.run_folder import step_of

CONFIG = "config.yaml"
TRAINING_CONFIG = "training_config.yaml"  # the config of the run, in a published folder
MAX_STAGES = 100  # more is a circle
_ADVICE = "move it away to publish without it"
# What the model card reads of config.yaml and environment.json.
_KINDS = {
    "model": dict,
    "train": dict,
    "train.init_from": str,
    "architecture": dict,
    "data": dict,
    "data.exclude": list,
    "data.mixture": list,
    "commit": str,
    "modified_files": list,
    "packages": dict,
}


@dataclass(frozen=True)
class Stage:
    """One run: its folder's name, its resolved config, and its environment.json if that is there."""

    name: str
    training: dict[str, Any]
    environment: dict[str, Any] | None = None


def lineage(model: Path) -> list[Stage]:
    """The run of a model and those that it started from, the first one first; empty if no training of it is known.

    Ends at a published folder, at a hub id, and where a start is not on this machine any more. Paths are relative to
    the working directory, as in training. Raises FileError for a damaged config.yaml or environment.json.
    """
    stages: list[Stage] = []
    run: Path | None = _run_of(model)
    while run is not None and len(stages) < MAX_STAGES:
        is_run = (run / CONFIG).is_file()
        training = _read(run / (CONFIG if is_run else TRAINING_CONFIG))
        if training is None:
            break
        stages.insert(0, Stage(run.name, training, _read(run / "environment.json")))
        # where a published model started from is a name of another machine
        start = (training.get("train") or {}).get("init_from") if is_run else None
        run = None if start is None else _run_of(Path(start))
    return stages


def note_untrained_zoom(model: Path) -> None:
    """Says on the console if no run of a model had crops (data.zoom), as a second look needs; quiet without any run.

    Raises FileError as `lineage`.
    """
    stages = lineage(model)
    if stages and not any((stage.training.get("data") or {}).get("zoom") for stage in stages):
        print(
            f"note: {model} was not trained with crops (data.zoom), so --zoom may make its masks worse: docs/use.md",
            file=sys.stderr,
        )


def _run_of(model: Path) -> Path:
    """The folder of the run that a model belongs to, if it is its export/ or a checkpoint; else the model itself."""
    is_checkpoint = step_of(model) is not None and model.parent.name == "checkpoints"
    run = model.parent if model.name == "export" else model.parent.parent if is_checkpoint else model
    return run if (run / CONFIG).is_file() else model


def _read(path: Path) -> dict[str, Any] | None:
    """A YAML or JSON file of a run; None if it is missing. Raises FileError if it is damaged."""
    if not path.exists():
        return None
    try:
        values = read_json(path) if path.suffix == ".json" else yaml_file.read(path)
    except FileError as error:
        raise FileError(f"{error}; {_ADVICE}") from None
    if not isinstance(values, dict):
        raise FileError(f"{path} holds no keys and values; {_ADVICE}")
    for key, kind in _KINDS.items():
        section, _, inner = key.partition(".")
        value = values.get(section)
        value = value.get(inner) if inner and isinstance(value, dict) else value
        if value is not None and not isinstance(value, kind):
            raise FileError(f"{path}: {key} is {str(value)[:40]!r}, no {kind.__name__}; {_ADVICE}")
    return values
