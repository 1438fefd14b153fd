"""Pooled regions, the plain baseline: the mean of a region's embedded patches is added where the text names it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixel_sail.tokens import MAX_PROMPTS
from pixel_sail.types import Batch


def pool_regions(embedded_patches: Tensor, batch: Batch) -> Tensor:
    """The mean of the patches (sum N, D) of each sequence and <PromptK>: (B, 15, D), 0 where no region is drawn."""
    patches = [sum(h * w for h, w in grids) for grids in batch.grids_by_sequence]
    sequences = _numbered(patches, batch.prompt_ids.device)  # of each patch
    regions = (sequences * MAX_PROMPTS + batch.prompt_ids)[batch.prompted]
    slots, width = len(patches) * MAX_PROMPTS, embedded_patches.shape[1]
    sums = embedded_patches.new_zeros(slots, width, dtype=torch.float32)
    sums = sums.index_add(0, regions, embedded_patches.index_select(0, batch.prompted).float())
    counts = sums.new_zeros(slots).index_add(0, regions, sums.new_ones(len(regions))).clamp(min=1)
    return (sums / counts[:, None]).view(len(patches), MAX_PROMPTS, width)


def add_at_names(
    embeds: Tensor, input_ids: Tensor, prompt_token_ids: Tensor, regions: Tensor, owners: Tensor
) -> Tensor:
    """`embeds` (..., D) with its region added at every token of `input_ids` (...) that is a <PromptK>.

    `regions`: (B, 15, D), `owners`: (...) int64, the sequence in B of each token; `prompt_token_ids`: (15,).
    """
    names = input_ids[..., None] == prompt_token_ids  # (..., 15); a token is at most one of them
    k, is_name = names.to(torch.int8).argmax(-1), names.any(-1)
    # Which tokens are names is known on the device only, so every token adds something: most of them row 0, zeros.
    rows = torch.where(is_name, owners * MAX_PROMPTS + k + 1, 0)
    table = torch.cat([regions.new_zeros(1, regions.shape[-1]), regions.flatten(0, 1)])
    return embeds + F.embedding(rows, table, padding_idx=0).to(embeds.dtype)  # no gradient to row 0


def sequence_of_tokens(batch: Batch) -> Tensor:
    """The sequence of each packed token, (L,) int64."""
    return _numbered([span[-1] - span[0] for span in batch.spans], batch.input_ids.device)


def _numbered(lengths: list[int], device: torch.device) -> Tensor:
    """The number of its run for each item of runs of these lengths, (sum,) int64; made on the device."""
    return torch.cat([torch.full((length,), number, device=device) for number, length in enumerate(lengths)])
