"""How much each output token attends to the image tokens: added up layer by layer while the model generates.

Recording goes through transformers' attention interface. The model's own attention runs unchanged. Beside it, one row
of the softmax is computed again: the row of the last query of a forward pass, which predicts the next token. The rows
of all heads of all layers are added into one vector.

Memory: while a layer runs, its row of heads x keys float32 and a float32 copy of its keys; over the whole answer
4 x tokens x image tokens bytes. LLaVA-1.5-7B with an answer of 300 tokens keeps 0.7 MB (576 image tokens). What
`output_attentions=True` returns for it (32 layers of 32 heads) is 700 MB in bf16 for the 300 rows, and 1 GB more for
the rows of its 700 question tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pixel_sail.config import ConfigError
from pixel_sail.model.attention import NAME as MIXED
from pixel_sail.model.attention import Prefix

_RECORDED = "{}_recorded"  # the name of an attention implementation while it is recorded
BASES = ("sdpa", MIXED)
# The masks that transformers makes for it are those of sdpa. The mixed attention takes its masks unchanged.
ALL_MASK_ATTENTION_FUNCTIONS.register(_RECORDED.format("sdpa"), sdpa_mask)


class ImageAttention:
    """The running sum over the layers and heads of each forward pass, for one sequence (batch of 1)."""

    def __init__(self, image_tokens: Sequence[int]):
        """`image_tokens`: their positions in the whole sequence."""
        self._image_tokens = torch.as_tensor(image_tokens, dtype=torch.int64)
        self._rows: list[Tensor] = []  # (N,) float32 each, sums over as many heads as `_summed` says
        self._summed: list[int] = []
        self._first: nn.Module | None = None  # the attention of the first layer: where a forward pass begins
        self._length = 0  # tokens of the sequence so far

    def add(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, unread: bool
    ) -> None:
        """One layer of a pass: query (1, heads, queries, d), key (1, kv heads, keys, d), mask as attention gets it.

        `unread`: no token is predicted from this pass. It only counts for the positions of later tokens.
        """
        if query.shape[0] != 1:
            raise ValueError(f"attention is recorded for one sequence at a time, got a batch of {query.shape[0]}")
        if self._first is None or self._first is module:
            self._first = module
            self._length += query.shape[2]
            if not unread:
                self._rows.append(torch.zeros(len(self._image_tokens), device=query.device))
                self._summed.append(0)
        if unread:
            return
        probabilities = _last_row(query, key, mask, scaling)  # (heads, keys)
        # A sliding window keeps only the last keys. Image tokens before it get no attention.
        columns = self._image_tokens.to(query.device) - (self._length - key.shape[2])
        kept = columns >= 0
        self._rows[-1][kept] += probabilities[:, columns[kept]].sum(0)
        self._summed[-1] += query.shape[1]

    def mean(self, tokens: int) -> Tensor:
        """(tokens, N) float32 on the CPU: for each of the first output tokens, the mean over layers and heads.

        Raises ValueError if fewer rows were recorded than there are tokens.
        """
        if tokens > len(self._rows):
            raise ConfigError(
                f"{tokens} tokens were generated and attention was recorded for {len(self._rows)}: this model's "
                "decoder does not go through transformers' attention interface"
            )
        if not tokens:
            return torch.zeros(0, len(self._image_tokens))
        counts = torch.tensor(self._summed[:tokens], dtype=torch.float32)
        return torch.stack(self._rows[:tokens]).cpu() / counts[:, None]


@contextmanager
def record_attention(decoder: PreTrainedModel, base: str, recorder: ImageAttention) -> Iterator[None]:
    """Within the block, `decoder` runs the attention `base` ("sdpa" or our mixed one), and `recorder` gets its rows.

    Only modules that read the config of `decoder` are recorded, so a vision tower is left alone. Must not be nested.
    """
    if base not in BASES:
        raise ConfigError(f"attention is recorded with {' or '.join(BASES)}, not with {base!r}")
    run, name, before = ALL_ATTENTION_FUNCTIONS[base], _RECORDED.format(base), decoder.config._attn_implementation

    def recorded(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        if settings.get("softcap") is not None or settings.get("s_aux") is not None:
            raise ConfigError(f"{type(module).__name__} caps its scores or has attention sinks, which is not supported")
        packed = settings.get("layout") is not None  # our model reads an image in a pass of its own
        keys, mask = _with_prefix(key, attention_mask, settings.get("prefixes"), module)
        recorder.add(module, query, keys, mask, settings.get("scaling"), unread=packed)
        return run(module, query, key, value, attention_mask, **settings)

    ALL_ATTENTION_FUNCTIONS[name] = recorded
    try:
        decoder.set_attn_implementation(name)
        yield
    finally:
        decoder.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS[name]


def _with_prefix(
    key: Tensor, mask: Tensor | None, prefixes: Sequence[Prefix] | None, module: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """Keys and mask, with the image in front that our model's text continues and that its cache keeps apart."""
    if not prefixes:
        return key, mask
    (prefix,) = prefixes  # of the one sequence
    before = prefix.layers[module.layer_idx][0]
    return torch.cat([before, key], dim=2), torch.nn.functional.pad(mask, (before.shape[2], 0), value=True)


def _last_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """(heads, keys) float32: the last query's weight of each key. `mask`: bool (True = visible), or added to scores."""
    kv_heads, width = key.shape[1], query.shape[-1]
    grouped = query[0, :, -1].float().view(kv_heads, -1, width)  # the heads that share their keys
    scores = grouped @ key[0].float().transpose(1, 2) * (width**-0.5 if scaling is None else scaling)
    scores = scores.flatten(0, 1)
    if mask is not None:
        row = mask[0, :, -1]  # (1 or heads, keys)
        scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row
    return scores.softmax(-1)
