"""Weights in files of torch.save: pytorch_model.bin of releases, iter_N.pth of mmengine, DeepSpeed's model_states.

They are as safetensors files here: names, shapes and types without reading a value, tensors one at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixel_sail.errors import WeightsError
from pixel_sail.folders.torch_files import read_torch_file

# Where a training checkpoint has its weights, beside the optimizer and the log: mmengine and Lightning, DeepSpeed.
SECTIONS = ("state_dict", "module")
# Old programs saved them: computed anew from config.json.
_COMPUTED = ".rotary_emb.inv_freq"


class Inert:
    """Stands for what a training checkpoint has beside its weights. It takes anything, keeps nothing, does nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


_ARRAYS = [f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")]
# What may be named beside the weights, and becomes an Inert: mmengine's log, which is in each of its checkpoints, with
# its arrays and with methods that it names by getattr; and what DeepSpeed keeps of its settings.
_BESIDE = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "_codecs.encode",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32")),
    *_ARRAYS,
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def read_pickled(file: Path) -> dict[str, Tensor]:
    """The weights of a file by name, mapped into memory: values are read where they are used.

    Raises WeightsError for what is no such file, is damaged, would run code, or holds other things than plain tensors.
    """
    values = read_torch_file(file, [(Inert, name) for name in _BESIDE])
    section = next((name for name in SECTIONS if isinstance(values, dict) and isinstance(values.get(name), dict)), None)
    weights = values[section] if section else values
    if not isinstance(weights, dict) or not weights:
        raise WeightsError(f"{file} holds no weights by name, but a {type(weights).__name__}")
    named = {name: tensor for name, tensor in weights.items() if not str(name).endswith(_COMPUTED)}
    for name, tensor in named.items():
        if problem := _problem(name, tensor):
            raise WeightsError(f"{file}: {str(name)[:200]} {problem}")
    return named


def _problem(name: Any, tensor: Any) -> str | None:
    if not isinstance(name, str) or type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}, no weight: this is no file of weights alone, nor a checkpoint with them"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is sparse or quantized; give plain weights"
    # A view with strides of 0 could claim any size.
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"claims {tuple(tensor.shape)} values of {tensor.dtype}, more than the file has for it"
    return None
