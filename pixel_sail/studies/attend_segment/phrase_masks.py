"""Attend-and-segment: from the attention of an answer to a point and masks for each of its noun phrases.

PixFoundation (arXiv 2502.04192), for models that were never trained to segment. For each output token: its attention to
the image tokens, averaged over layers and heads, minus the mean over the output tokens. For a phrase: the mean over its
tokens, scaled up bicubically to the image. The maximum is the point that prompts a segmenter.

The attention of a token is that of the query that predicts it. The stop token is not an output token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pixel_sail.data.masks import encode_mask
from pixel_sail.studies.attend_segment.generate import Adapter, AttendedAnswer, Box
from pixel_sail.studies.attend_segment.phrases import Chunker
from pixel_sail.studies.attend_segment.segmenters import Point, Segmenter

MAX_MASKS = 3
Record = dict[str, Any]  # a line of phrases.jsonl


def attend_and_segment(
    adapter: Adapter, segmenter: Segmenter, chunker: Chunker, image: Image.Image, prompt: str, max_new_tokens: int
) -> Record:
    """The model's answer to `prompt`, and the masks of its noun phrases.

    {prompt, output, tokens: n, phrases: [{text, tokens: [first, end), point_xy, masks: up to 3 RLE, scores}]}; points
    in pixels of the image, masks of its size, in the segmenter's own order.
    """
    answer = adapter.answer(image, prompt, max_new_tokens)
    named = []
    for first, end in chunker(answer.text):
        tokens = tokens_of(answer.spans, first, end)
        if tokens is not None:
            named.append((answer.text[first:end], tokens))
    points = phrase_points(answer, [tokens for _, tokens in named], image.size)
    masks_by_point = segmenter.segment(image, points) if points else []
    phrases = [
        {
            "text": text,
            "tokens": list(tokens),
            "point_xy": list(point),
            "masks": [encode_mask(mask) for mask in point_masks.masks[:MAX_MASKS]],
            "scores": [round(float(score), 4) for score in point_masks.scores[:MAX_MASKS]],
        }
        for (text, tokens), point, point_masks in zip(named, points, masks_by_point, strict=True)
    ]
    return {"prompt": prompt, "output": answer.text, "tokens": len(answer.spans), "phrases": phrases}


def tokens_of(spans: Sequence[tuple[int, int]], first: int, end: int) -> tuple[int, int] | None:
    """[first, end) of the tokens that share a character with [first, end) of the text; None if no token does."""
    inside = [i for i, (start, stop) in enumerate(spans) if start < end and stop > first]
    return (inside[0], inside[-1] + 1) if inside else None


def phrase_points(answer: AttendedAnswer, phrases: Sequence[tuple[int, int]], size_wh: tuple[int, int]) -> list[Point]:
    """The centre of the pixel that each phrase, a run of tokens, attends to most."""
    centred = centre(answer.maps)
    points = []
    for first, end in phrases:  # one at a time: at full size a map is as large as the image
        full = resize_to_image(centred[first:end].mean(0), answer.box, size_wh)
        row, column = divmod(int(full.argmax()), full.shape[1])
        points.append((column + 0.5, row + 0.5))
    return points


def centre(maps: Tensor) -> Tensor:
    """(tokens, h, w) minus their mean. A single token is returned unchanged, since minus its mean it would be 0."""
    return maps - maps.mean(0) if len(maps) > 1 else maps


def resize_to_image(grid: Tensor, box: Box, size_wh: tuple[int, int]) -> Tensor:
    """(h, w) that covers `box` -> (H, W) of the image, bicubic. Cells beyond the image are cut off."""
    left, top, right, bottom = (round(edge) for edge in box)
    covered = F.interpolate(grid[None, None], size=(bottom - top, right - left), mode="bicubic", align_corners=False)
    full = torch.full((size_wh[1], size_wh[0]), -torch.inf)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, size_wh[0]), min(bottom, size_wh[1])
    full[y0:y1, x0:x1] = covered[0, 0, y0 - top : y1 - top, x0 - left : x1 - left]
    return full
