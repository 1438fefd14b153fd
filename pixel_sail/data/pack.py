"""Encoded -> Batch: sequences end to end, with their boundaries. No padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixel_sail.layout import Span, varlen_calls
from pixel_sail.types import IGNORE_LABEL, UNPROMPTED, Batch, Clicks, Encoded, ImageBlock, Masks

NO_IMAGE = ImageBlock((0, 0), (0, 0), Masks(torch.empty(0, dtype=torch.int32), 0, (0, 0)), ())


def pack(sequences: Sequence[Encoded], seg_id: int, patch_id: int) -> Batch:
    """One packed batch of one or more sequences. `seg_id`, `patch_id`: ids of [SEG] and <vpatch>.

    Only a [SEG] with a label (in an answer) owns a mask.
    """
    starts = torch.tensor([0] + [len(s) for s in sequences]).cumsum(0).tolist()
    input_ids = torch.cat([s.input_ids for s in sequences])
    labels = torch.cat([s.labels for s in sequences])
    labelled = (labels != IGNORE_LABEL).nonzero()[:, 0]
    answers = torch.cat([torch.full_like(s.labels, IGNORE_LABEL) if s.is_text else s.labels for s in sequences])
    images = [s.images or (NO_IMAGE,) for s in sequences]
    blocks = [image for of_sequence in images for image in of_sequence]
    seeds = [s.seed + n for s, of_sequence in zip(sequences, images, strict=True) for n in range(len(of_sequence))]
    features = [
        of_image
        for s, of_sequence in zip(sequences, images, strict=True)
        for of_image in s.expert_features or ({},) * len(of_sequence)
    ]
    asked, seg_index = _before_answers(answers), _by_image(_positions_of(labels == seg_id), images)
    weights = torch.cat([torch.full((len(s),), s.lm_weight) for s in sequences])
    prompt_ids = torch.cat([s.prompt_ids for s in sequences])
    spans = _spans([s.two_way_spans for s in sequences], starts)
    return Batch(
        keys=tuple(s.key for s in sequences),
        seeds=tuple(seeds),
        spans=spans,
        grids_hw=tuple(image.grid_hw for image in blocks),
        masks_per_image=tuple(len(image.masks) for image in blocks),
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
        masks=tuple(image.masks for image in blocks),
        asked_index=asked,
        with_mask=_holds_any(asked, seg_index),
        image_spans=_spans([[image.span for image in of_sequence] for of_sequence in images], starts),
        varlen=varlen_calls(spans),
        dropped_turns=sum(s.dropped_turns for s in sequences),
        expert_features={
            name: tuple(of_image.get(name, torch.empty(0)) for of_image in features)
            for name in sorted({name for of_image in features for name in of_image})
        },
        clicks=_clicks(sequences, starts),
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


def _spans(runs: Sequence[Sequence[tuple[int, int]]], starts: Sequence[int]) -> tuple[Span, ...]:
    """The runs of each sequence, which count from its start, among the packed tokens. Of several none is empty."""
    spans = []
    for of_sequence, start, stop in zip(runs, starts, starts[1:], strict=False):
        kept = [run for run in of_sequence if run[1] > run[0]] or [(0, 0)]
        spans.append((start, *(start + edge for run in kept for edge in run), stop))
    return tuple(spans)


def _by_image(segs: Tensor, images: Sequence[Sequence[ImageBlock]]) -> Tensor:
    """The positions `segs` of the [SEG]s, in sequence order, as the images have their masks."""
    if all(len(of_sequence) == 1 for of_sequence in images):
        return segs
    order: list[int] = []
    for of_sequence in images:
        before = len(order)
        order += [before + n for image in of_sequence for n in image.segs]
    return segs[torch.tensor(order, dtype=torch.int64)]


def _clicks(sequences: Sequence[Encoded], starts: Sequence[int]) -> Clicks:
    """The clicks of all sequences, among the packed tokens and patches. `starts`: the first token of each sequence."""
    first_patches = torch.tensor([0] + [len(s.patches) for s in sequences]).cumsum(0).tolist()
    own = [s.clicks for s in sequences]
    return Clicks(
        tokens=torch.cat([c.tokens + start for c, start in zip(own, starts, strict=False)]),
        patches=torch.cat([c.patches + first for c, first in zip(own, first_patches, strict=False)]),
        values=torch.cat([c.values for c in own]),
    )


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
