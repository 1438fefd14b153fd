"""Encoded -> Batch: sequences end to end, with their boundaries. No padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixel_sail.layout import Span, varlen_calls
from pixel_sail.types import IGNORE_LABEL, UNPROMPTED, Batch, Encoded


def pack(sequences: Sequence[Encoded], seg_id: int, patch_id: int) -> Batch:
    """One packed batch of one or more sequences. `seg_id`, `patch_id`: ids of [SEG] and <vpatch>.

    Only a [SEG] with a label (in an answer) owns a mask.
    """
    starts = torch.tensor([0] + [len(s) for s in sequences]).cumsum(0).tolist()
    input_ids = torch.cat([s.input_ids for s in sequences])
    labels = torch.cat([s.labels for s in sequences])
    labelled = (labels != IGNORE_LABEL).nonzero()[:, 0]
    answers = torch.cat([torch.full_like(s.labels, IGNORE_LABEL) if s.is_text else s.labels for s in sequences])
    asked, seg_index = _before_answers(answers), _positions_of(labels == seg_id)
    weights = torch.cat([torch.full((len(s),), s.lm_weight) for s in sequences])
    prompt_ids = torch.cat([s.prompt_ids for s in sequences])
    spans = _spans([s.two_way_span for s in sequences], starts)
    return Batch(
        keys=tuple(s.key for s in sequences),
        seeds=tuple(s.seed for s in sequences),
        spans=spans,
        grids_hw=tuple(s.grid_hw for s in sequences),
        masks_per_sequence=tuple(len(s.masks) for s in sequences),
        input_ids=input_ids,
        position_ids=torch.cat([s.position_ids for s in sequences], dim=1),
        patches=torch.cat([s.patches for s in sequences]),
        patch_index=_positions_of(input_ids == patch_id),
        prompt_ids=prompt_ids,
        prompted=_positions_of(prompt_ids != UNPROMPTED),
        predict_index=labelled - 1,
        labels=labels[labelled],
        label_weights=weights[labelled],
        seg_index=seg_index,
        masks=tuple(s.masks for s in sequences),
        asked_index=asked,
        with_mask=_holds_any(asked, seg_index),
        image_spans=_spans([s.image_span for s in sequences], starts),
        varlen=varlen_calls(spans),
        dropped_turns=sum(s.dropped_turns for s in sequences),
        expert_features={
            name: tuple(s.expert_features.get(name, torch.empty(0)) for s in sequences)
            for name in sorted({name for s in sequences for name in s.expert_features})
        },
    )


def consecutive_groups(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of `sizes` in order, cut into groups of at most `limit` together; a larger size stands alone."""
    groups: list[list[int]] = []
    used = 0
    for i, size in enumerate(sizes):
        if groups and used + size <= limit:
            groups[-1].append(i)
            used += size
        else:
            groups.append([i])
            used = size
    return groups


def _spans(runs: Sequence[tuple[int, int]], starts: Sequence[int]) -> tuple[Span, ...]:
    """The run of each sequence, which counts from its start, among the packed tokens."""
    packed = zip(runs, starts, starts[1:], strict=False)
    return tuple((start, start + first, start + end, stop) for (first, end), start, stop in packed)


def _before_answers(labels: Tensor) -> Tensor:
    """The position of the last token before each answer, whose state predicts the first token of it."""
    labelled = labels != IGNORE_LABEL
    return _positions_of(labelled[1:] & ~labelled[:-1])


def _holds_any(asked: Tensor, seg_index: Tensor) -> Tensor:
    """(A,) float32: 1 for an answer that has a [SEG], else 0. `asked`: see `_before_answers`."""
    answer = torch.searchsorted(asked, seg_index) - 1
    return torch.zeros(len(asked)).index_fill_(0, answer, 1.0)


def _positions_of(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]
