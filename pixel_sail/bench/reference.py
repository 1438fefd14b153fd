"""A plain implementation of the losses, to measure against: dense mask, all logits, one image at a time in the head.

It uses the model's own weights and must give the same numbers (tests/bench/test_bench.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pixel_sail.config import LossConfig
from pixel_sail.layout import Span, blocks_of
from pixel_sail.losses import mask_losses
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import IGNORE_LABEL, Batch, Output


def plain_losses(model: PixelSail, batch: Batch, config: LossConfig) -> Tensor:
    """The weighted loss of `batch`."""
    decoder = model.language_model.get_decoder()
    output = decoder(
        inputs_embeds=model.embed(batch)[None],
        position_ids=batch.position_ids[:, None],
        attention_mask=dense_mask(batch.spans, batch.input_ids.device)[None, None],
        use_cache=False,
    )
    hidden = output.last_hidden_state[0]
    logits = model.language_model.get_output_embeddings()(hidden)  # at every position, patches included
    labels = torch.full((batch.tokens,), IGNORE_LABEL, device=hidden.device)
    weights = torch.zeros(batch.tokens, device=hidden.device)
    labels[batch.predict_index], weights[batch.predict_index] = batch.labels, batch.label_weights
    lm = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL, reduction="none") * weights
    masks = _mask_logits(model, batch, hidden)
    bce, dice = mask_losses(Output(logits, hidden, [], masks), batch, config)
    counts = batch.counts()
    return config.lm * lm.sum() / counts["lm"] + (config.bce * bce + config.dice * dice) / counts["mask"]


def dense_mask(spans: Sequence[Span], device: torch.device | str) -> Tensor:
    """(L, L) bool; True where the token of a row attends to the token of a column."""
    tokens = spans[-1][-1]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool, device=device)
    for span in spans:
        own = slice(span[0], span[-1])
        mask[own, own] = torch.ones_like(mask[own, own]).tril()
        for first, past in blocks_of(span):
            mask[first:past, first:past] = True
    return mask


def _mask_logits(model: PixelSail, batch: Batch, hidden: Tensor) -> list[Tensor]:
    head, logits = model.mask_head, []
    segs = hidden[batch.seg_index].split(list(batch.masks_per_image))
    patches = hidden[batch.patch_index].split([h * w for h, w in batch.grids_hw])
    for patch, seg, (h, w) in zip(patches, segs, batch.grids_hw, strict=True):
        x = patch.view(1, h, w, -1)
        x = x if head.reduce is None else head.reduce(x)
        for block in head.blocks:
            x = block(x)
        features = head.pixel_projector(x)[0]  # all S features of every pixel
        logits.append(torch.einsum("ks,hws->khw", head.seg_projector(seg), features))
    return logits
