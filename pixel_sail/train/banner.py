"""What a run says before its first step: the model, the data, the machine, and how it computes."""

from __future__ import annotations

import torch

from pixel_sail.config import Config
from pixel_sail.data.mixture import Mixture
from pixel_sail.model.attention import choose_kernel
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train import distributed
from pixel_sail.train.engine import resolve_precision


def banner(config: Config, model: PixelSail, mixture: Mixture) -> list[str]:
    """Lines for the console. `model`: as it is trained, with adapters, before DeepSpeed takes it."""
    return [_of_model(model), _of_data(config, mixture), _of_machine(config, model)]


def _of_model(model: PixelSail) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = model.config.architecture
    return (
        f"model: {_millions(parameters)} parameters, {_millions(trained)} trained; patches of {shape.patch_size} px, "
        f"images {shape.size_rule}, masks at stride {shape.mask_stride}"
    )


def _of_data(config: Config, mixture: Mixture) -> str:
    train, samples = config.train, sum(map(len, mixture.sources))
    return (
        f"data: {samples:,} samples of {len(mixture.sources)} sources; {train.steps:,} steps of {train.batch_size}, in "
        f"passes of up to {train.micro_batch_tokens:,} tokens a process"
    )


def _of_machine(config: Config, model: PixelSail) -> str:
    device, precision = distributed.device(), resolve_precision(config.train)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads each"
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    kernel = choose_kernel(model.attention_kernel, device, dtype)
    return (
        f"machine: {distributed.world_size()} process(es) ({name}), {precision}, attention by {kernel}, ZeRO stage "
        f"{config.train.zero_stage}"
    )


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f} million"
