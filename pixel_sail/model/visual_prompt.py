"""Early fusion: patches and the visual prompts drawn on them are added to the embeddings before the first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixel_sail.architecture import Architecture
from pixel_sail.model.clicks import ClickEmbedding
from pixel_sail.model.patch_positions import POSITION_VALUES, position_values
from pixel_sail.model.pixels import normalize
from pixel_sail.model.region_pooling import add_at_names, pool_regions, sequence_of_tokens
from pixel_sail.model.stem import ConvStem
from pixel_sail.model.sub_patch_rope import turned_by_place
from pixel_sail.types import Batch


class PatchFusion(nn.Module):
    """embed(token) + patch_linear(patch) + prompt_linear(embed(<PromptK>)), linears without bias (arXiv 2504.10465).

    `architecture.prompt_linear` off: embed(<PromptK>) itself is added, as in the authors' 7B.
    `sub_patch_size`: a patch is embedded in two steps, as in EVEv2. Each of its squares of that side goes through a
    linear and GELU, and `patch_linear` takes all squares together. `sub_patch_theta`: between the two, a square turns
    with its place in the image, as in NEO.
    `stem_widths`: the output of convolutions around a patch (ConvStem) is embedded together with its pixels. A model
    from random weights then learns shapes sooner, and colours, which are linear in the pixels, no later.
    `patch_positions`: the position of a patch in its image (position_values) is embedded too, times `position_scale`.
    Rotary attention alone knows only offsets, and a mask is a product with single patches.

    `region_embedding="pooled"` is the plain baseline of the paper's ablation: no prompt is added to patches and there
    is no `prompt_linear`. The mean of a region's embedded patches is added to its name in the text instead.
    `clicks`: the text may have clicks (ClickEmbedding).
    """

    def __init__(self, architecture: Architecture, hidden_size: int):
        super().__init__()
        patch_size, small = architecture.patch_size, architecture.small
        values = 3 * patch_size**2
        self.stem = None if small.stem_widths is None else ConvStem(patch_size, small.stem_widths)
        if self.stem is not None:
            values += self.stem.values
        self.sub_patch_size, self.sub_patch_linear = architecture.sub_patch_size, None
        self.sub_patch_theta = architecture.sub_patch_theta
        if self.sub_patch_size is not None:
            self.sub_patch_linear = nn.Linear(3 * self.sub_patch_size**2, architecture.sub_patch_width)
            values = architecture.sub_patch_width * (patch_size // self.sub_patch_size) ** 2
        self.statistics = architecture.pixel_statistics
        self.patch_positions, self.position_scale = small.patch_positions, small.position_scale
        if self.patch_positions:
            values += POSITION_VALUES
        self.patch_linear = nn.Linear(values, hidden_size, bias=False)
        self.pooled, self.prompt_linear = architecture.region_embedding == "pooled", None
        if not self.pooled and architecture.prompt_linear:
            self.prompt_linear = nn.Linear(hidden_size, hidden_size, bias=False)
        self.clicks = ClickEmbedding(hidden_size) if architecture.clicks else None

    def forward(self, text_embeds: Tensor, prompt_embeds: Tensor, prompt_token_ids: Tensor, batch: Batch) -> Tensor:
        """(L, D) from the token embeddings (L, D) and those of the prompt tokens (15, D), whose ids are (15,).

        Without a prompted patch nothing is added: the result is bit for bit that of a model without prompts.
        """
        visual = self.embed_patches(batch)
        embeds = text_embeds.index_add(0, batch.patch_index, visual.to(text_embeds.dtype))
        if self.clicks is not None:  # runs always, as below
            clicked = self.clicks(visual.index_select(0, batch.clicks.patches), batch.clicks.values)
            embeds = embeds.index_add(0, batch.clicks.tokens, clicked.to(embeds.dtype))
        if self.pooled:
            regions = pool_regions(visual, batch)
            return add_at_names(embeds, batch.input_ids, prompt_token_ids, regions, sequence_of_tokens(batch))
        # runs always: every rank of ZeRO-3 must gather the same weights
        table = prompt_embeds if self.prompt_linear is None else self.prompt_linear(prompt_embeds)
        addition = F.embedding(batch.prompt_ids[batch.prompted], table).to(embeds.dtype)
        return embeds.index_add(0, batch.patch_index[batch.prompted], addition)

    def embed_patches(self, batch: Batch) -> Tensor:
        """Embedded patches (sum N, D), before any prompt is added."""
        patches = normalize(batch.patches, self.statistics).to(self.patch_linear.weight.dtype)
        values = self._patch_values(patches, batch.grids_hw)
        if self.patch_positions:
            places = self.position_scale * position_values(batch.grids_hw, like=values)
            values = torch.cat([values, places], dim=1)
        return self.patch_linear(values)

    def _patch_values(self, patches: Tensor, grids_hw: Sequence[tuple[int, int]]) -> Tensor:
        """Pixels (N, 3 P P) -> (N, values), the input of `patch_linear`."""
        if self.stem is not None:
            return torch.cat([patches, self.stem(patches, grids_hw)], dim=1)
        if self.sub_patch_linear is None:
            return patches
        size = self.sub_patch_size
        grid = round((patches.shape[1] / 3) ** 0.5) // size
        parts = rearrange(patches, "n (c i y j x) -> n (i j) (c y x)", c=3, i=grid, y=size, j=grid, x=size)
        squares = F.gelu(self.sub_patch_linear(parts))
        if self.sub_patch_theta is not None:
            squares = turned_by_place(squares, grids_hw, self.sub_patch_theta)
        return squares.flatten(1)
