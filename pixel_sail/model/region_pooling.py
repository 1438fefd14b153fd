"""Pooled regions, the plain baseline: the mean of a region's embedded patches is added where the text names it."""

from __future__ import annotations

import torch
from torch import Tensor

from pixel_sail.tokens import MAX_PROMPTS
from pixel_sail.types import UNPROMPTED, Batch


def pool_regions(embedded_patches: Tensor, batch: Batch) -> Tensor:
    """The mean of the patches (sum N, D) of each sequence and <PromptK>: (B, 15, D), 0 where no region is drawn."""
    patches = [h * w for h, w in batch.grids_hw]
    sequences = torch.repeat_interleave(torch.tensor(patches)).to(batch.prompt_ids.device)  # of each patch
    prompted = batch.prompt_ids != UNPROMPTED
    regions = (sequences * MAX_PROMPTS + batch.prompt_ids)[prompted]
    slots, width = len(patches) * MAX_PROMPTS, embedded_patches.shape[1]
    sums = embedded_patches.new_zeros(slots, width, dtype=torch.float32)
    sums = sums.index_add(0, regions, embedded_patches[prompted].float())
    counts = torch.bincount(regions, minlength=slots).clamp(min=1)
    return (sums / counts[:, None]).view(len(patches), MAX_PROMPTS, width)


def add_at_names(
    embeds: Tensor, input_ids: Tensor, prompt_token_ids: Tensor, regions: Tensor, owners: Tensor
) -> Tensor:
    """`embeds` (..., D) with its region added at every token of `input_ids` (...) that is a <PromptK>.

    `regions`: (B, 15, D), `owners`: (...) int64, the sequence in B of each token; `prompt_token_ids`: (15,).
    """
    *place, k = (input_ids[..., None] == prompt_token_ids).nonzero(as_tuple=True)
    addition = regions[owners[tuple(place)], k].to(embeds.dtype)
    return embeds.index_put(tuple(place), addition, accumulate=True)


def sequence_of_tokens(batch: Batch) -> Tensor:
    """The sequence of each packed token, (L,) int64."""
    lengths = torch.tensor([stop - start for start, _, _, stop in batch.spans])
    return torch.repeat_interleave(lengths).to(batch.input_ids.device)
