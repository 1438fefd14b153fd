"""Rows of a decoding batch that continue images see what they would see with a copy of the image's keys and values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pixel_sail.errors import UserError
from pixel_sail.model import attention
from pixel_sail.model.attention import Prefix, mixed_attention

LAYER = SimpleNamespace(layer_idx=1)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("scores", [1, 2**26])  # one row at a time, and all of an image
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_as_with_copies(monkeypatch, queries: int, scores: int, scaling: float | None) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    heads, kv_heads, d, keys = 6, 2, 8, 7
    images = {(0, 3): 11, (1, 4, 5): 20, (2,): 0}  # rows: tokens of their prefix
    prefixes, whole_keys, whole_values = [], {}, {}
    q, k, v = (random(6, n, t, d) for n, t in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))
    v = v.flip(0)
    mask = torch.rand(6, 1, queries, keys, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[..., 0] = True
    for rows, tokens in images.items():
        layers = [(random(1, kv_heads, tokens, d), random(1, kv_heads, tokens, d) + layer) for layer in range(2)]
        prefixes.append(Prefix(torch.tensor(rows), layers))
        for row in rows:
            whole_keys[row] = torch.cat([layers[1][0][0], k[row]], 1)[None]
            whole_values[row] = torch.cat([layers[1][1][0], v[row]], 1)[None]
    together, _ = mixed_attention(LAYER, q, k, v, mask, scaling, prefixes=prefixes)
    for row in range(6):
        seen = torch.ones(1, 1, queries, whole_keys[row].shape[2] - keys, dtype=torch.bool)
        whole_mask = torch.cat([seen, mask[row : row + 1]], -1)
        alone, _ = mixed_attention(LAYER, q[row : row + 1], whole_keys[row], whole_values[row], whole_mask, scaling)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_sliding_window_counts_the_image() -> None:
    q = random(1, 1, 1, 8)
    prefix = Prefix(torch.tensor([0]), [(random(1, 1, 9, 8),) * 2] * 2)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    with pytest.raises(UserError, match="sliding window of 9 tokens and the sequence has 10"):
        mixed_attention(LAYER, q, q, q, mask, prefixes=[prefix], sliding_window=9)
    mixed_attention(LAYER, q, q, q, mask, prefixes=[prefix], sliding_window=10)
