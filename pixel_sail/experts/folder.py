"""Open an expert from a Hugging Face checkpoint, with one error message that says what is missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, PreTrainedModel

from pixel_sail.config import ConfigError, ExpertConfig
from pixel_sail.errors import WeightsError
from pixel_sail.folders.find import local_folder
from pixel_sail.folders.load import load_config, load_network, load_processor

FILES = "config.json, preprocessor_config.json (or processor_config.json) and *.safetensors"


def load_pretrained(
    expert: ExpertConfig, model_class: type[PreTrainedModel], model_types: tuple[str, ...], needs: str
) -> PreTrainedModel:
    """`model_class` with the weights of `expert.path` (local folder or hub name), float32.

    Raises ConfigError if it cannot be loaded, if its model type is none of `model_types`, or if a weight whose name
    starts with `needs` is missing or has another shape, since it would be random.
    """
    try:
        folder = local_folder(expert.path)
        model_type = load_config(folder).model_type
        if model_type not in model_types:
            raise ConfigError(
                f"expert {expert.name!r}: {expert.path} is a {model_type!r} checkpoint, kind {expert.kind!r} needs one "
                f"of {', '.join(model_types)}"
            )
        return load_network(model_class, folder, torch.float32, needs)
    except WeightsError as error:
        raise cannot_load(expert, FILES, error) from error


def normalization(expert: ExpertConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB in 0..1, from the checkpoint's image processor. Raises ConfigError."""
    try:
        processor = load_processor(AutoImageProcessor, local_folder(expert.path))
    except WeightsError as error:
        raise cannot_load(expert, FILES, error) from error
    if not processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    mean, std = processor.image_mean, processor.image_std
    if not _is_rgb(mean) or not _is_rgb(std) or not all(value > 0 for value in std):
        raise cannot_load(expert, FILES, f"image_mean {mean!r} and image_std {std!r} are not three numbers each")
    return list(mean), list(std)


def _is_rgb(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def cannot_load(expert: ExpertConfig, files: str, cause: Exception | str) -> ConfigError:
    """An error that says what to download and where to put it."""
    local = Path(expert.path).is_dir()
    missing = f"the folder {expert.path} is not complete" if local else f"no folder {expert.path}, and no hub answers"
    return ConfigError(
        f"cannot load the expert {expert.name!r} (kind {expert.kind}): {missing}. Without hub access, download its "
        f"repository ({files}) on another machine, put it into a folder here and give that folder as the expert's "
        f"path. The cause: {cause}"
    )
