"""The Python API: a checkpoint folder in, text and masks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixel_sail.data.encode import Encoder
from pixel_sail.data.image import load_image
from pixel_sail.data.pack import pack
from pixel_sail.data.regions import Regions, draw_regions, name_regions, undrawn
from pixel_sail.data.templates import HIDDEN_EXPRESSION, NOT_DRAWN, question
from pixel_sail.model.generation import Generated, GenerationRequest, Sampling, generate
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import MAX_PROMPTS, PROMPTS, SEG
from pixel_sail.types import BadSample, Encoded

MAX_ROWS = 32  # questions answered in one batch; more go in several
MAX_IMAGE_TOKENS = 16_384  # images read in one forward pass: as many as have no more tokens together


@dataclass(frozen=True)
class Answer:
    """What the model says: text with [SEG] in place, and for each [SEG] a mask (H, W) bool of the image's size."""

    text: str
    masks: list[np.ndarray]


@dataclass(frozen=True)
class Chat:
    """Questions about one image (or none) with the same regions drawn on it.

    `image`: a path is opened as a user's photo, turned as its EXIF says. `regions`: masks (H, W) bool, boxes, points
    or scribbles (pixel_sail.data.regions), in order or by K of <PromptK>. A question names them `<Prompt0>`, ..., or
    has a `<region>` for each, or, where it does neither, gets their names put in front.
    """

    image: Image.Image | Path | str | None
    questions: Sequence[str]
    regions: Regions = ()


class Predictor:
    """A model, its tokenizer and the encoding of its training. `images_encoded` counts the images that were read."""

    def __init__(self, model: PixelSail, tokenizer: PreTrainedTokenizerBase):
        self.model = model
        config = model.config
        self.encoder = Encoder(tokenizer, config.architecture, config.chat_format, hide=config.hide)
        self.images_encoded = 0

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
        """Loads an export folder. `device`: auto | cpu | cuda[:n]; `precision`: auto (bf16 on a GPU) | bf16 | fp32."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = precision == "bf16" or (precision == "auto" and device.startswith("cuda"))
        model = PixelSail.from_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
        return cls(model.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def segment(
        self, image: Image.Image | Path | str, expressions: str | list[str], regions: Regions = ()
    ) -> list[Answer]:
        """Segments what each expression names: one answer each. The image is encoded once for all of them.

        An expression may be relative to regions: "the mug left of <Prompt0>"; see `Chat`.
        """
        expressions = [expressions] if isinstance(expressions, str) else expressions
        for expression in expressions:
            if not expression.strip():
                raise ValueError("the expression is empty; say what is to be segmented")
        hidden = self.model.config.hide == "text"
        asked = [HIDDEN_EXPRESSION if hidden else expression for expression in expressions]
        return self.chat(image, [question(expression, self.model.config.question) for expression in asked], regions)

    def chat(
        self,
        image: Image.Image | Path | str | None,
        questions: str | list[str],
        regions: Regions = (),
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """One answer to each question about one image; see `Chat`.

        A question about a `<PromptK>` that is not drawn is answered as such, without the model. Raises ValueError
        (BadSample is one) for an unreadable image, a bad region, or an empty question.
        """
        questions = [questions] if isinstance(questions, str) else questions
        return self.chat_many([Chat(image, questions, regions)], sampling)[0]

    def chat_many(self, chats: Sequence[Chat], sampling: Sampling | None = None) -> list[list[Answer]]:
        """The answers of several chats, each image (with its regions) read once and all questions in batches."""
        prepared = [self._prepare(chat) for chat in chats]
        found: list[list[Answer]] = [[] for _ in chats]
        for group in _groups([len(one.prefix) for one in prepared]):
            for i, answers in zip(group, self._answer([prepared[i] for i in group], sampling), strict=True):
                found[i] = answers
        return found

    def _prepare(self, chat: Chat) -> _Prepared:
        if not chat.questions or not all(text.strip() for text in chat.questions):
            raise ValueError("there is an empty question; ask something")
        given = chat.image
        image = load_image(Path(given), orient=True) if isinstance(given, str | Path) else given
        if image is None and len(chat.regions):
            raise BadSample(f"{len(chat.regions)} regions are drawn, but there is no image")
        size = (image.height, image.width) if image is not None else (1, 1)
        drawn = draw_regions(chat.regions, size)
        questions = [name_regions(text, drawn) for text in chat.questions]
        prefix = self.encoder.image_prefix(image, drawn, "the image")
        self.images_encoded += image is not None
        return _Prepared(prefix, questions, [undrawn(text, drawn) for text in questions], size)

    def _answer(self, chats: list[_Prepared], sampling: Sampling | None) -> list[list[Answer]]:
        """Answers of chats whose images are read together."""
        sampling, tokens = sampling or Sampling(), self.encoder.tokens
        with_image = [i for i, chat in enumerate(chats) if len(chat.prefix)]
        prefixes = None
        if with_image:
            prefixes = pack([chats[i].prefix for i in with_image], tokens.seg, tokens.vision_patch).to(
                self.model.device
            )
        requests, places = [], []
        for i, chat in enumerate(chats):
            for j, text in enumerate(chat.questions):
                if not chat.undrawn[j]:
                    image = with_image.index(i) if i in with_image else None
                    requests.append(GenerationRequest(self.encoder.question_ids(text), image))
                    places.append((i, j))
        ended = self._ends_in(sampling.stop_strings) if sampling.stop_strings else None
        stops = (self.encoder.end_ids[0],)
        generated = generate(self.model, prefixes, requests, tokens.seg, stops, sampling, ended, MAX_ROWS)
        given = dict(zip(places, generated, strict=True))
        return [
            [
                Answer(_not_drawn(chat.undrawn[j]), [])
                if chat.undrawn[j]
                else self._read(given[i, j], chat.size_hw, sampling.stop_strings)
                for j in range(len(chat.questions))
            ]
            for i, chat in enumerate(chats)
        ]

    def _ends_in(self, stop_strings: tuple[str, ...]):
        tokenizer = self.encoder.tokenizer
        return lambda token_ids: any(stop in tokenizer.decode(token_ids) for stop in stop_strings)

    def _read(self, generated: Generated, size_hw: tuple[int, int], stop_strings: tuple[str, ...]) -> Answer:
        text = self.encoder.answer_text(generated.token_ids)
        for stop in stop_strings:
            text = text.partition(stop)[0]
        logits = generated.mask_logits[: text.count(SEG)]
        if not len(logits):
            return Answer(text, [])
        full = F.interpolate(logits[None], size=size_hw, mode="bilinear", align_corners=False)[0]
        return Answer(text, list((full > 0).cpu().numpy()))


@dataclass(frozen=True)
class _Prepared:
    """A chat as the model takes it: the image block (empty without an image), the questions with regions named."""

    prefix: Encoded
    questions: list[str]
    undrawn: list[list[int]]  # of each question, the regions that it names and nobody drew
    size_hw: tuple[int, int]


def _not_drawn(ks: list[int]) -> str:
    return " ".join(NOT_DRAWN.format(prompt=PROMPTS[k] if k < MAX_PROMPTS else f"<Prompt{k}>") for k in ks)


def _groups(lengths: list[int]) -> list[list[int]]:
    """Runs of indices whose lengths sum to at most MAX_IMAGE_TOKENS, or single ones."""
    groups: list[list[int]] = []
    used = 0
    for i, length in enumerate(lengths):
        if groups and used + length <= MAX_IMAGE_TOKENS:
            groups[-1].append(i)
            used += length
        else:
            groups.append([i])
            used = length
    return groups
