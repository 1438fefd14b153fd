"""The distributed engine: builds DeepSpeed from our Config and runs the parts of a training step on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixel_sail.config import Config, ConfigError, TrainConfig
from pixel_sail.losses import compute_losses, distillation_losses, loss_counts
from pixel_sail.train import distributed
from pixel_sail.train.copies import Copies
from pixel_sail.train.distillation import Distillation, build_adapters, needs_mask_features, student_features
from pixel_sail.train.optim import build_optimizer, parameter_groups, scoring_parameters, set_lr
from pixel_sail.train.zero3 import partition, wrap_leaves
from pixel_sail.types import Batch
from pixel_sail.weights.merge import dequantized, merged

BUCKET_ELEMENTS = {"cuda": 50_000_000, "cpu": 5_000_000}  # 100 MB in bf16: large enough for full network speed


class LossModule(nn.Module):
    """Model, adapters and losses in one module, because DeepSpeed hooks the tensors that the wrapped module returns.

    It returns the loss of a micro-batch and the loss sums, in the order of `loss_counts`.
    """

    def __init__(self, model: nn.Module, adapters: nn.ModuleDict, config: Config):
        super().__init__()
        self.model = model
        self.adapters = adapters
        self.loss = config.loss
        self.experts = config.experts
        self.with_features = needs_mask_features(config.experts)
        self.names = list(loss_counts(config))

    def forward(self, batch: Batch, scales: dict[str, float]) -> tuple[Tensor, Tensor]:
        """`scales[name]` multiplies the sum of loss `name`: its weight over its count in the whole optimizer step."""
        output = self.model(batch, self.with_features)
        students = student_features(self.adapters, self.experts, output, batch)
        with torch.autocast(batch.input_ids.device.type, enabled=False):  # losses are float32 in every precision
            sums = compute_losses(output, batch, self.loss) | distillation_losses(students, batch, self.experts)
            loss = sum(scales[name] * sums[name].float() for name in self.names)
        return loss, torch.stack([sums[name].detach().float() for name in self.names])


class Engine:
    """Trains a model, and the adapters of the experts in `distillation`, with DeepSpeed.

    `leaf_modules`: classes whose submodules run a different number of times on different ranks; ZeRO-3 gathers such a
    module as a whole (zero3.py).
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        leaf_modules: Sequence[type[nn.Module]] = (),
        distillation: Distillation | None = None,
    ):
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.WARNING)
        train = config.train
        self.model = model
        self.stage = train.zero_stage
        self.device = distributed.device()
        self.copies = Copies(self.device) if self.device.type == "cuda" else None
        self.world_size = distributed.world_size()
        self.clip_norm = train.clip_norm
        self.lora = train.lora
        self.distillation = distillation or Distillation()
        hidden, mask_dim = model.config.text_config.hidden_size, model.config.architecture.mask_dim
        adapters = build_adapters(config, self.distillation.widths, hidden, mask_dim)
        optimizer = build_optimizer(parameter_groups(model, train) + parameter_groups(adapters, train), train)
        self.parameters = dict(model.named_parameters())  # under their own names, before leaves are wrapped
        if self.stage == 3:
            wrap_leaves(model, leaf_modules)
        wrapped, values = LossModule(model, adapters, config), deepspeed_config(config, self.world_size)
        if self.stage == 3:
            partition(wrapped, values, self.device)
        self.deepspeed, *_ = deepspeed.initialize(model=wrapped, optimizer=optimizer, config=values)
        if self.stage == 0 and self.world_size == 1:
            # There is nothing to reduce, but every gradient would be copied twice.
            self.deepspeed.enable_backward_allreduce = False

    def forward_backward(self, batch: Batch, scales: dict[str, float], last: bool) -> Tensor:
        """Add the gradients of one micro-batch; `last` marks the last one of the optimizer step.

        `scales`: see LossModule. Returns the loss sums, detached, in the order of `loss_counts`.
        """
        batch = self.distillation.add_expert_features(batch.to(self.device))
        self.deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks what must be a sum: the counts in `scales` are global already.
        loss, sums = self.deepspeed(batch, {name: scale * self.world_size for name, scale in scales.items()})
        self.deepspeed.backward(loss)
        return sums

    def clip(self) -> Tensor | None:
        """At stage 0: clip the gradients and return their norm before that, () on the device. Nobody waits for it.

        From stage 1 on None: DeepSpeed clips in `step`, and the score head counts in the norm. At stage 0 it would not
        return the norm.
        """
        if self.stage > 0:
            return None
        norm_limit = self.clip_norm if self.clip_norm > 0 else float("inf")
        scoring = scoring_parameters(self.model)  # clipped by themselves: they change nothing else
        of_head = nn.utils.clip_grad_norm_(scoring.values(), norm_limit)
        rest = [p for p in self.deepspeed.module.parameters() if p.grad is not None and id(p) not in scoring]
        return nn.utils.clip_grad_norm_(rest, norm_limit) if rest else of_head

    def step(self, lr: float) -> float | Tensor | None:
        """Update the weights with learning rate `lr` and clear the gradients, which `clip` has seen.

        From stage 1 on: clips first and returns the norm before that, () on the device, which nobody has waited for. If
        it is not finite, nothing is updated and it is a float: DeepSpeed has looked.
        """
        set_lr(self.deepspeed.optimizer, lr)
        self.deepspeed.step()
        return None if self.stage == 0 else self.deepspeed.get_global_grad_norm()

    def full_state_dict(self) -> dict[str, Tensor]:
        """Weights of `model`, float32 on the CPU, under the names of an export. All ranks must call it.

        They are the master weights if there are any. Adapters are merged, tied weights appear once. On ranks other than
        0 the dict is empty.
        """
        persistent = self.model.state_dict().keys()  # not every buffer is saved
        state = {name: buffer.detach().cpu() for name, buffer in self.model.named_buffers() if name in persistent}
        for name, parameter in self.parameters.items():
            full = self._full_parameter(parameter)
            if distributed.rank() == 0:
                state[name] = full.detach().float().cpu().clone()
        return merged(state, self.lora) if distributed.rank() == 0 else {}

    def _full_parameter(self, parameter: nn.Parameter) -> Tensor:
        import deepspeed

        if parameter.dtype == torch.uint8:
            return dequantized(parameter)
        if self.stage > 0 and parameter.requires_grad:
            return deepspeed.utils.safe_get_full_fp32_param(parameter)
        if self.stage < 3:
            return parameter
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()


def resolve_precision(train: TrainConfig, device_type: str | None = None) -> str:
    """Return "bf16" or "fp32"; auto is bf16 on a GPU ("cuda"), fp32 on a CPU. `device_type` None: of this process."""
    if train.precision != "auto":
        return train.precision
    return "bf16" if (device_type or distributed.device().type) == "cuda" else "fp32"


def has_bf16_weights(train: TrainConfig) -> bool:
    """Whether the weights of a run are bf16 (with float32 master weights); else they are float32."""
    return resolve_precision(train) == "bf16" and train.zero_stage > 0


def check_distribution(train: TrainConfig, world_size: int) -> None:
    """Raise ConfigError for an offload that the ZeRO stage does not support, and for more processes than samples."""
    if train.offload == "optimizer" and train.zero_stage == 0:
        raise ConfigError("train.offload=optimizer needs train.zero_stage=1, 2 or 3")
    if train.offload == "parameters" and train.zero_stage != 3:
        raise ConfigError("train.offload=parameters needs train.zero_stage=3")
    if train.batch_size < world_size:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is less than one sample for each of {world_size} processes"
        )


def deepspeed_config(config: Config, world_size: int, device_type: str | None = None) -> dict[str, Any]:
    """DeepSpeed's JSON for our config. `device_type`: "cuda" or "cpu"; None: that of this process.

    We accumulate gradients ourselves (`forward_backward(last=...)`), so DeepSpeed sees one micro-batch per step.
    bf16 at stage 0 is torch autocast on float32 weights; from stage 1 on the weights are bf16 with float32 master
    weights and float32 gradient accumulation. Raises ConfigError as `check_distribution` does.
    """
    train = config.train
    stage = train.zero_stage
    check_distribution(train, world_size)
    device_type = device_type or distributed.device().type
    bf16 = resolve_precision(train, device_type) == "bf16"
    values: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip_norm if stage > 0 else 0.0,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU
        "zero_optimization": _zero_config(train, device_type),
    }
    if bf16 and stage == 0:
        values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if bf16 and stage > 0:
        values["bf16"] = {"enabled": True}
        values["data_types"] = {"grad_accum_dtype": "fp32"}
    return values


def _zero_config(train: TrainConfig, device_type: str) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.zero_stage == 0:
        return zero
    bucket = BUCKET_ELEMENTS[device_type]
    zero |= {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": train.zero_stage >= 2 and device_type == "cuda",
        "contiguous_gradients": True,
    }
    offload = {"device": "cpu", "pin_memory": device_type == "cuda"}
    if train.offload != "none":
        zero["offload_optimizer"] = offload
    if train.offload == "parameters":
        zero["offload_param"] = offload
    if train.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket
    return zero
