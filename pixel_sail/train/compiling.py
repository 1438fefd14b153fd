"""torch.compile for the decoder layers and mask blocks of a run: where it can be, and how long it took."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from pixel_sail.config import TrainConfig
from pixel_sail.errors import UserError
from pixel_sail.model.attention import choose_kernel
from pixel_sail.model.pixel_sail import PixelSail

BACKEND = "inductor"
PHASES = ("entire_frame_compile", "entire_backward_compile")  # of torch's own clock, which holds all others


def compile_layers(model: PixelSail, train: TrainConfig, device: torch.device, bf16: bool) -> str | None:
    """Compile decoder layers and mask blocks if train.compile says so and they can be. Returns a line for the log.

    The first forward and backward passes compile. `bf16`: what the run computes in.
    """
    if train.compile is False or (train.compile == "auto" and device.type == "cpu"):
        return None
    reason = why_not(model, train, device, bf16)
    if reason is not None:
        return f"decoder layers and mask blocks are not compiled: {reason}"
    if train.compile == "auto":
        torch._dynamo.config.suppress_errors = True  # what does not compile runs as it is, with a warning
    model.compile_layers(backend=BACKEND)
    return "decoder layers and mask blocks are compiled during the first step (train.compile=false: not)"


def why_not(model: PixelSail, train: TrainConfig, device: torch.device, bf16: bool) -> str | None:
    """Why the layers of this run cannot be compiled; None if they can."""
    if train.zero_stage == 3:
        return "ZeRO-3 gathers the weights inside of each layer, which cuts its graph into pieces"
    if train.lora is not None and train.lora.quantize != "none":
        return "4-bit weights were never tried"
    try:
        kernel = choose_kernel(model.attention_kernel, device, torch.bfloat16 if bf16 else torch.float32)
    except UserError as error:
        return str(error)
    if kernel != "flash":
        return f"attention runs as {kernel}, which would be compiled again for each batch; flash needs bf16 on a GPU"
    return _missing_tool()


def _missing_tool() -> str | None:
    """What Triton, which compiles for GPUs, lacks on this machine."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "Triton needs a C compiler (gcc)"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"Triton needs Python's headers (python3-dev), and {headers} has none"
    return None


def compile_seconds() -> float:
    """How long this process has compiled."""
    from torch._dynamo.utils import cumulative_time_spent_ns

    return sum(cumulative_time_spent_ns.get(phase, 0) for phase in PHASES) / 1e9
