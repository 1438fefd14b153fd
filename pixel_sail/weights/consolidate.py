"""Gather the weights of a resume checkpoint from the files of all processes, in one process and without a GPU."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pixel_sail.config import ConfigError, build_config, upgraded
from pixel_sail.folders.weight_files import check_finite
from pixel_sail.model.configuration import load_own_config, load_own_tokenizer
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.merge import dequantize_state, merged
from pixel_sail.weights.run_folder import ENGINE, MODEL, is_checkpoint, read_state


def model_of_checkpoint(checkpoint: Path) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model saved in `checkpoint` (run.dir/checkpoints/step_*), float32, in eval mode, and its tokenizer.

    Any ZeRO stage and number of processes; adapters are merged. Nothing else of the run is needed. The files are
    pickles of DeepSpeed: never read a checkpoint that you do not trust. Raises ConfigError for a checkpoint that is
    incomplete or does not fit its model.
    """
    if not is_checkpoint(checkpoint):
        raise ConfigError(f"{checkpoint} is not a checkpoint: it has no state.json; give a folder step_* of a run")
    config = build_config(upgraded(read_state(checkpoint).config), where=str(checkpoint / "state.json"))
    if not (checkpoint / MODEL / "config.json").is_file():
        raise ConfigError(f"{checkpoint} is incomplete: {checkpoint / MODEL / 'config.json'} is missing")
    weights = merged(read_weights(checkpoint, config.train.zero_stage), config.train.lora)
    model_config = load_own_config(checkpoint / MODEL)
    tokenizer = load_own_tokenizer(checkpoint / MODEL, model_config)
    model = PixelSail(model_config)
    untied = {name for name in model.state_dict() if name not in model.all_tied_weights_keys}
    missing, unexpected = sorted(untied - weights.keys()), sorted(weights.keys() - model.state_dict().keys())
    if missing or unexpected:
        raise ConfigError(f"{checkpoint} does not fit its model: missing {missing}, unexpected {unexpected}")
    check_finite(weights, checkpoint)
    model.load_state_dict(weights, strict=False)
    return model.eval(), tokenizer


def read_weights(checkpoint: Path, zero_stage: int) -> dict[str, Tensor]:
    """Float32 weights of the model under their names in training, without those of distillation adapters."""
    state = dequantize_state(_without_zero(checkpoint)) if zero_stage == 0 else _with_zero(checkpoint)
    # LossModule (train/engine.py) names the model `model`; ZeRO-3 wraps parts of it in a Leaf (train/zero3.py).
    return {
        name.removeprefix("model.").replace("_leaf.module.", "."): tensor.float()
        for name, tensor in state.items()
        if name.startswith("model.")
    }


def _without_zero(checkpoint: Path) -> dict[str, Tensor]:
    file = checkpoint / ENGINE / "mp_rank_00_model_states.pt"
    if not file.is_file():
        raise ConfigError(f"{checkpoint} is incomplete: {file} is missing")
    return torch.load(file, map_location="cpu", weights_only=False)["module"]


def _with_zero(checkpoint: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the name of every file
            return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ENGINE)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{checkpoint} is incomplete: {error}") from error
