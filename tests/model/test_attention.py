"""Every kernel of the mixed attention equals attention under a brute-force mask, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixel_sail.model import attention
from pixel_sail.model.attention import AttentionLayout, mixed_attention

# (start, first image token, one past the last, stop): plain, text only, tokens before the image, image only, one token,
# text longer than the piece of rows that SDPA takes at a time.
SPANS = {
    "one": ((0, 0, 22, 40),),
    "text": ((0, 0, 0, 17),),
    "packed": (
        (0, 0, 22, 40),
        (40, 40, 40, 47),
        (47, 53, 60, 71),
        (71, 71, 83, 83),
        (83, 83, 86, 87),
        (87, 87, 87, 88),
    ),
}
SPANS["long text"] = ((0, 3, 20, 537), (537, 537, 541, 550))


def brute_force_mask(spans: tuple) -> torch.Tensor:
    """(L, L) bool from the words of the rule, a pair of tokens at a time."""
    length = spans[-1][3]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for start, image_start, image_stop, stop in spans:
        for query in range(start, stop):
            for key in range(start, stop):
                both_in_image = image_start <= query < image_stop and image_start <= key < image_stop
                mask[query, key] = key <= query or both_in_image
    return mask


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention spelled out in float64, (1, L, heads, d)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q.double() @ k.double().transpose(-1, -2)) * scaling
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ v.double()).transpose(1, 2)


def inputs(length: int, gradients: bool = True, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 4, length, 16), (1, 2, length, 16), (1, 2, length, 16)]
    return [torch.randn(shape, generator=generator).requires_grad_(gradients) for shape in shapes]


def torch_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal
):  # the contract of flash-attn's varlen function, spelled out: causal is aligned at the bottom right
    out = []
    for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False):
        queries, keys = int(b - a), int(d - c)
        assert queries <= max_seqlen_q and keys <= max_seqlen_k
        mask = torch.ones(queries, keys, dtype=torch.bool)
        mask = mask.tril(keys - queries) if causal else mask
        heads_first = [x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])]
        out.append(reference(*heads_first, mask, softmax_scale)[0].to(q.dtype))
    return torch.cat(out)


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("kernel", ["sdpa", "flex", "flash"])
def test_kernels_equal_brute_force(kernel: str, spans: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "flash_varlen", lambda: torch_varlen)  # the kernel itself needs a GPU
    q, k, v = inputs(spans[-1][3], gradients=kernel != "flex")  # FlexAttention has no backward on CPU
    layout = AttentionLayout(spans, kernel, torch.device("cpu"))
    out, _ = mixed_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout)
    expected = reference(q, k, v, brute_force_mask(spans), 0.3)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    if kernel == "flex":
        return
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * direction).sum(), [q, k, v])
    expected_gradients = torch.autograd.grad((expected * direction).sum(), [q, k, v])
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("kernel", ["sdpa", "flex", "flash"])
def test_kernels_equal_brute_force_in_bf16(kernel: str, spans: tuple) -> None:
    if kernel == "flash" and attention.flash_varlen() is None:
        pytest.skip("flash-attn is not installed")
    q, k, v = (x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in inputs(spans[-1][3]))
    layout = AttentionLayout(spans, kernel, torch.device("cuda"))
    out, _ = mixed_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout)
    expected = reference(q, k, v, brute_force_mask(spans).cuda(), 0.3)
    assert ((out.double() - expected).norm() / expected.norm()) < 1e-2
    direction = torch.randn(out.shape, device="cuda")
    gradients = torch.autograd.grad((out * direction).sum(), [q, k, v])
    expected_gradients = torch.autograd.grad((expected * direction).sum(), [q, k, v])
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert ((a.double() - b.double()).norm() / b.double().norm()) < 2e-2


def test_golden_masks(golden) -> None:
    recorded = np.load(golden / "helpers" / "attention_masks.npz")
    for name in recorded.files:
        first, last, length = name.removeprefix("mask_").split("_")
        # The recorded index of the first patch follows <vision>, which belongs to the block.
        span = (0, 0, 0, int(length)) if first == "none" else (0, int(first) - 1, int(last) + 1, int(length))
        assert np.array_equal(brute_force_mask((span,)).numpy(), recorded[name]), name


def test_no_mask_is_quadratic_in_the_batch() -> None:
    """The only masks that SDPA makes are for short runs of text rows of one sequence."""
    layout = AttentionLayout(SPANS["packed"], "sdpa", torch.device("cpu"))
    q, k, v = inputs(SPANS["packed"][-1][3])
    mixed_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout)
    assert layout._masks and all(rows <= attention.TEXT_ROWS and keys <= 40 for rows, keys in layout._masks)


def test_sliding_window_is_refused_only_when_it_would_matter() -> None:
    q, k, v = inputs(40)
    layout = AttentionLayout(SPANS["one"], "sdpa", torch.device("cpu"))
    mixed_attention(torch.nn.Module(), q, k, v, None, layout=layout, sliding_window=40)
    with pytest.raises(ValueError, match="sliding window of 39 tokens and the sequence has 40"):
        mixed_attention(torch.nn.Module(), q, k, v, None, layout=layout, sliding_window=39)


def test_flash_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pip install 'pixel_sail\[flash\]'"):
        attention.choose_kernel("flash", torch.device("cpu"))
    assert attention.choose_kernel("auto", torch.device("cpu")) == "sdpa"
