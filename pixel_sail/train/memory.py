"""Memory of a training step on one GPU, computed without a GPU and without weights.

The table follows the source of DeepSpeed 0.19 for our config (train/engine.py). With P weights, T of them trained, G
GPUs, w = 2 bytes per weight (bf16) or 4 (fp32):

    ZeRO   weights                          gradients                optimizer (master weights and AdamW)
    0      4 P, and 2 P of bf16 copies      4 T                      8 T
    1      w P                              4 T, in bf16 2 T more    12 T / G
    2      w P                              4 T / G                  12 T / G
    3      w P / G                          4 T / G                  12 T / G

Activations are the tensors that autograd keeps for the backward pass, see `activation_bytes`. Not counted: temporary
results, the gradient of the logits, the CUDA context, fragmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import torch

from pixel_sail.config import Config, ExpertConfig, TrainConfig
from pixel_sail.model.axis_attention import head_widths
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.patch_positions import POSITION_VALUES
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.engine import BUCKET_ELEMENTS
from pixel_sail.types import LOGITS_AT_ONCE

Mode = Literal["fp32", "bf16", "autocast"]  # autocast: bf16 on float32 weights, as at stage 0

GIB = 2**30
ALL_REDUCE_ELEMENTS = 500_000_000  # gradients that DeepSpeed copies into one buffer at stage 0
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: weights gathered at one time
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per weight: half a byte, a scale for each 64, a scale of 256 scales
FREE_SHARE, FREE_BYTES = 0.1, 2 * GIB  # left free for what is not counted
EXPERT_WIDTH = 256  # channels of Mask2Former's and SAM 2's features; others may differ, which changes little


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one GPU that persist from step to step."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int


@dataclass(frozen=True)
class Checkpointing:
    """Whether a run uses activation checkpointing, and why."""

    on: bool
    reason: str


@dataclass(frozen=True)
class TokenCounts:
    """The numbers of tokens in one forward pass."""

    all: int
    patches: int
    labels: int


def mode_of(stage: int, precision: str) -> Mode:
    """The numeric mode at a ZeRO stage; `precision`: "bf16" or "fp32"."""
    if precision == "fp32":
        return "fp32"
    return "autocast" if stage == 0 else "bf16"


def state_bytes(
    weights: int,
    groups: Sequence[dict],
    stage: int,
    precision: str,
    gpus: int,
    offload: str = "none",
    in_4_bits: int = 0,
) -> StateBytes:
    """The table above for one GPU.

    `weights`: their number P; `groups`: those of `parameter_groups`, which say what is trained by which optimizer;
    `offload`: "none", "optimizer" or "parameters", as train.offload; `in_4_bits`: number of nf4 weights (stage 0 only).
    """
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    element = 2 if precision == "bf16" else 4
    if stage == 0:
        each = 6 if precision == "bf16" else 4
        weight_bytes = each * (weights - in_4_bits) + round(NF4_BYTES * in_4_bits)
        buffers = 4 * min(trained, ALL_REDUCE_ELEMENTS) if gpus > 1 else 0
        return StateBytes(weight_bytes, 4 * trained, optimizer_bytes(groups), buffers)
    share, bucket = -(-trained // gpus), BUCKET_ELEMENTS["cuda"] * element
    optimizer = 0 if offload != "none" else 4 * share + _adam_bytes(share, len(groups))
    if stage == 1:
        both = 6 if precision == "bf16" and offload == "none" else 4
        return StateBytes(element * weights, both * trained, optimizer, 0)
    gradients = 0 if offload != "none" else 4 * share
    if stage == 2:
        return StateBytes(element * weights, gradients, optimizer, 2 * bucket)
    weight_bytes = 0 if offload == "parameters" else element * -(-weights // gpus)
    return StateBytes(weight_bytes, gradients, optimizer, bucket + element * min(weights, LIVE_PARAMETERS))


def optimizer_bytes(groups: Sequence[dict]) -> int:
    """Exact bytes of the optimizer of `build_optimizer` at stage 0 after its first step.

    AdamW: two float32 moments per weight and a step count per tensor; Muon: one moment per weight.
    """
    total = 0
    for group in groups:
        numbers = sum(parameter.numel() for parameter in group["params"])
        total += 4 * numbers if group["muon"] else _adam_bytes(numbers, len(group["params"]))
    return total


def _adam_bytes(numbers: int, tensors: int) -> int:
    return 8 * numbers + 4 * tensors


def activation_bytes(
    config: PixelSailConfig,
    experts: Sequence[ExpertConfig],
    tokens: TokenCounts,
    mode: Mode,
    checkpointing: bool,
    zero_3: bool = False,
) -> dict[str, int]:
    """Bytes that autograd keeps of one forward pass, by part.

    For decoders like Llama and Qwen2 in transformers, with flash attention. `checkpointing`: only the input of every
    layer is kept, and one layer at a time is run again. `zero_3`: many logits are kept too, in the model's dtype.
    """
    layer = _layer_bytes(config, mode) * tokens.all
    layers = config.text_config.num_hidden_layers
    residual = 2 if mode == "bf16" else 4
    inputs = layers * residual * config.text_config.hidden_size * tokens.all
    of_keys, _ = head_widths(config.text_config, config.architecture)
    positions = 2 * residual * of_keys * tokens.all  # cos and sin, the same for all layers
    return {
        "decoder layers": positions + (inputs + layer if checkpointing else layers * layer),
        "patch embedding": _patch_bytes(config, mode) * tokens.patches,
        "logits": _logit_bytes(config, tokens, mode, zero_3),
        "mask head": _mask_head_bytes(config, experts, mode) * tokens.patches,
    }


def _element(mode: Mode) -> int:
    return 4 if mode == "fp32" else 2


def _norm_bytes(mode: Mode) -> int:
    """Per input value of a norm: its float32 copy (or itself), and the normalized value before the weight."""
    return 4 + (2 if mode == "bf16" else 4)


def _layer_bytes(config: PixelSailConfig, mode: Mode) -> int:
    """Per token, in one layer."""
    text = config.text_config
    hidden, mlp, a = text.hidden_size, text.intermediate_size, _element(mode)
    of_keys, of_values = head_widths(text, config.architecture)
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads or text.num_attention_heads
    # The output of a norm is the input of several linears. It is kept once, but autocast casts it for each of them, and
    # modality twins gather it for each of q, k and v.
    to_qkv = 3 if mode == "autocast" or config.architecture.vision_experts else 1
    to_mlp = 2 if mode == "autocast" else 1
    norms = 2 * _norm_bytes(mode) * hidden + (to_qkv + to_mlp) * a * hidden
    # q, k, v after rotation, the result of the kernel and its reordered copy; gate, silu(gate), up, product
    attention = heads * (of_keys + 2 * of_values) + kv_heads * (of_keys + of_values)
    return norms + a * attention + 4 * heads + 4 * a * mlp


def _patch_bytes(config: PixelSailConfig, mode: Mode) -> int:
    """Per patch: its pixels, and the values between them and its embedding."""
    parts, small = config.architecture, config.architecture.small
    values = 3 * parts.patch_size**2
    if parts.sub_patch_size is not None:
        values += 2 * parts.sub_patch_width * (parts.patch_size // parts.sub_patch_size) ** 2
    if small.stem_widths:
        values *= 2  # the stem reads an image that is assembled from the patches
    if small.patch_positions:
        values += POSITION_VALUES
    for stage, width in enumerate(small.stem_widths or []):
        cells = parts.patch_size // 2 ** (stage + 1)
        values += (4 if stage else 2) * width * cells**2
    return _element(mode) * values


def _logit_bytes(config: PixelSailConfig, tokens: TokenCounts, mode: Mode, zero_3: bool) -> int:
    """The final norm of every token; state and float32 log-probabilities of supervised tokens, of a piece at most."""
    hidden, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
    piece = max(1, LOGITS_AT_ONCE // vocabulary)
    total = _norm_bytes(mode) * hidden * tokens.all + _element(mode) * hidden * tokens.labels
    total += 4 * vocabulary * min(tokens.labels, piece)
    if zero_3 and tokens.labels > piece:
        total += _element(mode) * vocabulary * tokens.labels
    return total


def _mask_head_bytes(config: PixelSailConfig, experts: Sequence[ExpertConfig], mode: Mode) -> int:
    """Per patch of an image with masks, including the features that experts are compared with."""
    a, hidden = _element(mode), config.text_config.hidden_size
    channels = config.architecture.channels(hidden)
    total = a * hidden  # the gathered hidden states
    if hidden > channels[0]:
        total += a * (hidden + channels[0])
    pixels = 1
    for width in channels[1:]:
        pixels *= 4
        # results of the transposed convolution, GELU, depthwise, pointwise (float32 under autocast) and the norm
        total += pixels * width * (12 if mode == "autocast" else 5 * a)
    total += pixels * channels[-1] * a  # the hidden layer of the projector
    features = 8 * EXPERT_WIDTH  # float32: the adapter's output and the expert's features
    for expert in experts:
        if expert.at == "mask_features":
            total += pixels * (a * config.architecture.mask_dim + features)
        else:
            total += a * hidden + features
    if any(expert.at == "mask_features" for expert in experts):
        total += pixels * a * config.architecture.mask_dim
    return total


def decide_checkpointing(
    config: Config, model: PixelSail, groups: Sequence[dict], gpus: int, gpu_bytes: int | None
) -> Checkpointing:
    """What train.activation_checkpointing means for a run on `gpus` GPUs of `gpu_bytes` each (None: on CPUs).

    `model` and `groups` (parameter_groups) are those of the run, with its adapters. Auto: off where all that is counted
    fits without it, with FREE_SHARE and FREE_BYTES to spare.
    """
    train, wanted = config.train, config.train.activation_checkpointing
    if wanted != "auto":
        return Checkpointing(wanted, f"train.activation_checkpointing={str(wanted).lower()}")
    if gpu_bytes is None:
        return Checkpointing(False, "on a CPU, auto is off")
    precision = "fp32" if train.precision == "fp32" else "bf16"
    packed = sum(p.numel() for p in model.parameters() if p.dtype == torch.uint8)  # two weights each
    weights = sum(p.numel() for p in model.parameters()) + packed
    states = state_bytes(weights, groups, train.zero_stage, precision, gpus, train.offload, 2 * packed)
    tokens = forward_tokens(train, config.data.max_length, gpus)
    mode, in_zero_3 = mode_of(train.zero_stage, precision), train.zero_stage == 3
    without, with_it = (
        sum(astuple(states)) + sum(activation_bytes(model.config, config.experts, tokens, mode, c, in_zero_3).values())
        for c in (False, True)
    )
    on = without * (1 + FREE_SHARE) + FREE_BYTES > gpu_bytes
    needs = f"a step needs about {without / GIB:.1f} GiB without it and {with_it / GIB:.1f} with it"
    return Checkpointing(on, f"{needs}, of {gpu_bytes / GIB:.1f} GiB; {FREE_SHARE:.0%} and 2 GiB stay free")


def forward_tokens(train: TrainConfig, max_length: int, gpus: int) -> TokenCounts:
    """The largest forward pass of a run, with high shares of patches (95 %) and of labels (5 %)."""
    share = -(-train.batch_size // gpus) * max_length  # tokens of one process in a step
    tokens = min(share, max(train.micro_batch_tokens, max_length))
    return TokenCounts(tokens, round(0.95 * tokens), round(0.05 * tokens))
