"""Where the weights of a model go from their files, which are mapped into memory: pages that processes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Place:
    """A device, and the dtype of weights there. `later`: who loads leaves them in their files, and others move them."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    later: bool = False

    def put(self, network: nn.Module) -> None:
        """Move a network, one weight after the other, so that the host has copies of one at a time.

        Buffers keep their dtype. A weight that is there already, in its dtype, is not copied: on a CPU it stays mapped
        until it is written to.
        """
        for parameter in network.parameters():
            if parameter.is_floating_point():  # weights in 4 bits are bytes
                parameter.data = parameter.data.to(self.device).to(self.dtype)
        network.to(self.device)


ON_CPU = Place()


def stored_dtype(dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype in which weights are not copied: that of all in the files, float32 if they have several, or float64."""
    floats = {dtype for dtype in dtypes.values() if dtype.is_floating_point}
    return floats.pop() if len(floats) == 1 and torch.float64 not in floats else torch.float32


def has_rounded_buffers(network: nn.Module) -> bool:
    """Whether a network has buffers that are not exact, because it was built in another dtype than float32."""
    return any(buffer.is_floating_point() and buffer.dtype != torch.float32 for buffer in network.buffers())
