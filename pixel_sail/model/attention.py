"""The mixed attention of packed image-text sequences: one function, three kernels, no L x L mask.

pixel_sail/layout.py says which token sees which. The kernels: flash attention over packed sequences (GPU, 16 bits;
flash.py), FlexAttention with a block mask (GPU; forward only on CPU), and torch's scaled_dot_product_attention, one
sequence at a time (anywhere).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pixel_sail.devices import has_bf16_units
from pixel_sail.errors import UserError
from pixel_sail.layout import Span, VarlenCall, rows_of, varlen_calls, visible_keys
from pixel_sail.model.flash import DTYPES, Flash, find_flash

Kernel = Literal["sdpa", "flex", "flash"]
# By transformers' names of attn_implementation.
KERNEL_OF = {None: "auto", "sdpa": "sdpa", "flash_attention_2": "flash", "flex_attention": "flex"}

NAME = "pixel_sail"  # the attention implementation that a decoder's config names
TEXT_ROWS = 256  # rows of text queries in one SDPA call, so that its mask stays small
SCORES = 2**26  # float32 numbers that are there at a time where rows continue a prefix
BLOCK = 128  # rows and columns of a block of FlexAttention's mask


@dataclass
class AttentionLayout:
    """Which token sees which in a packed batch, as `kernel` reads it; shared by all layers of a forward pass.

    All tensors are made here, before the first layer: made inside a layer they would break its graph in two.
    """

    spans: tuple[Span, ...]
    kernel: Kernel
    device: torch.device
    varlen: Sequence[VarlenCall] = ()  # on `device`; empty: made from `spans` if the kernel needs them
    flash: Flash | None = None
    image_spans: tuple[Span, ...] = ()  # the tokens of images, for their twins; empty: as in `spans`
    block_mask: Any = None
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kernel == "flex":
            self.block_mask = block_mask(self.spans, self.device)
        if self.kernel == "flash":
            self.flash = self.flash or find_flash(torch.cuda.get_device_capability(self.device)[0])
            self.varlen = self.varlen or [_on(call, self.device) for call in varlen_calls(self.spans)]

    def causal_mask(self, queries: int, keys: int) -> Tensor:
        """Mask (queries, keys) bool, True = may see, aligned at the bottom right; built once per shape."""
        if (queries, keys) not in self._masks:
            ones = torch.ones(queries, keys, dtype=torch.bool, device=self.device)
            self._masks[queries, keys] = ones.tril(keys - queries)
        return self._masks[queries, keys]


@dataclass(frozen=True)
class Prefix:
    """What several rows of a decoding batch continue: an image, of which no row has a copy; or nothing (0 tokens)."""

    rows: Tensor  # (R,) int64
    layers: Sequence[tuple[Tensor, Tensor]]  # keys and values of each layer, (1, kv heads, tokens, d)


def _on(call: VarlenCall, device: torch.device) -> VarlenCall:
    index, lengths = (call.query_index, call.key_index), (call.cu_queries, call.cu_keys)
    moved = [to_device(tensor, device) for tensor in (*index, *lengths)]
    return VarlenCall(*moved, call.max_queries, call.max_keys, call.causal)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on `device`, without waiting for the GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def block_mask(spans: Sequence[Span], device: torch.device) -> Any:
    """FlexAttention's block mask, from the first and last key of each token.

    torch's create_block_mask makes the mask of all tokens x all tokens first: 10 GiB for 33k tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    first, stop = (to_device(keys, device) for keys in visible_keys(spans))  # neither falls from a token to the next
    length = spans[-1][-1]
    tops = torch.arange(0, length, BLOCK, device=device)  # first row of each block
    bottoms = (tops + BLOCK - 1).clamp(max=length - 1)  # its last row
    columns = tops[None]  # first column of each block
    seen = (columns + BLOCK > first[tops, None]) & (columns < stop[bottoms, None])
    full = (columns >= first[bottoms, None]) & (columns + BLOCK <= stop[tops, None])
    full &= (tops + BLOCK <= length)[:, None]

    def may_see(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= first[query]) & (key < stop[query])

    blocks = (*_ordered(seen & ~full), *_ordered(full))
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=may_see, seq_lengths=(length, length))


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks of each row (1, 1, rows), and all columns, those first, (1, 1, rows, columns); int32."""
    numbers = blocks.sum(1, dtype=torch.int32)
    columns = torch.argsort(blocks.to(torch.int8), dim=1, descending=True, stable=True).to(torch.int32)
    return numbers[None, None], columns[None, None]


def kernel_of(attn_implementation: str | None) -> str:
    """The kernel for a name of transformers' attn_implementation, None is auto. Raises UserError for another name."""
    if attn_implementation in KERNEL_OF:
        return KERNEL_OF[attn_implementation]
    reason = "; attention weights are never built" if attn_implementation == "eager" else ""
    raise UserError(
        f"attn_implementation={attn_implementation!r}: no such kernel computes the mixed attention here{reason}; "
        f"give {', '.join(name for name in KERNEL_OF if name)}, or leave it out"
    )


def choose_kernel(wanted: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel for queries of `dtype`: `auto` or `flash` take flash attention in 16 bits on a GPU from Ampere on.

    Elsewhere `auto` takes SDPA, and so does `flash` for the float32 passes of its run, which no flash kernel computes.
    FlexAttention can do the same, but compiles for half a minute first; it runs where it is asked for. Raises UserError
    for `flash` on a device that cannot run it.
    """
    has_flash = device.type == "cuda" and find_flash(torch.cuda.get_device_capability(device)[0]) is not None
    if wanted == "flash" and not has_flash:
        raise UserError(
            "model.attention=flash needs a GPU of compute capability 8.0 or more (Ampere, Hopper): use auto or sdpa"
        )
    if wanted in ("sdpa", "flex"):
        return wanted  # type: ignore[return-value]
    return "flash" if has_flash and dtype in DTYPES else "sdpa"


def mixed_attention(
    module: nn.Module,
    query: Tensor,  # (B, heads, queries, d)
    key: Tensor,  # (B, kv heads, keys, d)
    value: Tensor,  # (B, kv heads, keys, d), or narrower
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: AttentionLayout | None = None,
    prefixes: Sequence[Prefix] | None = None,
    sliding_window: int | None = None,
    **_: Any,  # transformers passes more to every attention function
) -> tuple[Tensor, None]:
    """The attention function that decoders call. Returns (B, queries, heads, d), and None for the weights.

    With a `layout` the input is one packed batch (B = 1). With `prefixes`, each of which its rows see whole, the keys
    are those of the tokens after them, and `attention_mask` (B, 1, queries, keys) bool says which of these are seen.
    With neither, the mask is the whole of it, or None for the plain causal attention of a language model (without
    padding). Raises UserError for sequences longer than a decoder's sliding window.
    """
    tokens = key.shape[2] + max((prefix.layers[0][0].shape[2] for prefix in prefixes or ()), default=0)
    if sliding_window is not None and tokens > sliding_window:
        raise UserError(
            f"this decoder attends over a sliding window of {sliding_window} tokens and the sequence has "
            f"{tokens}: shorten data.max_length, or set sliding_window to null in the base model's config.json"
        )
    # Under autocast the rotary product is float32, so cast all three to one dtype.
    dtype = torch.float32 if query.device.type == "cpu" and not _fast_in_bf16() else value.dtype
    q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(query.device.type, enabled=False):
        if prefixes is not None:
            out = _continue(q.float(), k.float(), v.float(), attention_mask, prefixes, module.layer_idx, scaling)
        elif layout is None:
            out = _sdpa(q, k, v, attention_mask, scaling, dropout).transpose(1, 2)
        else:
            out = KERNELS[layout.kernel](q, k, v, layout, scaling, dropout)
    return out.to(value.dtype), None


def _fast_in_bf16() -> bool:
    """Whether a CPU should compute bf16 attention as such, and not in float32.

    The forward pass alone is 1.2 to 6 times as fast, but the backward pass of torch's kernel takes up to eleven times
    as long for short sequences. Without bf16 units there is nothing to gain.
    """
    return not torch.is_grad_enabled() and has_bf16_units()


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    causal = mask is None and queries == keys
    if mask is None and 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    k, v = _for_every_head(k, q), _for_every_head(v, q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, dropout_p=dropout)


def _continue(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, prefixes: Sequence[Prefix], layer: int, scaling: float | None
) -> Tensor:
    """Attention to a prefix and to the tokens after it, one softmax over both, in float32.

    The queries of all rows of a prefix are multiplied with its keys at once.
    """
    _, heads, queries, d = q.shape
    kv_heads, out = k.shape[1], q.new_empty(*q.shape[:3], v.shape[3])
    for prefix in prefixes:
        keys, values = (x[0].float() for x in prefix.layers[layer])  # (kv heads, tokens, d)
        tokens = keys.shape[1]
        for rows in prefix.rows.split(max(1, SCORES // (heads * queries * (tokens + k.shape[2])))):
            asked = q[rows].reshape(len(rows), kv_heads, -1, d) * (d**-0.5 if scaling is None else scaling)
            flat = asked.transpose(0, 1).flatten(1, 2)  # (kv heads, rows x heads of each x queries, d)
            to_prefix = (flat @ keys.transpose(1, 2)).unflatten(1, (len(rows), -1)).transpose(0, 1)
            after = (asked @ k[rows].transpose(2, 3)).unflatten(2, (-1, queries))
            after = after.masked_fill(~mask[rows][:, :, None], -torch.inf).flatten(2, 3)
            weights = torch.cat([to_prefix, after], dim=-1).softmax(-1)
            of_prefix = weights[..., :tokens].transpose(0, 1).flatten(1, 2) @ values
            result = of_prefix.unflatten(1, (len(rows), -1)).transpose(0, 1) + weights[..., tokens:] @ v[rows]
            out[rows] = result.reshape(len(rows), heads, queries, -1)
    return out.transpose(1, 2)


def _for_every_head(x: Tensor, query: Tensor) -> Tensor:
    # Expand: with a mask, or without a GPU, enable_gqa falls back to the slow math kernel.
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def _packed_sdpa(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None, dropout: float
) -> Tensor:
    key, value = _for_every_head(key, query), _for_every_head(value, query)
    # Split once per sequence: the gradient of a slice of the whole batch is a zero tensor of the whole batch's size.
    lengths = [span[-1] - span[0] for span in layout.spans]
    sequences = zip(layout.spans, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    pieces = []
    for span, q, k, v in sequences:
        cuts = _query_cuts(span)
        for part, (first, last, causal) in zip(q.split([b - a for a, b, _ in cuts], 2), cuts, strict=True):
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


def _query_cuts(span: Span) -> list[tuple[int, int, bool]]:
    """Runs of query rows, counted from the start of the sequence, one for each SDPA call, and whether it is causal.

    A run sees the keys up to its own end. One from row 0 on needs no mask (causal and square). Later text rows need a
    mask, so their runs are short.
    """
    cuts: list[tuple[int, int, bool]] = []
    for rows in rows_of([span]):
        first, last = (row - span[0] for row in rows.queries)
        step = TEXT_ROWS if rows.causal and first else last - first
        cuts += [(row, min(row + step, last), rows.causal) for row in range(first, last, step)]
    return cuts


def _packed_flash(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None, dropout: float
) -> Tensor:
    if dropout:
        raise UserError("attention dropout is not supported by the flash kernel; set attention_dropout to 0")
    width = value.shape[3]
    value = F.pad(value, (0, key.shape[3] - width))  # the kernels want one width; without a difference it is `value`
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (L, heads, d)
    out = torch.empty_like(q)
    for call in layout.varlen:
        keys, values = k.index_select(0, call.key_index), v.index_select(0, call.key_index)
        result = layout.flash(q.index_select(0, call.query_index), keys, values, call, scaling)
        out = out.index_copy(0, call.query_index, result)
    return out[None, :, :, :width]


@lru_cache(1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _packed_flex(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None, dropout: float
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if dropout:
        raise ValueError("attention dropout is not supported by FlexAttention; set attention_dropout to 0")
    compiled = query.is_cuda and not torch.compiler.is_compiling()
    kernel = _compiled_flex() if compiled else flex_attention
    out = kernel(
        query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


KERNELS = {"sdpa": _packed_sdpa, "flex": _packed_flex, "flash": _packed_flash}
ALL_ATTENTION_FUNCTIONS.register(NAME, mixed_attention)
