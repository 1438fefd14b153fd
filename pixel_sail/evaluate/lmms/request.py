"""What a task of lmms-eval gives, in terms of the Predictor: how to decode, and the one image of a question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from pixel_sail.errors import UserError
from pixel_sail.model.generation import Sampling

PLACEHOLDER = "<image>"  # some tasks write it where the image belongs; here the image comes first


def sampling_of(kwargs: Mapping[str, Any], max_new_tokens: int) -> Sampling:
    """How to decode, from the generation_kwargs of a task or of --gen_kwargs.

    `max_new_tokens` is for tasks that set none. Keys that are meant for other models are ignored, as in every model of
    lmms-eval. Raises UserError for beams, which are not there and would change the answers, and values out of range.
    """
    sampled = kwargs.get("do_sample", True)
    temperature = float(kwargs.get("temperature") or (1.0 if kwargs.get("do_sample") else 0.0)) if sampled else 0.0
    if (kwargs.get("num_beams") or 1) != 1:
        raise UserError(f"num_beams={kwargs['num_beams']}: there is no beam search; use --gen_kwargs num_beams=1")
    until = kwargs.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    limit = int(kwargs.get("max_new_tokens") or max_new_tokens)
    top_k, top_p = (kwargs.get("top_k"), kwargs.get("top_p")) if temperature > 0 else (None, None)
    try:
        return Sampling(
            limit,
            temperature,
            stop_strings=tuple(stop for stop in stops if stop),
            top_k=max(0, top_k or 0),  # -1: all, as in other libraries
            top_p=1.0 if top_p is None else top_p,
        )
    except ValueError as error:
        raise UserError(f"--gen_kwargs: {error}") from None


def one_image(visuals: Sequence[Any] | None, join: bool) -> Image.Image | None:
    """The image of a question; None for a question without one.

    Several images are put into one if `join`, row by row, in a grid as square as their number allows. Raises UserError
    for several images without `join`, and for anything that is no image, such as a video.
    """
    visuals = list(visuals or ())
    for visual in visuals:
        if not isinstance(visual, Image.Image):
            kind = type(visual).__name__
            raise UserError(f"it shows the model a {kind} (video or sound?); this model sees images only")
    if len(visuals) > 1 and not join:
        raise UserError(
            f"it shows {len(visuals)} images; this model reads one for each question. To put them side by side into "
            "one image, add images=join to --model_args"
        )
    return _grid(visuals) if len(visuals) > 1 else visuals[0] if visuals else None


def _grid(images: list[Image.Image]) -> Image.Image:
    """Cells have the size of the largest image; a smaller one is in the upper left corner of its cell, on black."""
    columns = math.ceil(math.sqrt(len(images)))
    width, height = max(image.width for image in images), max(image.height for image in images)
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        grid.paste(image.convert("RGB"), (i % columns * width, i // columns * height))
    return grid
