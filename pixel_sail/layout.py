"""Which token of a packed batch sees which: the rule of the mixed attention, as runs of rows and as index tensors.

Each token sees itself and the tokens before it in its sequence. In an image block, all tokens from `<vision>` to
`</vision>` also see each other. Sequences of one packed batch never see each other.

A sequence has any number of image blocks, one after the other, before its text. So a token of the second image sees
the whole first image and the whole second one, and a token of the first image sees nothing of the second. The order of
the images is part of the question. Positions go on from block to block: the first token of a block, like the first
token of the text, stands one after the last token before it, on all three axes. Within its block each patch has its
row and column (data/encode.py), so that images of a sequence never share a position.

A few kernel calls are enough: the rows of each image x all keys up to its end (full), text rows x all keys (causal,
aligned at the bottom right), and the rows of tokens before an image, if there are any (causal). Where images are causal
(architecture.image_attention), no run of tokens sees itself both ways, as in a sequence of text alone.

The tensors are built where a batch is packed, in a worker of the loader, and travel with it: built on the way through
the model, each would make the GPU wait for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of a sequence in the packed batch: (start, first image token, one past the last image token, stop), with two numbers
# more for each further image: (start, first, past, first, past, ..., stop). Without an image: one that is empty.
Span = tuple[int, ...]


def blocks_of(span: Span) -> list[tuple[int, int]]:
    """The image blocks of a sequence, (first token, one past the last), in order; without an image an empty one."""
    return list(zip(span[1:-1:2], span[2:-1:2], strict=True))


def attended_pairs(tokens: int, *image_tokens: int) -> int:
    """Pairs of a token and a token that it attends to, in one sequence: what attention costs, see train/flops.py.

    L tokens have L (L + 1) / 2 causal pairs; the m tokens of each image block, which attend to the block both ways,
    have m (m - 1) / 2 more.
    """
    return tokens * (tokens + 1) // 2 + sum(m * (m - 1) // 2 for m in image_tokens)


def two_way_run(image: tuple[int, int], attention: str) -> tuple[int, int]:
    """Of the run of tokens that is an image, those that see each other, by architecture.image_attention."""
    start, stop = image
    if attention == "causal" or start == stop:
        return start, start
    return (start + 1, stop - 1) if attention == "patches" else image


@dataclass(frozen=True)
class Rows:
    """Query rows of one kernel call: a run of queries, and the run of keys that the last query sees."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    causal: bool  # aligned at the bottom right: query i sees all but the last (n_queries - 1 - i) keys


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


def rows_of(spans: Sequence[Span]) -> list[Rows]:
    """The kernel calls of each sequence, in token order."""
    calls = []
    for span in spans:
        start = place = span[0]
        stop = span[-1]
        for first, past in blocks_of(span):
            calls += [
                Rows((place, first), (start, first), causal=True),
                Rows((first, past), (start, past), causal=False),
            ]
            place = past
        calls.append(Rows((place, stop), (start, stop), causal=True))
    return [rows for rows in calls if rows.queries[1] > rows.queries[0]]


def varlen_calls(spans: Sequence[Span]) -> tuple[VarlenCall, ...]:
    """One varlen call for all full rows and one for all causal rows, on the CPU."""
    rows = rows_of(spans)
    groups = [[r for r in rows if not r.causal], [r for r in rows if r.causal]]
    return tuple(_varlen_call(group) for group in groups if group)


def _varlen_call(group: list[Rows]) -> VarlenCall:
    queries, keys = [r.queries for r in group], [r.keys for r in group]

    def index(runs: list[tuple[int, int]]) -> Tensor:
        return torch.cat([torch.arange(*run) for run in runs])

    def cumulative(runs: list[tuple[int, int]]) -> Tensor:
        lengths = torch.tensor([0] + [stop - start for start, stop in runs], dtype=torch.int32)
        return lengths.cumsum(0, dtype=torch.int32)

    longest = [max(stop - start for start, stop in runs) for runs in (queries, keys)]
    return VarlenCall(index(queries), index(keys), cumulative(queries), cumulative(keys), *longest, group[0].causal)


def attended(spans: Sequence[Span]) -> int:
    """Pairs of a token and a token that it attends to, in a packed batch."""
    return sum(attended_pairs(span[-1] - span[0], *(past - first for first, past in blocks_of(span))) for span in spans)


def visible_keys(spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """First and one past the last key that each token sees, (L,) int32 each: the keys of a token are one run.

    Neither ever falls from a token to the next.
    """
    length = spans[-1][-1]
    first, stop = torch.empty(length, dtype=torch.int32), torch.arange(1, length + 1, dtype=torch.int32)
    for span in spans:
        first[span[0] : span[-1]] = span[0]
        for image_start, image_stop in blocks_of(span):
            stop[image_start:image_stop] = image_stop
    return first, stop
