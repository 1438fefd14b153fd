"""What an adapter returns for an answer, and how Hugging Face models answer while their attention is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from pixel_sail.studies.attend_segment.attention import ImageAttention, record_attention

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the stored image


@dataclass(frozen=True)
class ImageTokens:
    """Where the image tokens lie in the sequence, and on the image."""

    positions: Tensor  # (h * w,) int64 in the sequence, row by row
    grid_hw: tuple[int, int]
    box: Box  # what the grid covers: reaches beyond the image where it was padded


@dataclass(frozen=True)
class AttendedAnswer:
    """An answer with the attention of each of its tokens to the image. The stop token is not part of it."""

    text: str
    spans: list[tuple[int, int]]  # of each token its characters [first, end) in `text`
    maps: Tensor  # (tokens, h, w) float32, mean attention over layers and heads; CPU
    box: Box


class Adapter(Protocol):
    """A model that answers a prompt about one image while its attention is recorded."""

    family: str

    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> AttendedAnswer:
        """The greedy answer. Raises ValueError for an image or prompt that the model cannot take."""
        ...


@torch.inference_mode()
def generate_with_attention(
    model: PreTrainedModel, inputs: dict[str, Any], image_tokens: ImageTokens, max_new_tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy, cached generation from a processor's output (a batch of 1): the new tokens and their attention maps.

    Returns the tokens without stop and padding, and (tokens, h, w) float32 on the CPU.
    """
    recorder = ImageAttention(image_tokens.positions)
    with record_attention(model.get_decoder(), "sdpa", recorder):
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    ids = ids[: first_stop(ids, _stop_ids(model))]
    return ids, recorder.mean(len(ids)).view(len(ids), *image_tokens.grid_hw)


def first_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> int:
    """The number of tokens before the first stop token."""
    return next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))


def _stop_ids(model: PreTrainedModel) -> list[int]:
    stop = model.generation_config.eos_token_id
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


def character_spans(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the tokens, and for each token its characters [first, end) in the text.

    A token that is part of a character (bytes of UTF-8) gets the whole character.
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
