"""The model of ours that a run starts from (train.init_from): where it lies, what it is, its weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.checkpoint import MODEL, complete_checkpoints
from pixel_sail.train.consolidate import model_of_checkpoint

# Keys that the model section and an export's config.json share by name; mask_stride and chat_format are compared apart.
_SHARED_KEYS = (
    "patch_size",
    "sub_patch_size",
    "sub_patch_width",
    "stem_widths",
    "patch_positions",
    "region_embedding",
    "max_side_px",
    "mask_dim",
    "rope_layout",
)


def find_source(given: Path) -> Path:
    """The export folder or the checkpoint that `given` means. FileNotFoundError says what was looked for."""
    if (given / "state.json").is_file() or (given / "config.json").is_file():
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
    return place / MODEL if (place / "state.json").is_file() else place


def with_start(config: Config) -> Config:
    """The same config; with train.init_from, its model section says what that model is.

    `model.max_side_px`, on which no weight depends, may be given anew: a model goes on at another resolution. Raises
    FileNotFoundError where there is no model, and ConfigError that lists the keys of `model` that were given and say
    otherwise. `model.base` and `model.scratch` are not read.
    """
    if config.train.init_from is None:
        return config
    found = _section_of(model_folder(config.train.init_from))
    given = config.model.model_dump(include=config.model.model_fields_set)
    if given.get("chat_format") == "auto":
        del given["chat_format"]
    found["max_side_px"] = given.get("max_side_px", found["max_side_px"])
    differing = [
        f"{key}: config {given[key]}, checkpoint {found[key]}"
        for key in found
        if given.get(key, found[key]) != found[key]
    ]
    if differing:
        raise ConfigError(
            f"train.init_from={config.train.init_from} does not fit the model section: {'; '.join(differing)}. "
            "Leave these keys out: they come from the checkpoint"
        )
    del found["chat_format"]  # what "auto" has found is in the model's own config
    return config.model_copy(update={"model": config.model.model_copy(update=found)})


def load_start(given: Path) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model (float32) and the tokenizer of an export folder, a run or a checkpoint."""
    place = find_source(given)
    if (place / "state.json").is_file():
        return model_of_checkpoint(place)
    return PixelSail.from_pretrained(place), AutoTokenizer.from_pretrained(place, local_files_only=True)


def _section_of(folder: Path) -> dict[str, object]:
    """What config.json says, by the keys of the model section."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no {folder / 'config.json'}; checkpoints of older versions start nothing: take export/"
        )
    config = PixelSailConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != PixelSailConfig.model_type or config.mask_channels is None:
        raise ConfigError(
            f"{folder} holds no model of pixel_sail: give it as model.base, or convert it (tools/convert.py)"
        )
    values = {key: getattr(config, key) for key in _SHARED_KEYS}
    stride = config.patch_size // 2 ** (len(config.mask_channels) - 1)
    return values | {"mask_stride": stride, "chat_format": config.chat_format}
