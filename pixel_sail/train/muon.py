"""Muon for matrices and convolution kernels, AdamW for everything else, as one optimizer with one state.

Muon: K. Jordan et al. 2024, kellerjordan.github.io/posts/muon; the size of its steps: J. Liu et al., arXiv 2502.16982.
torch.optim.Muon updates one matrix after another and no kernels. Here all matrices of one shape are orthogonalized
together, which takes less than half the time for many small matrices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pixel_sail.devices import has_bf16_units

MOMENTUM = 0.95
STEPS = 5  # of the Newton-Schulz iteration
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of its quintic


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether Muon can update a parameter: a matrix, or a convolution kernel seen as one (first axis, all others).

    Not kernels of one input channel (depthwise), whose rows belong to separate channels.
    """
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[1] > 1)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups with `muon`, torch's AdamW for the others. Every group has `lr` and `weight_decay`.

    Muon's steps are as large as AdamW's usually are (0.2 root mean square), so that one learning rate serves both.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, defaults={})
        self.betas = betas
        self._share_with_adamw()

    def _share_with_adamw(self) -> None:
        """Let AdamW work on the groups and the state of this optimizer."""
        adamw = [group for group in self.param_groups if not group["muon"]]
        self._adamw = torch.optim.AdamW(adamw, lr=0.0, betas=self.betas, fused=True)
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)
        self._adamw.step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self._momentum(parameter) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
            updates = orthogonalize(torch.stack(ahead).flatten(2)).to(gradients[0].dtype)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            size = 0.2 * math.sqrt(max(updates.shape[1:]))
            torch._foreach_add_(parameters, [u.view(shape) for u in updates], alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # replaces groups and state
        self._share_with_adamw()


def orthogonalize(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> the same shape: U S V' of each becomes U S' V', singular values near 1.

    In bfloat16, but in float32 on a CPU without bf16 units, where bf16 takes 4 (AVX-512) to 14 times (AVX2) as long.
    "Near" is 0.7 to 1.2: the coefficients of the iteration are chosen for speed, and training does not need more.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    dtype = torch.bfloat16 if matrices.device.type != "cpu" or has_bf16_units() else torch.float32
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        quintic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, quintic, x, beta=a)
    return x if wide else x.mT
