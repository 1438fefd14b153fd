"""Gather the weights of a resume checkpoint from the files of all processes, in one process and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from pixel_sail.config import Config, ConfigError, build_config, upgraded
from pixel_sail.errors import UserError
from pixel_sail.folders.listing import MAX_LISTED
from pixel_sail.folders.weight_files import is_finite
from pixel_sail.model.configuration import PixelSailConfig, load_own_config, load_own_tokenizer
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.checksums import check_whole, newest_whole_before
from pixel_sail.weights.engine_files import present_files, read_engine_file
from pixel_sail.weights.merge import dequantize_state, merged
from pixel_sail.weights.run_folder import ENGINE, MODEL, STATE, DamagedCheckpoint, TrainState, is_checkpoint


def model_of_checkpoint(checkpoint: Path) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model saved in `checkpoint` (run.dir/checkpoints/step_*), float32, in eval mode, and its tokenizer.

    Any ZeRO stage and number of processes; adapters are merged. Nothing else of the run is needed, and nothing in its
    files can run. Raises ConfigError for what is no checkpoint, DamagedCheckpoint for one that is incomplete, damaged,
    not finite, or does not fit its model.
    """
    if not is_checkpoint(checkpoint):
        raise ConfigError(f"{checkpoint} is not a checkpoint: it has no state.json; give a folder step_* of a run")
    try:
        return _model(checkpoint)
    except DamagedCheckpoint as error:
        older = newest_whole_before(checkpoint)
        raise DamagedCheckpoint(f"{error}{f'. {older} is whole: give that instead' if older else ''}") from None


def _model(checkpoint: Path) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    state = check_whole(checkpoint)
    if not (checkpoint / MODEL / "config.json").is_file():
        raise DamagedCheckpoint(f"{checkpoint} is incomplete: {checkpoint / MODEL / 'config.json'} is missing")
    weights = read_weights(checkpoint, state)
    config = load_own_config(checkpoint / MODEL)
    _check_fit(weights, config, checkpoint)
    tokenizer = load_own_tokenizer(checkpoint / MODEL, config)
    with no_init_weights():  # its own weights stay untouched memory; only buffers are computed
        model = PixelSail(config)
    # they become the model's own; a part of a longer vector is copied, else that would be saved with it
    own = {name: w if w.untyped_storage().nbytes() == w.nbytes else w.clone() for name, w in weights.items()}
    model.load_state_dict(own, strict=False, assign=True)
    model.tie_weights()
    return model.eval(), tokenizer


@torch.no_grad()
def read_unmerged(checkpoint: Path) -> tuple[dict[str, Tensor], Config]:
    """Float32 weights of a checkpoint under the names of training, with adapters beside them, and its run's config.

    Raises DamagedCheckpoint if they are not whole or do not fit together.
    """
    state = check_whole(checkpoint)
    return _guarded(lambda: _in_training(checkpoint, state), checkpoint), _config(checkpoint, state)


@torch.no_grad()
def read_weights(checkpoint: Path, state: TrainState) -> dict[str, Tensor]:
    """Float32 weights of the model under the names of an export; some may be read from the files as they are used.

    Raises DamagedCheckpoint if they do not fit together.
    """
    lora = _config(checkpoint, state).train.lora
    return _guarded(lambda: merged(_in_training(checkpoint, state), lora), checkpoint)


def _config(checkpoint: Path, state: TrainState) -> Config:
    try:
        return build_config(upgraded(state.config), where=str(checkpoint / STATE))
    except (TypeError, AttributeError, KeyError) as error:  # what `upgraded` meets in sections that are none
        raise DamagedCheckpoint(f"{checkpoint / STATE} is damaged: its config cannot be read ({error!r})") from None


def _guarded(read: Callable[[], dict[str, Tensor]], checkpoint: Path) -> dict[str, Tensor]:
    try:
        return read()
    except UserError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise DamagedCheckpoint(f"the weights in {checkpoint / ENGINE} do not fit together: {error!r:.300}") from None


def _in_training(checkpoint: Path, state: TrainState) -> dict[str, Tensor]:
    """Float32 weights of the model under their names in training, without those of distillation adapters."""
    names = present_files(checkpoint, state)
    weights, shards = ([read_engine_file(checkpoint / ENGINE / name, mmap=True) for name in part] for part in names)
    if state.zero_stage == 0:
        tensors = dequantize_state(weights[0]["module"])
    else:
        cut = [shard["optimizer_state_dict"] for shard in shards]
        tensors = _of_stage_3(weights, cut) if state.zero_stage == 3 else _of_stages_1_and_2(weights[0], cut)
        for name, source in weights[0]["shared_params"].items():
            tensors[name] = tensors[source]
    # LossModule (train/engine.py) names the model `model`; ZeRO-3 wraps parts of it in a Leaf (train/zero3.py).
    return {
        name.removeprefix("model.").replace("_leaf.module.", "."): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }


def _of_stages_1_and_2(weights: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Those that are trained in float32, from the optimizer; the others as they are.

    The trained weights of a group lie one after the other in a vector, of which each process has a part.
    """
    tensors = dict(weights["module"])
    for number, shapes in enumerate(weights["param_shapes"]):
        vector = torch.cat([shard["single_partition_of_fp32_groups"][number] for shard in shards])
        paddings = shards[0].get("param_alignment_paddings") or {number: [0] * len(shapes)}
        offset = 0
        for (name, shape), padding in zip(shapes.items(), paddings[number], strict=True):
            tensors[name] = vector[offset : offset + shape.numel()].view(shape)
            offset += shape.numel() + padding
        unit = 2 * len(shards)  # to a multiple of which DeepSpeed pads a vector, and sometimes twice
        if ceil(offset / unit) != ceil(len(vector) / unit):
            raise IndexError(f"group {number} of the weights needs {offset} values, but has {len(vector)}")
    return tensors


def _of_stage_3(weights: list[dict[str, Any]], shards: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Each process has an equal part of each weight, the last padded; its parts lie one after the other."""
    tensors = {name: weights[0]["module"][name] for name in weights[0]["buffer_names"]}
    for name, shape in (weights[0]["frozen_param_shapes"] or {}).items():
        tensors[name] = _joined([values["frozen_param_fragments"][name] for values in weights], shape)
    vectors = [torch.cat(shard["fp32_flat_groups"]) for shard in shards]
    offset = 0
    for name, shape in ((name, shape) for shapes in weights[0]["param_shapes"] for name, shape in shapes.items()):
        size = ceil(shape.numel() / len(shards))
        tensors[name] = _joined([vector[offset : offset + size] for vector in vectors], shape)
        offset += size
    if any(len(vector) != offset for vector in vectors):
        raise IndexError(f"the weights need {offset} values of each process, but have {[len(v) for v in vectors]}")
    return tensors


def _joined(parts: list[Tensor], shape: torch.Size) -> Tensor:
    return torch.cat(parts)[: shape.numel()].view(shape)


def _check_fit(weights: dict[str, Tensor], config: PixelSailConfig, checkpoint: Path) -> None:
    """Raise DamagedCheckpoint for weights that the model does not have, or lacks, and for NaN and infinite values."""
    with torch.device("meta"):  # nothing is allocated for a config that names other sizes than the weights have
        model = PixelSail(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - model.all_tied_weights_keys - weights.keys())]
    problems += [f"unexpected {name}" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"wrong shape {name}: checkpoint {tuple(weights[name].shape)}, model {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    problems = problems or [f"not finite {name}" for name, tensor in weights.items() if not is_finite(tensor)]
    if problems:
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise DamagedCheckpoint(f"{checkpoint} does not fit its model: {'; '.join(problems[:MAX_LISTED])}{more}")
