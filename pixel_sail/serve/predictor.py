"""The Python API: a checkpoint folder in, text and masks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedTokenizerBase

from pixel_sail.data.encode import Encoder
from pixel_sail.data.pack import consecutive_groups, pack
from pixel_sail.data.regions import Regions, draw_regions, images_of, name_regions, names_region, undrawn
from pixel_sail.data.templates import HIDDEN_EXPRESSION, NOT_DRAWN, instance_questions, question
from pixel_sail.data.zoom import crop, from_crop, zoom_box
from pixel_sail.devices import choose_device, choose_dtype
from pixel_sail.errors import UserError
from pixel_sail.folders.find import find_export
from pixel_sail.model.adapter import split_adapter
from pixel_sail.model.configuration import load_own_config, load_own_tokenizer
from pixel_sail.model.generation import Generated, GenerationRequest, Sampling, check_has_presence, generate
from pixel_sail.model.generation_config import read_generation_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.images import ImageInput, as_images
from pixel_sail.serve.instances import ANSWER_TOKENS, distinct
from pixel_sail.tokens import MAX_PROMPTS, PROMPTS, SEG
from pixel_sail.types import RLE, BadSample, Encoded

if TYPE_CHECKING:
    from transformers.generation import BaseStreamer

MAX_ROWS = 32  # questions in one batch at most; more are answered in several batches
MAX_IMAGE_TOKENS = 16_384  # of the images that are encoded in one forward pass; a larger image goes alone


@dataclass(frozen=True)
class Answer:
    """An answer of the model: text with [SEG] in place, and for each [SEG] a mask (H, W) bool of the image's size.

    Of several images it is the size of the one that the masks are on.

    `scores`, of each mask: the IoU with the truth to expect of it, 0..1; the IoU is 0 where nothing is there.
    `presence`: the probability that the question is to be answered with a mask: that what is to be segmented is there.
    A presence below `Sampling.min_presence` empties the masks, and leaves scores and probabilities as they are.
    Both are None for a model without a score head (architecture.mask_scores), and where the model was not asked because
    a region is not drawn. `probabilities`, of each mask: those of its pixels, (H, W) float32; None unless asked for.
    """

    text: str
    masks: list[np.ndarray]
    scores: list[float] | None = None
    presence: float | None = None
    probabilities: list[np.ndarray] | None = None

    def without_repeats(self) -> Answer:
        """The answer without masks that show an object again (see serve/instances.py), and without their [SEG]."""
        kept = distinct(self.masks, self.scores)
        if len(kept) == len(self.masks):
            return self
        masks, scores, probabilities = (
            None if values is None else [values[i] for i in kept]
            for values in (self.masks, self.scores, self.probabilities)
        )
        before = self.text.split(SEG)  # before[i]: the words between [SEG] i - 1 and [SEG] i
        text = before[0] + SEG.join(["", *(before[i] for i in kept[1:]), before[-1]])
        return replace(self, text=text, masks=masks, scores=scores, probabilities=probabilities)


@dataclass(frozen=True)
class Chat:
    """Questions about one image (or no image), with the same regions drawn on it; or about several images together.

    `image`: see `as_image`; or a list of images, which the model reads in this order (frames of a clip, for example).
    `history`: the turns (question, answer) before, the same for each question. `regions`: masks (H, W) bool, boxes,
    points or scribbles (pixel_sail.data.regions), in order or by K of <PromptK>, on the first image, or `OnImage`. A
    question names them `<Prompt0>`, ..., or has a `<region>` for each; if it does neither, their names are put in front
    of it. `streamer` receives the only question and its answer, token by token; see `Predictor.chat`. `masks_on`: the
    number of the image that the masks of an answer are on, from 0, or one for each question; -1 is the last.
    `only_named`: a question that names no region is asked as if none were drawn, not about all of them.
    """

    image: ImageInput | Sequence[ImageInput] | None
    questions: Sequence[str]
    regions: Regions = ()
    history: Sequence[tuple[str, str]] = ()
    streamer: BaseStreamer | None = None
    masks_on: int | Sequence[int] = -1
    only_named: bool = False


class Predictor:
    """A model, its tokenizer and the encoding it was trained with. `images_encoded`: how many images it has encoded.

    `zoom`: whether `segment` looks again at what is small where a call does not say.

    `autocast`: the model has float32 weights, and computes in bf16. `sampling`: where a call gives none.
    `stop_ids`: tokens that end an answer besides that of the chat format.
    """

    def __init__(
        self,
        model: PixelSail,
        tokenizer: PreTrainedTokenizerBase,
        autocast: bool = False,
        sampling: Sampling | None = None,
        stop_ids: Sequence[int] = (),
    ):
        self.model = model
        self.autocast = autocast
        self.sampling = sampling or Sampling()
        config = model.config
        self.encoder = Encoder(
            tokenizer, config.architecture, config.chat_format, hide=config.hide, chat_pieces=config.chat_pieces
        )
        self.stop_ids = tuple(stop_ids)
        self.images_encoded, self.zoom = 0, False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: str = "auto",
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        adapter: str | Path | None = None,
    ) -> Predictor:
        """Loads an export folder, that of a run, or a hub repository "org/name" (docs/huggingface.md).

        `device`: auto | cpu | cuda[:n]; `precision`: auto | bf16 | fp32; auto is bf16 on a GPU. Raises UserError for a
        device that is not there, before anything is loaded, and for a folder that is damaged. generation_config.json in
        the folder says how answers are made where a call gives no `sampling` (pixel_sail/model/generation_config.py).
        An adapter folder of tools/export.py --adapter is taken too, or given as `adapter` beside its model.
        """
        place = choose_device(device)
        folder = find_export(folder, revision, local_files_only)
        dtype, base = choose_dtype(precision, place), split_adapter(folder)[0]
        tokenizer = load_own_tokenizer(base, load_own_config(base))  # before the weights, which take longest
        sampling, stop_ids = read_generation_config(base)
        model = PixelSail.from_pretrained(folder, dtype=dtype, device_map=place, adapter=adapter)
        return cls(model, tokenizer, sampling=sampling, stop_ids=stop_ids)

    def set_min_presence(self, least: float | None) -> None:
        """Sets `Sampling.min_presence` where a call gives no sampling; None leaves what generation_config.json says.

        Raises UserError for a model without a score head.
        """
        if least is None:
            return
        check_has_presence(self.model.config.architecture, least)
        self.sampling = replace(self.sampling, min_presence=least)

    def segment(
        self,
        image: ImageInput | Sequence[ImageInput],
        expressions: str | list[str],
        regions: Regions = (),
        soft: bool = False,
        instances: bool = False,
        zoom: bool | None = None,
        masks_on: int | Sequence[int] = -1,
    ) -> list[Answer]:
        """Segments what each expression names. One answer an expression; the image is encoded once for all of them.

        An expression may be relative to regions: "the mug left of <Prompt0>"; one that names none is asked as if none
        were drawn. See `Chat`, also for several images and `masks_on`. `soft`: with probabilities.

        `instances`: every object that an expression names, "mug", has a mask of its own, from left to right; without
        one there is no mask, and the text says so. Of a mask that shows an object again, one stays (`without_repeats`).
        Models learn this from the source `concepts`; others may give one mask for all.

        `zoom`: a small object that has been found is looked at again, in a crop beside the whole image; the model must
        have been trained with data.zoom (docs/use.md). Not together with `instances`.
        """
        expressions = [expressions] if isinstance(expressions, str) else expressions
        questions = self.segment_questions(expressions, instances)
        if instances and zoom:
            raise UserError("zoom looks again at one object, and instances finds several: give one of them")
        chat = Chat(image, questions, regions, masks_on=masks_on, only_named=True)
        if instances:
            return [answer.without_repeats() for answer in self.chat_many([chat], self.instance_sampling(), soft)[0]]
        return (self.zoomed if (self.zoom if zoom is None else zoom) else self.chat_many)([chat], soft=soft)[0]

    def instance_sampling(self) -> Sampling:
        """That of the model, with room for many masks in one answer."""
        return replace(self.sampling, max_new_tokens=max(self.sampling.max_new_tokens, ANSWER_TOKENS))

    def segment_questions(self, expressions: Sequence[str], instances: bool = False) -> list[str]:
        """The question by which the model segments each expression, for `Chat`. Raises UserError for an empty one.

        `instances`: the one that asks for a mask of each object.
        """
        for expression in expressions:
            if not expression.strip():
                raise UserError("the expression is empty; say what to segment")
        hidden = self.model.config.hide == "text"
        shown = [HIDDEN_EXPRESSION if hidden else expression for expression in expressions]
        template = self.model.config.question
        if instances:
            template = instance_questions([template])[0]
        return [question(expression, template) for expression in shown]

    def chat(
        self,
        image: ImageInput | None,
        questions: str | list[str],
        regions: Regions = (),
        sampling: Sampling | None = None,
        history: Sequence[tuple[str, str]] = (),
        streamer: BaseStreamer | None = None,
        soft: bool = False,
        masks_on: int | Sequence[int] = -1,
    ) -> list[Answer]:
        """One answer to each question about one image, after the turns of `history`; see `Chat`. `soft`: see `Answer`.

        If a question names a `<PromptK>` that is not drawn, the answer says so, without the model. Raises UserError
        (or its subclasses BadSample and NotFinite) for an unreadable image, a bad region, or an empty question.

        `streamer` follows the answer to one question while it is made, as those of transformers' `generate` do, for
        example TextIteratorStreamer(predictor.encoder.tokenizer, skip_prompt=True): `put` receives the question's
        tokens, then each token of the answer, as CPU tensors (N,) int64. `end` is called in any case, also before an
        error is raised. The tokens of a stop string are streamed too.
        """
        questions = [questions] if isinstance(questions, str) else questions
        try:
            return self.chat_many([Chat(image, questions, regions, history, streamer, masks_on)], sampling, soft)[0]
        finally:
            if streamer is not None:
                streamer.end()

    def chat_many(
        self, chats: Sequence[Chat], sampling: Sampling | None = None, soft: bool = False
    ) -> list[list[Answer]]:
        """The answers of several chats. Questions are batched.

        Each image is encoded once with its regions, and once without them for the questions of `Chat.only_named`.
        """
        prepared = [(i, part) for i, chat in enumerate(chats) for part in self._prepare(chat)]
        groups = consecutive_groups([len(part.prefix) for _, part in prepared], MAX_IMAGE_TOKENS)
        answers: list[dict[int, Answer]] = [{} for _ in chats]  # of each chat, by the place of the question
        for group in groups:
            answered = self._answer([prepared[k][1] for k in group], sampling, soft)
            for k, of_part in zip(group, answered, strict=True):
                i, part = prepared[k]
                answers[i] |= zip(part.places, of_part, strict=True)
        return [[of_chat[j] for j in range(len(of_chat))] for of_chat in answers]

    def zoomed(self, chats: Sequence[Chat], soft: bool = False) -> list[list[Answer]]:
        """The answers of chats of one image each. Those that show something small are asked for again with a crop.

        The first answer stays where its masks are large or empty, and where the second one has no mask. Otherwise it is
        the second one's, with its masks put back into the whole image. Raises UserError for a chat of several images.
        """
        chats = [replace(chat, image=_only(chat.image)) for chat in chats]
        answers = self.chat_many(chats, soft=soft)
        again, places = [], []  # places: (chat, question, box of the crop)
        for i, (chat, of_chat) in enumerate(zip(chats, answers, strict=True)):
            for j, answer in enumerate(of_chat):
                box = zoom_box(np.any(answer.masks, axis=0)) if answer.masks else None
                if box is not None:
                    images = (chat.image, crop(chat.image, box))
                    asked = [chat.questions[j]]
                    again.append(replace(chat, image=images, questions=asked, streamer=None, masks_on=-1))
                    places.append((i, j, box))
        for (i, j, box), (closer,) in zip(places, self.chat_many(again, soft=soft), strict=True):
            if any(mask.any() for mask in closer.masks):
                size_hw = answers[i][j].masks[0].shape
                masks = [from_crop(mask, box, size_hw) for mask in closer.masks]
                soft_masks = closer.probabilities and [from_crop(mask, box, size_hw) for mask in closer.probabilities]
                answers[i][j] = replace(closer, masks=masks, probabilities=soft_masks)
        return answers

    def _prepare(self, chat: Chat) -> list[_Prepared]:
        """The chat in one part, or in two: that of the questions about regions, and that of the others."""
        if not chat.questions or not all(text.strip() for text in chat.questions):
            raise UserError("there is an empty question; ask something")
        if chat.streamer is not None and len(chat.questions) > 1:
            raise UserError(f"a streamer follows one answer, and there are {len(chat.questions)} questions; ask one")
        images = as_images(chat.image)
        if not images and len(chat.regions):
            raise BadSample(f"{len(chat.regions)} regions are drawn, but there is no image")
        drawn = draw_regions(chat.regions, *_sizes(images))
        masks_on = _masks_on(chat, max(len(images), 1))
        parts: dict[bool, list[int]] = {}  # by whether the regions are shown
        about_regions = not chat.only_named or any(names_region(asked) for asked, _ in chat.history)
        for i, text in enumerate(chat.questions):
            parts.setdefault(about_regions or names_region(text), []).append(i)
        return [
            self._part(chat, images, drawn if shown else {}, places, [masks_on[i] for i in places])
            for shown, places in parts.items()
        ]

    def _part(
        self, chat: Chat, images: list[Image.Image], drawn: dict[int, RLE], places: list[int], masks_on: list[int]
    ) -> _Prepared:
        """The questions at `places`, about images that show the `drawn` regions."""
        questions = [name_regions(chat.questions[i], drawn) for i in places]
        history = [(name_regions(asked, drawn), answered) for asked, answered in chat.history]
        what = "the image" if len(images) < 2 else "the images"
        prefix = self.encoder.images_prefix(images, drawn, what, images_of(chat.regions))
        self.images_encoded += len(images)
        missing = [undrawn(text, drawn) for text in questions]
        return _Prepared(places, prefix, questions, history, missing, _sizes(images), masks_on, chat.streamer)

    def _answer(self, chats: list[_Prepared], sampling: Sampling | None, soft: bool) -> list[list[Answer]]:
        """The answers of chats whose images are encoded in one forward pass."""
        sampling, tokens = sampling or self.sampling, self.encoder.tokens
        check_has_presence(self.model.config.architecture, sampling.min_presence)
        with_image = [i for i, chat in enumerate(chats) if len(chat.prefix)]
        prefixes = None
        if with_image:
            prefixes = pack([chats[i].prefix for i in with_image], tokens.seg, tokens.vision_patch).to(
                self.model.device
            )
        requests, positions = [], []  # positions: (chat, question) of each request
        for i, chat in enumerate(chats):
            for j, text in enumerate(chat.questions):
                question_ids = self.encoder.question_ids(text, chat.history)
                if chat.streamer is not None:
                    chat.streamer.put(torch.tensor(question_ids))
                if chat.undrawn[j]:
                    if chat.streamer is not None:
                        said = self.encoder.chat.answer(_not_drawn(chat.undrawn[j]))
                        chat.streamer.put(torch.tensor(self.encoder.text_ids(said)))
                    continue
                image = with_image.index(i) if i in with_image else None
                on_token = _putting(chat.streamer)
                requests.append(GenerationRequest(question_ids, image, on_token=on_token, masks_on=chat.masks_on[j]))
                positions.append((i, j))
        stops = (self.encoder.end_ids[0], *self.stop_ids)
        ended = self.ends_in(sampling.stop_strings)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            generated = generate(self.model, prefixes, requests, tokens.seg, stops, sampling, ended, MAX_ROWS)
        by_position = dict(zip(positions, generated, strict=True))
        return [
            [
                Answer(_not_drawn(chat.undrawn[j]), [])
                if chat.undrawn[j]
                else self.read_answer(by_position[i, j], chat.sizes_hw[chat.masks_on[j]], sampling, soft)
                for j in range(len(chat.questions))
            ]
            for i, chat in enumerate(chats)
        ]

    def ends_in(self, stop_strings: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
        """Whether the tokens of an answer hold one of these strings; None without strings."""
        tokenizer = self.encoder.tokenizer
        if not stop_strings:
            return None
        return lambda token_ids: any(stop in tokenizer.decode(token_ids) for stop in stop_strings)

    def read_answer(self, generated: Generated, size_hw: tuple[int, int], sampling: Sampling, soft: bool) -> Answer:
        """What was generated about an image of `size_hw`, up to the first of its stop strings."""
        text = self.encoder.answer_text(generated.token_ids)
        for stop in sampling.stop_strings:
            text = text.partition(stop)[0]
        logits = generated.mask_logits[: text.count(SEG)]
        scores = None if generated.scores is None else generated.scores[: len(logits)]
        if not len(logits):
            return Answer(text, [], scores, generated.presence, [] if soft else None)
        full = F.interpolate(logits[None], size=size_hw, mode="bilinear", align_corners=False)[0]
        probabilities = list(full.sigmoid().cpu().numpy()) if soft else None
        absent = generated.presence is not None and generated.presence < sampling.min_presence
        masks = torch.zeros_like(full, dtype=torch.bool) if absent else full > 0
        return Answer(text, list(masks.cpu().numpy()), scores, generated.presence, probabilities)


@dataclass(frozen=True)
class _Prepared:
    """Questions of a chat, encoded: the image blocks (empty without an image), and texts, which name their regions."""

    places: list[int]  # of the questions among those of the chat
    prefix: Encoded
    questions: list[str]
    history: list[tuple[str, str]]
    undrawn: list[list[int]]  # for each question, the K of the regions that it names and that are not drawn
    sizes_hw: list[tuple[int, int]]  # of the images
    masks_on: list[int]  # for each question, the number of the image that its masks are on
    streamer: BaseStreamer | None


def _sizes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    return [(image.height, image.width) for image in images] or [(1, 1)]


def _masks_on(chat: Chat, images: int) -> list[int]:
    """`Chat.masks_on` for each question, from 0. Raises UserError for an image that is not there."""
    asked = [chat.masks_on] * len(chat.questions) if isinstance(chat.masks_on, int) else list(chat.masks_on)
    if len(asked) != len(chat.questions):
        raise UserError(f"masks_on has {len(asked)} numbers for {len(chat.questions)} questions; give one for each")
    return [image_number(number, images) for number in asked]


def image_number(masks_on: int, images: int) -> int:
    """The number, from 0, of one of so many images. Raises UserError for an image that is not there."""
    if not -images <= masks_on < images:
        there = "there is one image" if images == 1 else f"there are {images} images"
        raise UserError(f"masks_on is {masks_on}, and {there}: they are counted from 0")
    return masks_on % images


def _only(image: ImageInput | Sequence[ImageInput] | None) -> Image.Image:
    """The one image of a chat that zooms. Raises UserError for several, and for none."""
    images = as_images(image)
    if len(images) != 1:
        raise UserError(f"zoom looks closer at one image, and there are {len(images)}")
    return images[0]


def _putting(streamer: BaseStreamer | None) -> Callable[[int], None] | None:
    return None if streamer is None else lambda token: streamer.put(torch.tensor([token]))


def _not_drawn(ks: list[int]) -> str:
    return " ".join(NOT_DRAWN.format(prompt=PROMPTS[k] if k < MAX_PROMPTS else f"<Prompt{k}>") for k in ks)
