"""Where a model runs and with which numbers: what a user writes after --device and --precision, checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pixel_sail.errors import UserError

PRECISIONS = ("auto", "bf16", "fp32")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of Linux for CPUs that multiply bf16 in hardware; the last: ARM


def choose_device(name: str = "auto") -> torch.device:
    """The device of auto | cpu | cuda[:n]; auto is the first GPU if there is one.

    Raises UserError for another name, and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"there is no device {name!r}: give auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no GPU here"
        raise UserError(f"--device {name}: {built} (nvidia-smi shows what the driver sees); give --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        names = ", ".join(f"cuda:{index}" for index in range(count))
        raise UserError(f"--device {name}: there is no such GPU; there are {names}")
    return device


def device_of_map(device_map: str | int | torch.device | Mapping[str, Any] | None) -> torch.device:
    """The device that transformers' `device_map` names; None is the CPU, "auto" the first GPU if there is one.

    Raises UserError for more than one device: image, text and masks of a packed batch share tensors in every layer, and
    a model of 7 billion parameters fits on one GPU in bf16.
    """
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1 or "disk" in devices:
            raise UserError(
                f"device_map names {len(devices)} places; the model runs on one device: give 'auto', 'cpu' or 'cuda:N'"
            )
        (device_map,) = devices
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, int):
        return choose_device(f"cuda:{device_map}")
    if device_map in ("balanced", "balanced_low_0", "sequential"):
        raise UserError(f"device_map={device_map!r} spreads layers; the model runs on one device: give 'auto'")
    return choose_device(str(device_map))


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of the weights: of auto (bf16 on a GPU) | bf16 | fp32. Raises UserError for another name."""
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision {precision!r}: give {', '.join(PRECISIONS)}")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and device.type == "cuda") else torch.float32


@cache
def has_bf16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bf16 in hardware. Elsewhere torch's bf16 products take many times as long as float32.

    False where Linux does not say it.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return any(BF16_FLAGS & set(names) for names in flags) and torch.backends.mkldnn.is_available()
