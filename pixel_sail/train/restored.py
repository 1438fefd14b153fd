"""A look at what DeepSpeed restored from a checkpoint.

It pads, cuts and leaves out silently what does not fit, so that a run would go on with other moments.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pixel_sail.folders.weight_files import is_finite
from pixel_sail.train.engine import Engine
from pixel_sail.weights.run_folder import DamagedCheckpoint

# Options of the optimizer that come from the config; a file must not bring others.
SETTINGS = ("weight_decay", "lr_scale", "muon", "betas", "eps", "amsgrad", "maximize")


def optimizer_settings(engine: Engine) -> str:
    """What a checkpoint must not change: the options of each group, and the norm at which gradients are clipped."""
    groups = [{key: group[key] for key in SETTINGS if key in group} for group in _base(engine).param_groups]
    return repr([*groups, getattr(engine.deepspeed.optimizer, "clip_grad", None)])


def check_restored(engine: Engine, settings: str, folder: Path) -> None:
    """Raise DamagedCheckpoint if what was restored from `folder` on this rank is incomplete or not finite."""
    if optimizer_settings(engine) != settings:
        raise DamagedCheckpoint(f"{folder} holds other settings of the optimizer than the config has")
    names = {}
    for name, parameter in engine.deepspeed.module.named_parameters():
        names[id(parameter)] = name.removeprefix("model.")
        _check_finite(getattr(parameter, "ds_tensor", parameter), names[id(parameter)], folder)
    state = _base(engine).state
    expected = shards(engine)
    if not state or (expected and len(state) != len(expected)):
        raise DamagedCheckpoint(f"{folder} has {len(state)} of {len(expected) or 'all'} states of the optimizer")
    for number, (parameter, entry) in enumerate(state.items()):
        name = names.get(id(parameter), f"the weights of group {number}")
        _check_finite(parameter, name, folder)
        for key in ("momentum_buffer",) if "momentum_buffer" in entry else ("exp_avg", "exp_avg_sq"):
            value = entry.get(key)
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                shape = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"the value {value!r:.40}"
                raise DamagedCheckpoint(
                    f"{folder}: {key} of {name} in the optimizer has {shape}, not the shape {tuple(parameter.shape)}"
                )
            _check_finite(value, f"{key} of {name} in the optimizer", folder)


def _base(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer inside DeepSpeed's."""
    return getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)


def shards(engine: Engine) -> list[nn.Parameter]:
    """The flat float32 weights of this rank, each of which has a state; empty at stage 0."""
    if engine.stage == 0:
        return []
    if engine.stage == 3:
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in _base(engine).param_groups for parameter in group["params"]]


def _check_finite(tensor: Tensor, name: str, folder: Path) -> None:
    if not is_finite(tensor):
        raise DamagedCheckpoint(f"{folder}: {name} has values that are not finite (NaN or infinite)")
