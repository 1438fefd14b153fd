"""What an adapter says of one answer, and answers of Hugging Face models with their attention to the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from pixel_sail.studies.attend_segment.attention import ImageAttention, watch

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the stored image


@dataclass(frozen=True)
class Place:
    """Where the image tokens lie in the sequence, and on the image."""

    tokens: Tensor  # (h * w,) int64, row by row
    grid_hw: tuple[int, int]
    box: Box  # what the grid covers: reaches beyond the image where it was padded


@dataclass(frozen=True)
class Watched:
    """An answer, token by token, without its stop token."""

    text: str
    spans: list[tuple[int, int]]  # of each token its characters [first, end) in `text`
    maps: Tensor  # (tokens, h, w) float32, mean attention over layers and heads; CPU
    box: Box


class Adapter(Protocol):
    """A model that is asked about one image and watched while it answers."""

    family: str

    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> Watched:
        """The greedy answer. Raises ValueError for an image or prompt that the model cannot take."""
        ...


@torch.inference_mode()
def generate_watched(
    model: PreTrainedModel, inputs: dict[str, Any], place: Place, max_new_tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy, cached generation from what a processor gives (a batch of 1): the new tokens and their maps.

    Returns the tokens without stop and padding, and (tokens, h, w) float32 on the CPU.
    """
    recorder = ImageAttention(place.tokens)
    with watch(model.get_decoder(), "sdpa", recorder):
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    ids = ids[: first_stop(ids, _stop_ids(model))]
    return ids, recorder.mean(len(ids)).view(len(ids), *place.grid_hw)


def first_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> int:
    """Tokens before the first stop token."""
    return next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))


def _stop_ids(model: PreTrainedModel) -> list[int]:
    stop = model.generation_config.eos_token_id
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


def character_spans(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the tokens, and of each token its characters [first, end) in it.

    A token that is part of a character (bytes of UTF-8) has the whole of it.
    """
    text, first, pending, spans = decode(ids), 0, 0, []
    for i in range(len(ids)):
        shown = decode(ids[: i + 1])
        if shown.endswith("�") and not text.startswith(shown):  # the character is not complete yet
            pending += 1
            continue
        end = min(max(len(shown), first), len(text))
        spans += [(first, end)] * (pending + 1)
        first, pending = end, 0
    return text, spans + [(first, len(text))] * pending
