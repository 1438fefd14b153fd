"""Every kernel of the mixed attention equals attention under a brute-force mask, values and gradients."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pixel_sail.errors import UserError
from pixel_sail.model import attention, flash
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
# blocks that touch, or have tokens between them; text on its own; images alone; a block of one token
SPANS["several images"] = (
    (0, 0, 9, 9, 30, 45),
    (45, 45, 45, 52),
    (52, 53, 60, 62, 70, 72, 80, 91),
    (91, 91, 100, 100, 101, 101),
    (101, 101, 110, 115),
)


def brute_force_mask(spans: tuple) -> torch.Tensor:
    """(L, L) bool from the words of the rule, a pair of tokens at a time."""
    length = spans[-1][-1]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for start, *edges, stop in spans:
        images = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
        for query in range(start, stop):
            for key in range(start, stop):
                both_in_image = any(a <= query < b and a <= key < b for a, b in images)
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


def plain_varlen(q, k, v, cu_queries, cu_keys, max_queries, max_keys, scaling, causal):
    """What every varlen function computes, spelled out: causal is aligned at the bottom right."""
    out = []
    assert cu_queries.dtype == cu_keys.dtype == torch.int32
    for a, b, c, d in zip(cu_queries, cu_queries[1:], cu_keys, cu_keys[1:], strict=False):
        queries, keys = int(b - a), int(d - c)
        assert queries <= max_queries and keys <= max_keys
        mask = torch.ones(queries, keys, dtype=torch.bool)
        mask = mask.tril(keys - queries) if causal else mask
        heads_first = [x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])]
        out.append(reference(*heads_first, mask, scaling)[0].to(q.dtype))
    return torch.cat(out)


# Stand-ins with the signatures of the libraries, as far as they are used or in the way of what is used.
def flash_attn_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    assert dropout_p == 0 and window_size == (-1, -1)
    return plain_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


def flash_attn_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, window_size=(-1, -1), deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert seqused_q is None and seqused_k is None
    return plain_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


def flash_attn_3_of_2024(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
):  # fmt: skip
    out = plain_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)
    return out, torch.empty(0)


def flash_attn_4(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
    seqused_k=None, page_table=None, softmax_scale=None, causal=False, window_size=(None, None), return_lse=False,
):  # fmt: skip
    out = plain_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)
    return out, None


def flash_attn_4_beta(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None),
):  # fmt: skip
    return plain_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, len(q), len(k), softmax_scale, causal), torch.empty(0)


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert query.shape[1] == key.shape[1] or enable_gqa and window_size in ((-1, -1), (-1, 0))
    return plain_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size == (-1, 0))


def varlen_attn_of_torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return plain_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size == (-1, 0))


FLASH = {
    "flash-attn 2": partial(flash.flash_attn_2_or_3, flash_attn_2),
    "flash-attn 3": partial(flash.flash_attn_2_or_3, flash_attn_3),
    "flash-attn 3 of 2024": partial(flash.flash_attn_2_or_3, flash_attn_3_of_2024),
    "flash-attn 4": partial(flash.flash_attn_4, flash_attn_4),
    "flash-attn 4 beta": partial(flash.flash_attn_4, flash_attn_4_beta),
    "torch": partial(flash.torch_varlen, varlen_attn),
    "torch 2.11": partial(flash.torch_varlen, varlen_attn_of_torch_2_11),
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("kernel", ["sdpa", "flex", *FLASH])
def test_kernels_equal_brute_force(kernel: str, spans: tuple) -> None:
    stand_in = FLASH.get(kernel)  # flash kernels need a GPU
    q, k, v = inputs(spans[-1][-1], gradients=kernel != "flex")  # FlexAttention has no backward on CPU
    layout = AttentionLayout(spans, "flash" if stand_in else kernel, torch.device("cpu"), flash=stand_in)
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
    q, k, v = (x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in inputs(spans[-1][-1]))
    layout = AttentionLayout(spans, kernel, torch.device("cuda"))
    out, _ = mixed_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout)
    expected = reference(q, k, v, brute_force_mask(spans).cuda(), 0.3)
    assert ((out.double() - expected).norm() / expected.norm()) < 1e-2
    direction = torch.randn(out.shape, device="cuda")
    gradients = torch.autograd.grad((out * direction).sum(), [q, k, v])
    expected_gradients = torch.autograd.grad((expected * direction).sum(), [q, k, v])
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert ((a.double() - b.double()).norm() / b.double().norm()) < 2e-2


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_cpu_with_bf16_units_computes_bf16_attention_as_such_without_gradients(
    units: bool, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "has_bf16_units", lambda: units)
    real, dtypes = torch.nn.functional.scaled_dot_product_attention, set()

    def noted(query: torch.Tensor, *others, **options) -> torch.Tensor:
        dtypes.add(query.dtype)
        return real(query, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    spans = SPANS["packed"]
    q, k, v = (x.detach().bfloat16() for x in inputs(spans[-1][-1]))
    layout = AttentionLayout(spans, "sdpa", torch.device("cpu"))
    with torch.set_grad_enabled(gradients):
        out, _ = mixed_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout)
    assert dtypes == {torch.bfloat16 if units and not gradients else torch.float32} and out.dtype == torch.bfloat16
    expected = reference(q, k, v, brute_force_mask(spans), 0.3)
    assert ((out.double() - expected).norm() / expected.norm()) < 1e-2


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
    with pytest.raises(UserError, match="model.attention=flash needs a GPU of compute capability 8.0"):
        attention.choose_kernel("flash", torch.device("cpu"), torch.bfloat16)
    assert attention.choose_kernel("auto", torch.device("cpu"), torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(
    "major, installed, chosen",
    [
        (7, {"flash_attn": flash_attn_2}, None),
        (8, {}, "torch_varlen"),
        (8, {"flash_attn": flash_attn_2, "flash_attn_interface": flash_attn_3}, flash_attn_2),
        (8, {"flash_attn": None, "flash_attn.cute": flash_attn_4}, "torch_varlen"),
        (9, {"flash_attn": flash_attn_2, "flash_attn_interface": flash_attn_3}, flash_attn_3),
        (9, {"flash_attn": flash_attn_2, "flash_attn.cute": flash_attn_4}, flash_attn_2),
        (9, {"flash_attn": None, "flash_attn.cute": flash_attn_4}, flash_attn_4),
        (9, {"flash_attn_interface": ImportError("undefined symbol"), "flash_attn": flash_attn_2}, flash_attn_2),
        (10, {"flash_attn": flash_attn_2, "flash_attn.cute": flash_attn_4}, flash_attn_4),
        (12, {}, "torch_varlen"),
    ],
)
def test_the_flash_kernel_of_a_machine(
    major: int, installed: dict, chosen: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`installed`: module -> its varlen function; None: a namespace without one; or what importing it raises."""
    for module, function in installed.items():
        folder = tmp_path.joinpath(*module.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        if function is not None:
            how = f"raise ImportError('{function}')" if isinstance(function, ImportError) else (
                f"from test_attention import {function.__name__} as flash_attn_varlen_func")  # fmt: skip
            (folder / "__init__.py").write_text(how)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for module in [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "flash_attn_interface")]:
        monkeypatch.delitem(sys.modules, module)
    flash.find_flash.cache_clear()
    found = flash.find_flash(major)
    flash.find_flash.cache_clear()
    for module in [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "flash_attn_interface")]:
        del sys.modules[module]
    if chosen is None:
        assert found is None
    elif chosen == "torch_varlen":
        assert found.func is flash.torch_varlen
    else:
        assert found.args[0].__name__ == chosen.__name__


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
def test_the_block_mask_is_the_one_torch_makes(spans: tuple) -> None:
    """From the first and the last key of each token, without the mask of all tokens x all tokens."""
    from torch.nn.attention.flex_attention import create_block_mask

    mask, length = brute_force_mask(spans), spans[-1][-1]
    wanted = create_block_mask(lambda _b, _h, q, k: mask[q, k], None, None, length, length, device="cpu")
    made = attention.block_mask(spans, torch.device("cpu"))
    assert made.shape == wanted.shape
    for kind in ("kv", "full_kv", "q", "full_q"):
        numbers = [getattr(of, f"{kind}_num_blocks") for of in (made, wanted)]
        assert torch.equal(*numbers), kind
        for a, b, count in zip(
            getattr(made, f"{kind}_indices")[0, 0], getattr(wanted, f"{kind}_indices")[0, 0], numbers[0][0, 0]
        , strict=True):  # fmt: skip
            assert torch.equal(a[:count], b[:count]), kind
