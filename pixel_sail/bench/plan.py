"""What a run needs, predicted before it starts (`tools/train.py CONFIG --plan`): parameters, memory, DeepSpeed's JSON.

The model is built on torch's meta device: its weights have shapes and no values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError, TrainConfig
from pixel_sail.model.configuration import PixelSailConfig, load_own_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import GROUNDING_TOKENS, IMAGE_TOKENS, add_special_tokens
from pixel_sail.train.distillation import build_adapters
from pixel_sail.train.engine import deepspeed_config, resolve_precision
from pixel_sail.train.finetune import prepare_finetuning
from pixel_sail.train.memory import (
    EXPERT_WIDTH,
    GIB,
    TokenCounts,
    activation_bytes,
    decide_checkpointing,
    forward_tokens,
    mode_of,
    state_bytes,
)
from pixel_sail.train.optim import DECODER_PREFIX, parameter_groups
from pixel_sail.weights.convert.language_model import read_base
from pixel_sail.weights.convert.new_parts import bare_config
from pixel_sail.weights.convert.scratch import scratch_decoder, train_tokenizer
from pixel_sail.weights.start import model_folder, with_start

STAGES = (0, 1, 2, 3)
ADDED_TOKENS = len(IMAGE_TOKENS) + len(GROUNDING_TOKENS)


def plan(config: Config, gpus: int, gpu_gib: float = 80.0) -> str:
    """The report that --plan prints, for GPUs of `gpu_gib` each.

    Raises ConfigError, WeightsError for a missing base.
    """
    if not 0 < gpu_gib < 1e6:
        raise ConfigError(f"--gpu-memory-gib {gpu_gib}: give the memory of one GPU, for example 80")
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: give the number of GPUs of all machines together, at least 1")
    config = with_start(config)
    deepspeed_json, planned = deepspeed_config(config, gpus, "cuda"), planned_model(config)
    lines = [f"plan for {config.run.dir} on {gpus} GPU{'s' if gpus > 1 else ''}", ""]
    lines += [*_parameter_lines(planned), "", *_memory_lines(config, planned, gpus, gpu_gib), ""]
    lines += [*planned.notes, "DeepSpeed's config:", json.dumps(deepspeed_json, indent=2)]
    return "\n".join(lines)


@dataclass(frozen=True)
class PlannedModel:
    """The model that `build_model` and `prepare_finetuning` would build, on the meta device."""

    model: PixelSail
    adapters: nn.ModuleDict  # of the experts
    notes: list[str]  # assumptions about what is not known yet


def planned_model(config: Config) -> PlannedModel:
    """Built from config.json and the tokenizer alone. `config` must come from `with_start`."""
    model_config, notes = _model_config(config)
    with torch.device("meta"):
        model = PixelSail(model_config)
        widths = {expert.name: EXPERT_WIDTH for expert in config.experts}
        adapters = build_adapters(
            config, widths, model_config.text_config.hidden_size, model_config.architecture.mask_dim
        )
        prepare_finetuning(model, _bytes_tokenizer(), _without_quantization(config))
    return PlannedModel(model, adapters, notes)


def _model_config(config: Config) -> tuple[PixelSailConfig, list[str]]:
    """The model's config, and the assumptions in it."""
    section = config.model
    if config.train.init_from is not None:
        start = load_own_config(model_folder(config.train.init_from))
        start.architecture = config.architecture  # as in build_model
        return start, []
    if section.scratch is not None:
        text_config = scratch_decoder(section.scratch, _bytes_tokenizer())
        text_config.vocab_size = section.scratch.vocab_size + ADDED_TOKENS
        note = f"the tokenizer is not trained yet: {text_config.vocab_size:,} tokens, the most it can have, are assumed"
        return bare_config(text_config, config.architecture), [note]
    text_config, tokenizer = read_base(section.base)
    if tokenizer is None:
        text_config.vocab_size += ADDED_TOKENS
        note = f"{section.base} has no tokenizer here: {ADDED_TOKENS} added rows of embeddings, the most, are assumed"
        return bare_config(text_config, config.architecture), [note]
    add_special_tokens(tokenizer)
    # A base may have more rows than tokens, which our special tokens fill first.
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    return bare_config(text_config, config.architecture), []


def _bytes_tokenizer() -> PreTrainedTokenizerBase:
    """A stand-in for the run's tokenizer where only the special tokens matter."""
    tokenizer = train_tokenizer([], 0)
    add_special_tokens(tokenizer)
    return tokenizer


def _without_quantization(config: Config) -> Config:
    """The same config without 4-bit weights, which need a GPU; `_quantized_weights` counts them."""
    if config.train.lora is None:
        return config
    lora = config.train.lora.model_copy(update={"quantize": "none"})
    return config.model_copy(update={"train": config.train.model_copy(update={"lora": lora})})


def count_parameters(planned: PlannedModel) -> dict[str, tuple[int, int]]:
    """Part -> (number of its parameters, number of its trained parameters). Tied parameters count once."""
    decoder = planned.model.language_model
    tables = (decoder.get_input_embeddings(), decoder.get_output_embeddings())
    embeddings = {id(parameter) for table in tables for parameter in table.parameters()}
    counts: dict[str, tuple[int, int]] = {}
    parameters = [*planned.model.named_parameters()]
    parameters += [(f"adapters.{name}", parameter) for name, parameter in planned.adapters.named_parameters()]
    for name, parameter in parameters:
        part = _part(name, id(parameter) in embeddings)
        total, trained = counts.get(part, (0, 0))
        number = parameter.numel()
        counts[part] = (total + number, trained + number * parameter.requires_grad)
    return counts


def _part(name: str, is_embedding: bool) -> str:
    if is_embedding:
        return "token embeddings and head"
    if name.startswith(DECODER_PREFIX):
        return "LoRA adapters" if "lora_" in name else "decoder layers"
    parts = {"fusion": "patches and prompts", "mask_head": "mask head", "score_head": "score head"}
    return parts.get(name.split(".")[0], "distillation adapters")


def _parameter_lines(planned: PlannedModel) -> list[str]:
    counts = count_parameters(planned)
    totals = tuple(sum(column) for column in zip(*counts.values(), strict=True))
    rows = [*counts.items(), ("all", totals)]
    return [f"{'parameters':28}{'all':>18}{'trained':>18}"] + [f"  {n:26}{a:>18,}{t:>18,}" for n, (a, t) in rows]


def _memory_lines(config: Config, planned: PlannedModel, gpus: int, gpu_gib: float) -> list[str]:
    train, precision = config.train, resolve_precision(config.train, "cuda")
    tokens = forward_tokens(train, config.data.max_length, gpus)
    weights = sum(total for total, _ in count_parameters(planned).values())
    groups = parameter_groups(planned.model, train) + parameter_groups(planned.adapters, train)
    in_4_bits = _quantized_weights(planned.model) if train.lora is not None and train.lora.quantize == "nf4" else 0
    lines = [
        "GiB on each GPU; activations and sums: without | with activation checkpointing; *: the stage of the config",
        f"{'':10}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'buffers':>9}{'activations':>18}{'sum':>18}",
    ]
    for stage in (0,) if in_4_bits else STAGES:
        offload = _offload(train, stage)
        states = astuple(state_bytes(weights, groups, stage, precision, gpus, offload, in_4_bits))
        mode = mode_of(stage, precision)
        activations = [
            sum(
                activation_bytes(
                    planned.model.config, config.experts, tokens, mode, checkpointing, zero_3=stage == 3
                ).values()
            )
            for checkpointing in (False, True)
        ]
        sums = [sum(states) + total for total in activations]
        numbers = "".join(f"{_gib(value):>{width}}" for value, width in zip(states, (9, 11, 11, 9), strict=True))
        mark = "*" if stage == train.zero_stage else " "
        lines.append(f"ZeRO {stage} {mark}  {numbers}{_pair(activations):>18}{_pair(sums):>18}")
    decision = decide_checkpointing(config, planned.model, groups, gpus, round(gpu_gib * GIB))
    lines.append(f"activation checkpointing is {'on' if decision.on else 'off'}: {decision.reason}")
    return lines + _activation_lines(config, planned.model.config, tokens, decision.on)


def _activation_lines(
    config: Config, model_config: PixelSailConfig, tokens: TokenCounts, checkpointing: bool
) -> list[str]:
    """The activations of the config's own stage and checkpointing by part, and what is not counted."""
    train = config.train
    mode = mode_of(train.zero_stage, resolve_precision(train, "cuda"))
    parts = activation_bytes(model_config, config.experts, tokens, mode, checkpointing, zero_3=train.zero_stage == 3)
    kept = "with" if checkpointing else "without"
    lines = [
        f"one forward pass: {tokens.all:,} tokens, with {tokens.patches:,} patches and {tokens.labels:,} labels",
        f"its activations {kept} checkpointing: {', '.join(f'{n} {_gib(b)}' for n, b in parts.items())}",
        "formulas and their limits: docs/recipes.md; keep about 10 % and 2 GiB free",
    ]
    if online := [expert.name for expert in config.experts if expert.cache is None]:
        lines.append(f"not counted: the experts that run online ({', '.join(online)})")
    if train.offload != "none":
        lines.append(f"train.offload={train.offload}: memory of the CPU is not counted")
    return lines


def _quantized_weights(model: PixelSail) -> int:
    parameters = model.named_parameters()
    return sum(parameter.numel() for name, parameter in parameters if name.endswith(".base_layer.weight"))


def _offload(train: TrainConfig, stage: int) -> str:
    """train.offload if this stage supports it, else "none"."""
    possible = {0: (), 3: ("optimizer", "parameters")}.get(stage, ("optimizer",))
    return train.offload if train.offload in possible else "none"


def _gib(number: float) -> str:
    return f"{number / GIB:.2f}"


def _pair(numbers: Sequence[float]) -> str:
    return " | ".join(_gib(number) for number in numbers)
