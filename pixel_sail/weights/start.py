"""The model of ours that a run starts from (train.init_from): find its folder, read its config, load its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.config import Config, ConfigError
from pixel_sail.errors import WeightsError
from pixel_sail.folders.find import own_folder
from pixel_sail.folders.place import ON_CPU, Place
from pixel_sail.model.configuration import PixelSailConfig, load_own_config, load_own_tokenizer
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.checksums import newest_whole_before
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.run_folder import MODEL, STATE, DamagedCheckpoint, is_checkpoint, saved_steps


def find_model(path: Path) -> Path:
    """The export folder or checkpoint at `path`: itself, or of a run its export/, else its newest checkpoint.

    `path` may be a hub id (see `own_folder`). Raises FileNotFoundError that says what was looked for, and
    DamagedCheckpoint if the newest checkpoint is none.
    """
    path = own_folder(path)
    if is_checkpoint(path) or (path / "config.json").is_file():
        return path
    if (path / "export" / "config.json").is_file():
        return path / "export"
    checkpoints = saved_steps(path / "checkpoints")
    if not checkpoints:
        raise FileNotFoundError(
            f"{path} is no model: it has neither config.json, nor state.json, nor export/, nor checkpoints/step_*"
        )
    if not is_checkpoint(checkpoints[-1]):
        older = newest_whole_before(checkpoints[-1])
        raise DamagedCheckpoint(
            f"{checkpoints[-1]}, the newest checkpoint of {path}, has no {STATE} that can be read"
            f"{f'. {older} is whole: give that instead' if older else ', and no older one is whole'}"
        )
    return checkpoints[-1]


def model_folder(path: Path) -> Path:
    """The folder with config.json and tokenizer of the model at `path` (see `find_model`)."""
    folder = find_model(path)
    return folder / MODEL if is_checkpoint(folder) else folder


def with_start(config: Config) -> Config:
    """The config with its section `architecture` taken from train.init_from; unchanged without train.init_from.

    Three keys of it may be given. `max_side_px`, on which no weight depends: a model can continue at another
    resolution. `mask_scores: true`: a model without a score head gets one, on which nothing else depends. And `clicks:
    true`: a model that takes no clicks learns them; until it does, nothing else changes.
    `model.base` and `model.scratch` are ignored. Raises FileNotFoundError if there is no model, and ConfigError that
    lists the given keys of `architecture` (and `model.chat_format`) that contradict the checkpoint.
    """
    if config.train.init_from is None:
        return config
    start = _model_config(model_folder(config.train.init_from))
    requested = config.architecture.model_dump(exclude_unset=True)
    given = {"max_side_px": requested.pop("max_side_px", start.architecture.max_side_px)}
    given |= {key: requested.pop(key) for key in ("mask_scores", "clicks") if requested.get(key)}
    contradictions = _contradictions(requested, start.architecture.model_dump(), "architecture")
    if config.model.chat_format not in ("auto", start.chat_format):
        contradictions.append(f"model.chat_format: config {config.model.chat_format}, checkpoint {start.chat_format}")
    if contradictions:
        raise ConfigError(
            f"train.init_from={config.train.init_from} does not fit the config: {'; '.join(contradictions)}. "
            "Leave these keys out: they come from the checkpoint"
        )
    architecture = Architecture.model_validate(start.architecture.model_dump() | given)
    return config.model_copy(update={"architecture": architecture})


def load_start(path: Path, place: Place = ON_CPU) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model and the tokenizer of an export folder, a run or a checkpoint.

    Its weights: at `place`, those of a checkpoint in float32 on the CPU.
    """
    folder = find_model(path)
    if is_checkpoint(folder):
        return model_of_checkpoint(folder)
    try:
        tokenizer = load_own_tokenizer(folder, load_own_config(folder))  # before the weights, which take longest
        return PixelSail.load(folder, place), tokenizer
    except WeightsError as error:
        raise ConfigError(f"train.init_from: {error}") from error


def _contradictions(requested: Any, actual: Any, key: str) -> list[str]:
    """A line for each requested value that the checkpoint has differently."""
    if isinstance(requested, dict) and isinstance(actual, dict):
        return [
            line
            for name, value in requested.items()
            for line in _contradictions(value, actual.get(name), f"{key}.{name}")
        ]
    return [] if requested == actual else [f"{key}: config {requested}, checkpoint {actual}"]


def _model_config(folder: Path) -> PixelSailConfig:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no {folder / 'config.json'}: checkpoints of older versions start nothing: take export/"
        )
    try:
        return load_own_config(folder)
    except WeightsError as error:
        raise ConfigError(f"train.init_from: {error}") from error
