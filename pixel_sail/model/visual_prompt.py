"""Early fusion: patches, and the visual prompts drawn on them, enter the text embedding before the first layer."""

from __future__ import annotations

from torch import Tensor, nn

from pixel_sail.types import UNPROMPTED, Batch


class PatchFusion(nn.Module):
    """embed(token) + patch_linear(patch) + prompt_linear(embed(<PromptK>)), both without bias (SPEC section 1)."""

    def __init__(self, patch_values: int, hidden_size: int):
        super().__init__()
        self.patch_linear = nn.Linear(patch_values, hidden_size, bias=False)
        self.prompt_linear = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, text_embeds: Tensor, prompt_embeds: Tensor, batch: Batch) -> Tensor:
        """(L, D) from the token embeddings (L, D) and those of the prompt tokens (15, D).

        Where no patch is prompted nothing is added, so the result is bit for bit that of a model without prompts.
        """
        visual = self.patch_linear(batch.patches.to(self.patch_linear.weight.dtype))
        table = self.prompt_linear(prompt_embeds)  # always run: every rank of ZeRO-3 gathers the same weights
        prompted = batch.prompt_ids != UNPROMPTED
        embeds = text_embeds.index_add(0, batch.patch_index, visual.to(text_embeds.dtype))
        addition = table[batch.prompt_ids[prompted]].to(embeds.dtype)
        return embeds.index_add(0, batch.patch_index[prompted], addition)
