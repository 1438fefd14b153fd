"""The mixed attention of packed image-text sequences: one function, three kernels, no L x L mask.

In a sequence, all tokens from `<vision>` to `</vision>` see each other. Every other token sees itself and the tokens
before it. Sequences of one packed batch never see each other. The text follows the image block, so a few kernel calls
are enough: image rows x all keys up to the end of the image (full), text rows x all keys (causal, aligned at the
bottom right), and the rows of tokens before the image, if there are any (causal).

The kernels: flash-attn's varlen function (GPU), FlexAttention with a block mask (GPU; forward only on CPU), and torch's
scaled_dot_product_attention, one sequence at a time (anywhere).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pixel_sail.errors import UserError

Kernel = Literal["sdpa", "flex", "flash"]
Span = tuple[int, int, int, int]  # (start, first image token, one past the last image token, stop) in the packed batch

NAME = "pixel_sail"  # the attention implementation that a decoder's config names
TEXT_ROWS = 256  # rows of text queries in one SDPA call, so that its mask stays small


@dataclass(frozen=True)
class Rows:
    """Query rows of one kernel call: a run of queries, and the run of keys that the last query sees."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    causal: bool  # aligned at the bottom right: query i sees all but the last (n_queries - 1 - i) keys


@dataclass
class AttentionLayout:
    """Which token sees which in a packed batch; shared by all layers of a forward pass."""

    spans: tuple[Span, ...]
    kernel: Kernel
    device: torch.device
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @cached_property
    def rows(self) -> list[Rows]:
        """The kernel calls of each sequence, in token order."""
        calls = []
        for start, image_start, image_stop, stop in self.spans:
            if image_stop == image_start:
                calls.append(Rows((start, stop), (start, stop), causal=True))
                continue
            calls += [
                Rows((start, image_start), (start, image_start), causal=True),
                Rows((image_start, image_stop), (start, image_stop), causal=False),
                Rows((image_stop, stop), (start, stop), causal=True),
            ]
        return [rows for rows in calls if rows.queries[1] > rows.queries[0]]

    def causal_mask(self, queries: int, keys: int) -> Tensor:
        """Mask (queries, keys) bool, True = may see, aligned at the bottom right; built once per shape."""
        if (queries, keys) not in self._masks:
            ones = torch.ones(queries, keys, dtype=torch.bool, device=self.device)
            self._masks[queries, keys] = ones.tril(keys - queries)
        return self._masks[queries, keys]

    @cached_property
    def varlen(self) -> list[VarlenCall]:
        """One varlen call for all full rows and one for all causal rows."""
        groups = [[r for r in self.rows if not r.causal], [r for r in self.rows if r.causal]]
        return [VarlenCall.of(group, self.device) for group in groups if group]

    @cached_property
    def block_mask(self) -> Any:
        """The FlexAttention block mask, built from three numbers per token."""
        from torch.nn.attention.flex_attention import create_block_mask

        length = self.spans[-1][3]
        sequence = torch.empty(length, dtype=torch.int32)
        image = torch.full((length,), -1, dtype=torch.int32)
        for index, (start, image_start, image_stop, stop) in enumerate(self.spans):
            sequence[start:stop] = index
            image[image_start:image_stop] = index
        sequence, image = sequence.to(self.device), image.to(self.device)

        def may_see(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_image = (image[query] == image[key]) & (image[query] >= 0)
            return (sequence[query] == sequence[key]) & ((key <= query) | same_image)

        return create_block_mask(may_see, None, None, length, length, device=self.device)


@dataclass(frozen=True)
class VarlenCall:
    """Arguments of a varlen call: token indices of the queries and keys, and their cumulative lengths (int32)."""

    query_index: Tensor  # (number of queries,) int64
    key_index: Tensor  # (number of keys,) int64
    cu_queries: Tensor  # (groups + 1,) int32
    cu_keys: Tensor
    max_queries: int
    max_keys: int
    causal: bool

    @classmethod
    def of(cls, group: list[Rows], device: torch.device) -> VarlenCall:
        queries, keys = [r.queries for r in group], [r.keys for r in group]

        def index(runs: list[tuple[int, int]]) -> Tensor:
            return torch.cat([torch.arange(*run) for run in runs]).to(device)

        def cumulative(runs: list[tuple[int, int]]) -> Tensor:
            lengths = torch.tensor([0] + [stop - start for start, stop in runs], dtype=torch.int32)
            return lengths.cumsum(0, dtype=torch.int32).to(device)

        longest = [max(stop - start for start, stop in runs) for runs in (queries, keys)]
        return cls(index(queries), index(keys), cumulative(queries), cumulative(keys), *longest, group[0].causal)


def choose_kernel(wanted: str, device: torch.device) -> Kernel:
    """`auto`: flash-attn, else FlexAttention, on a GPU; SDPA elsewhere. Raises UserError if `wanted` cannot run."""
    has_flash = device.type == "cuda" and flash_varlen() is not None
    if wanted == "auto":
        return "flash" if has_flash else "flex" if device.type == "cuda" else "sdpa"
    if wanted == "flash" and not has_flash:
        raise UserError(
            "model.attention=flash needs a GPU and flash-attn: pip install 'pixel_sail[flash]', or use auto or flex"
        )
    return wanted  # type: ignore[return-value]


@lru_cache(1)
def flash_varlen() -> Any | None:
    """flash-attn's varlen function: version 2, else version 4 (`flash_attn.cute`), else None."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from flash_attn.cute import flash_attn_varlen_func
    return flash_attn_varlen_func


def mixed_attention(
    module: nn.Module,
    query: Tensor,  # (B, heads, queries, d)
    key: Tensor,  # (B, kv heads, keys, d)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: AttentionLayout | None = None,
    sliding_window: int | None = None,
    **_: Any,  # transformers passes more to every attention function
) -> tuple[Tensor, None]:
    """The attention function that decoders call. Returns (B, queries, heads, d), and None for the weights.

    With a `layout` the input is one packed batch (B = 1). Without a layout, `attention_mask` (B, 1, queries, keys) bool
    comes from cached decoding, or is None for the plain causal attention of a language model (without padding).
    Raises UserError for sequences longer than a decoder's sliding window.
    """
    if sliding_window is not None and key.shape[2] > sliding_window:
        raise UserError(
            f"this decoder attends over a sliding window of {sliding_window} tokens and the sequence has "
            f"{key.shape[2]}: shorten data.max_length, or set sliding_window to null in the base model's config.json"
        )
    # Under autocast the rotary product is float32, so cast all three to one dtype. On a CPU use float32: the backward
    # pass of torch's bf16 attention takes three times as long there.
    dtype = torch.float32 if query.device.type == "cpu" else value.dtype
    q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(query.device.type, enabled=False):
        if layout is None:
            out = _sdpa(q, k, v, attention_mask, scaling, dropout).transpose(1, 2)
        else:
            out = KERNELS[layout.kernel](q, k, v, layout, scaling, dropout)
    return out.to(value.dtype), None


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    causal = mask is None and queries == keys
    if mask is None and 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    k, v = _for_every_head(k, q), _for_every_head(v, q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, dropout_p=dropout)


def _for_every_head(x: Tensor, query: Tensor) -> Tensor:
    # Expand: with a mask, or without a GPU, enable_gqa falls back to the slow math kernel.
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def _packed_sdpa(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None, dropout: float
) -> Tensor:
    key, value = _for_every_head(key, query), _for_every_head(value, query)
    # Split once per sequence: the gradient of a slice of the whole batch is a zero tensor of the whole batch's size.
    lengths = [stop - start for start, _, _, stop in layout.spans]
    sequences = zip(layout.spans, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    pieces = []
    for (start, image_start, image_stop, stop), q, k, v in sequences:
        cuts = _query_cuts(image_start - start, image_stop - start, stop - start)
        for part, (first, last) in zip(q.split([b - a for a, b in cuts], 2), cuts, strict=True):
            causal = image_stop == image_start or not (first == image_start - start and last == image_stop - start)
            square = first == 0
            masked = causal and not square and last - first > 1
            attended = F.scaled_dot_product_attention(
                part,
                k[:, :, :last],
                v[:, :, :last],
                attn_mask=layout.causal_mask(last - first, last) if masked else None,
                is_causal=causal and square,
                scale=scaling,
                dropout_p=dropout,
            )
            pieces.append(attended.transpose(1, 2))
    return torch.cat(pieces, dim=1)


def _query_cuts(image_start: int, image_stop: int, stop: int) -> list[tuple[int, int]]:
    """Runs of query rows, one for each SDPA call; a run sees the keys up to its own end.

    A run from row 0 on needs no mask (causal and square). Later text rows need a mask, so their runs are short.
    """
    if image_stop == image_start:
        return [(0, stop)]
    runs = [(0, image_start), (image_start, image_stop)]
    runs += [(first, min(first + TEXT_ROWS, stop)) for first in range(image_stop, stop, TEXT_ROWS)]
    return [run for run in runs if run[1] > run[0]]


def _packed_flash(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None, dropout: float
) -> Tensor:
    if dropout:
        raise UserError("attention dropout is not supported by the flash kernel; set attention_dropout to 0")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (L, heads, d)
    out = torch.empty_like(q)
    for call in layout.varlen:
        result = flash_varlen()(
            q[call.query_index],
            k[call.key_index],
            v[call.key_index],
            cu_seqlens_q=call.cu_queries,
            cu_seqlens_k=call.cu_keys,
            max_seqlen_q=call.max_queries,
            max_seqlen_k=call.max_keys,
            softmax_scale=scaling,
            causal=call.causal,
        )
        result = result[0] if isinstance(result, tuple) else result  # version 4 also returns the log-sum-exp
        out = out.index_copy(0, call.query_index, result)
    return out[None]


@lru_cache(1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _packed_flex(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None, dropout: float
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if dropout:
        raise UserError("attention dropout is not supported by FlexAttention; set attention_dropout to 0")
    kernel = _compiled_flex() if query.is_cuda else flex_attention
    out = kernel(
        query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


KERNELS = {"sdpa": _packed_sdpa, "flex": _packed_flex, "flash": _packed_flash}
ALL_ATTENTION_FUNCTIONS.register(NAME, mixed_attention)
