"""Rotary positions of text and image: both layouts are 1-D RoPE on text, and read rows and columns as they say."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from pixel_sail.model.backbone import MultimodalRope

CONFIG = Qwen2Config(
    hidden_size=64, num_attention_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 50.0}
)


def rope(layout: str, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return MultimodalRope(Qwen2RotaryEmbedding(CONFIG), layout)(torch.zeros(1, positions.shape[-1], 64), positions)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_text_has_the_decoders_own_positions(layout: str) -> None:
    steps = torch.arange(40)[None]
    expected = Qwen2RotaryEmbedding(CONFIG)(torch.zeros(1, 40, 64), steps)
    for ours, theirs in zip(rope(layout, steps.expand(3, 1, -1)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("layout", "row_frequencies"), [("halves", list(range(8))), ("interleaved", list(range(0, 16, 2)))]
)
def test_which_frequencies_read_rows(layout: str, row_frequencies: list[int]) -> None:
    here, lower, further = (torch.tensor(p).view(3, 1, 1) for p in ([5, 5, 5], [5, 9, 5], [5, 5, 9]))
    cos = {name: rope(layout, p)[0].flatten() for name, p in (("here", here), ("lower", lower), ("further", further))}
    frequency = torch.arange(32) % 16  # of each channel of a head
    by_rows = sorted(set(frequency[cos["here"] != cos["lower"]].tolist()))
    by_columns = sorted(set(frequency[cos["here"] != cos["further"]].tolist()))
    assert by_rows == row_frequencies and sorted(by_rows + by_columns) == list(range(16))
