"""The model of ours that a run starts from (train.init_from): where it lies, what it is, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.config import Config, ConfigError
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.run_folder import MODEL, complete_checkpoints, is_checkpoint


def find_source(given: Path) -> Path:
    """The export folder or the checkpoint that `given` means. FileNotFoundError says what was looked for."""
    if is_checkpoint(given) or (given / "config.json").is_file():
        return given
    if (given / "export" / "config.json").is_file():
        return given / "export"
    saved = complete_checkpoints(given / "checkpoints")
    if not saved:
        raise FileNotFoundError(
            f"{given} is no model: it has neither config.json, nor state.json, nor export/, nor checkpoints/step_*"
        )
    return saved[-1]


def model_folder(given: Path) -> Path:
    """The folder with config.json and tokenizer of the model that `given` means."""
    place = find_source(given)
    return place / MODEL if is_checkpoint(place) else place


def with_start(config: Config) -> Config:
    """The same config; with train.init_from, its section `architecture` says what that model is.

    `architecture.max_side_px`, on which no weight depends, may be given anew: a model goes on at another resolution.
    Raises FileNotFoundError where there is no model, and ConfigError that lists the keys of `architecture` (and
    `model.chat_format`) that were given and say otherwise. `model.base` and `model.scratch` are not read.
    """
    if config.train.init_from is None:
        return config
    found = _model_config(model_folder(config.train.init_from))
    given = config.architecture.model_dump(exclude_unset=True)
    size = {"max_side_px": given.pop("max_side_px", found.architecture.max_side_px)}
    differing = _contradictions(given, found.architecture.model_dump(), "architecture")
    if config.model.chat_format not in ("auto", found.chat_format):
        differing.append(f"model.chat_format: config {config.model.chat_format}, checkpoint {found.chat_format}")
    if differing:
        raise ConfigError(
            f"train.init_from={config.train.init_from} does not fit the config: {'; '.join(differing)}. "
            "Leave these keys out: they come from the checkpoint"
        )
    architecture = Architecture.model_validate(found.architecture.model_dump() | size)
    return config.model_copy(update={"architecture": architecture})


def load_start(given: Path) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model (float32) and the tokenizer of an export folder, a run or a checkpoint."""
    place = find_source(given)
    if is_checkpoint(place):
        return model_of_checkpoint(place)
    return PixelSail.from_pretrained(place), AutoTokenizer.from_pretrained(place, local_files_only=True)


def _contradictions(given: Any, found: Any, key: str) -> list[str]:
    """Of every value that was given the key, where the checkpoint has another."""
    if isinstance(given, dict) and isinstance(found, dict):
        return [line for name in given for line in _contradictions(given[name], found.get(name), f"{key}.{name}")]
    return [] if given == found else [f"{key}: config {given}, checkpoint {found}"]


def _model_config(folder: Path) -> PixelSailConfig:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no {folder / 'config.json'}; checkpoints of older versions start nothing: take export/"
        )
    config = PixelSailConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != PixelSailConfig.model_type or config.text_config is None:
        raise ConfigError(
            f"{folder} holds no model of pixel_sail: give it as model.base, or convert it (tools/convert.py)"
        )
    return config
