"""How good a mask is, and whether there is anything to mask: two small perceptrons beside the mask head.

The first estimates the IoU of a mask with the truth, as the IoU heads of SAM (arXiv 2304.02643) do, from the state of
its [SEG] and from statistics of its logits. The second estimates presence, the probability that a question is answered
with a mask, from the state of the last token before the answer: whether what a segmentation request names is there.
Nothing flows back from them: with or without them, a model learns the same masks and the same words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 64  # width between the two layers
STATISTICS = 6  # of the logits of a mask
LARGEST = 8.0  # statistics and the first estimate stay within this


class ScoreHead(nn.Module):
    """Two logits: of the IoU of each mask, and of the presence in each question."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mask = Perceptron(hidden_size + STATISTICS)
        self.presence = Perceptron(hidden_size)

    def forward(self, mask_logits: Sequence[Tensor], seg_states: Tensor, asked_states: Tensor) -> tuple[Tensor, Tensor]:
        """(sum K,) and (A,) float32, from the masks (K, h', w') of each image, their states (sum K, D) and (A, D).

        Both perceptrons run for any K and A, 0 included: all ranks use all weights.
        """
        with torch.no_grad():
            statistics = mask_statistics([logits for logits in mask_logits if len(logits)], seg_states)
        states = torch.cat([_normalized(seg_states), statistics], dim=1)
        return statistics[:, 0] + self.mask(states), self.presence(_normalized(asked_states))


class Perceptron(nn.Module):
    """(n, width) -> (n,) float32: one hidden layer. Its output is 0 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(HIDDEN, width))
        self.bias = nn.Parameter(torch.empty(HIDDEN))
        self.out_weight = nn.Parameter(torch.empty(1, HIDDEN))
        self.out_bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Leaves torch's random numbers as they were, so that everything else of a seed is the same without it."""
        with torch.random.fork_rng(devices=[]):
            nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        for parameter in (self.bias, self.out_weight, self.out_bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x.to(self.weight.dtype), self.weight, self.bias))
        return F.linear(hidden, self.out_weight, self.out_bias)[:, 0].float()


def mask_statistics(mask_logits: Sequence[Tensor], like: Tensor) -> Tensor:
    """(sum K, STATISTICS) float32 of masks (K, h', w'), K > 0; on the device of `like` if there are none.

    The first is the logit of the IoU that a mask has with the truth if its own probabilities are right: the sum of the
    probabilities in it, over its pixels and the probabilities beside it. Then its stability (SAM): the share of the
    pixels with a logit above -1 that have one above 1; its area, its soft area (logarithms); the mean of |logit| / 4
    of all pixels; and the mean probability in it.
    """
    if not mask_logits:
        return torch.empty(0, STATISTICS, device=like.device)
    rows: list[Tensor | None] = [None] * len(mask_logits)
    for group in _same_size(mask_logits):
        of_group = _statistics(torch.cat([mask_logits[i] for i in group]).float().flatten(1))
        for i, part in zip(group, of_group.split([len(mask_logits[i]) for i in group]), strict=True):
            rows[i] = part
    return torch.cat(rows)


def _statistics(logits: Tensor) -> Tensor:
    """(K, STATISTICS) of the logits (K, pixels) of masks of one size."""
    pixels, inside = logits.shape[1], logits > 0
    probabilities = logits.sigmoid()
    area, soft_area = inside.sum(1), probabilities.sum(1)
    right = (probabilities * inside).sum(1)
    expected = (right / (area + soft_area - right).clamp(min=1e-6)).logit(eps=1e-3)  # within 7
    stable, possible = (logits > 1).sum(1), (logits > -1).sum(1)
    columns = (
        expected,
        (stable + 1) / (possible + 1),
        ((area + 1) / pixels).log(),
        ((soft_area + 1) / pixels).log(),
        logits.abs().mean(1) / 4,
        right / area.clamp(min=1),
    )
    return torch.stack(columns, dim=1).clamp(-LARGEST, LARGEST)


def _normalized(states: Tensor) -> Tensor:
    """States (n, D) as float32 of mean 0 and variance 1."""
    return F.layer_norm(states.float(), states.shape[-1:])


def _same_size(mask_logits: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[torch.Size, list[int]] = {}
    for i, logits in enumerate(mask_logits):
        groups.setdefault(logits.shape[1:], []).append(i)
    return list(groups.values())
