"""Clicks that refine a mask: late tokens, each an echo of the patch that it is on.

A click is a token of the text, CLICK, in a question behind the mask that it is about. It has the positions of its patch
and the embedding of the patch beside that of the token, so that it reads the image as its patch does, and what was said
before besides. A linear of the sign of the click and of its place in the patch is added. The image stays as it was
read: its keys and values, and the features of the mask head, know nothing of clicks. What a click changes is the state
of the [SEG] that follows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_sail.types import CLICK_VALUES


class ClickEmbedding(nn.Module):
    """What is added to the token of a click: its embedded patch, and a linear of its CLICK_VALUES values.

    The linear starts at 0, without random numbers: all other weights of a seed are the same with and without clicks.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, CLICK_VALUES))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, patches: Tensor, values: Tensor) -> Tensor:
        """(n, D) from the embedded patches of the clicks (n, D) and their values (n, CLICK_VALUES) float32."""
        return patches + F.linear(values.to(self.weight.dtype), self.weight)
