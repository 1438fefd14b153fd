"""Sample -> Encoded: the only code that knows both tokens and patches. Training and inference share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.data.chat import ChatFormat
from pixel_sail.data.clicks import place_clicks
from pixel_sail.data.image import load_image, to_patches
from pixel_sail.data.limits import MAX_TURNS
from pixel_sail.data.lost_masks import without_lost_masks
from pixel_sail.data.masks import mask_runs
from pixel_sail.data.prompts import prompt_ids
from pixel_sail.data.runs import join_masks, resize_runs
from pixel_sail.data.text import refuse_text
from pixel_sail.data.turn_masks import check_one_mask_each
from pixel_sail.data.unseen_regions import without_region
from pixel_sail.tokens import (
    CLICK,
    MAX_PROMPTS,
    SEG,
    VISION_END,
    VISION_PATCH,
    VISION_START,
    SpecialTokens,
    prompt_names,
)
from pixel_sail.types import (
    IGNORE_LABEL,
    RLE,
    UNPROMPTED,
    BadSample,
    Click,
    Clicks,
    Encoded,
    ImageBlock,
    Sample,
    UnseenRegion,
)


class ImageFeatures(Protocol):
    """The features that frozen experts give for the image of a sample; see pixel_sail/experts/features.py."""

    def of(self, sample: Sample, image: Image.Image) -> dict[str, Tensor]:
        """Expert -> its features (C, h, w) float16 of the image, or the image (3, H, W) uint8 to compute them from."""
        ...


class Encoder:
    """Everything that is fixed for a run: tokenizer, patches, chat format, length limit."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        architecture: Architecture,
        chat_format: str,
        max_length: int = 8192,
        lm_weight_with_masks: float = 1.0,
        hide: str = "none",
        expert_features: ImageFeatures | None = None,
        chat_pieces: dict[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.tokens = SpecialTokens.of(tokenizer)
        self.chat = ChatFormat.of(chat_format, tokenizer, chat_pieces)
        self.end_ids = self.text_ids(self.chat.end)
        self.architecture, self.patch_size = architecture, architecture.patch_size
        self.max_length = max_length
        self.lm_weight_with_masks = lm_weight_with_masks
        self.hide = hide  # data.hide: image and prompts are blanked here, the text in data/templates.py
        self.expert_features = expert_features  # in training with experts

    def encode(self, sample: Sample, seed: int = 0) -> Encoded:
        """One sequence. Turns that do not fit into `max_length` are dropped with their masks (and counted).

        So are turns, and phrases of a caption, whose mask has no pixel at the size of the patches, and turns about a
        region that no patch shows: the image stays, and what else is asked about it.
        Raises BadSample, beginning with the sample's key, if the image cannot be read, the numbers of [SEG] and masks
        differ, a prompt is out of range or malformed, a mask or prompt is on an image that is not there, the text has
        special image tokens, the first turn does not fit, or an expert's cache lacks the image.
        """
        if sample.text:
            return self._plain(sample, seed)
        self._check_text(sample)
        images = _load(sample)
        _check_masks(sample, images)
        prefix, sample = self._prefix(sample, images)
        sizes = [(h * self.patch_size, w * self.patch_size) for h, w in (image.grid_hw for image in prefix.images)]
        masks = _resized_masks(sample, sizes)
        sample, lost = without_lost_masks(sample, [bool(runs[1::2].any()) for runs in masks])
        masks = masks if lost == 0 else _resized_masks(sample, sizes)
        ids, labels, turns = self._turns(sample, room=self.max_length - len(prefix))
        kept = sum(turn.answer.count(SEG) for turn in sample.turns[:turns])  # masks
        text_start = int(prefix.position_ids[0, -1]) + 1 if len(prefix) else 0
        text_positions = torch.arange(text_start, text_start + len(ids)).expand(3, -1)
        clicks = [click for turn in sample.turns[:turns] for click in turn.clicks]
        first_hw = (images[0].height, images[0].width) if images else (1, 1)
        placed = self.clicks(ids, clicks, prefix.images, first_hw, sample.key)
        if len(placed):
            of_patches = prefix.position_ids[:, prefix.input_ids == self.tokens.vision_patch]
            text_positions = text_positions.index_copy(1, placed.tokens, of_patches[:, placed.patches])
        return Encoded(
            key=sample.key,
            seed=seed,
            input_ids=torch.cat([prefix.input_ids, torch.tensor(ids)]),
            labels=torch.cat([prefix.labels, torch.tensor(labels)]),
            position_ids=torch.cat([prefix.position_ids, text_positions], dim=1),
            patches=prefix.patches,
            prompt_ids=prefix.prompt_ids,
            images=tuple(
                _with_masks(image, number, masks[:kept], sample, size_hw)
                for number, (image, size_hw) in enumerate(zip(prefix.images, sizes, strict=True))
            ),
            image_attention=prefix.image_attention,
            lm_weight=self.lm_weight_with_masks if kept else 1.0,
            dropped_turns=len(sample.turns) - turns + lost + sample.dropped_turns,
            expert_features=self._features(sample, images),
            clicks=replace(placed, tokens=placed.tokens + len(prefix)),
        )

    def _plain(self, sample: Sample, seed: int) -> Encoded:
        """A plain text: every token has a label but the first, before which there is none.

        It begins as the tokenizer begins a text (some have a token for that), and has no end of its own: sequences
        never see each other, and answers teach how a text ends. What is beyond `max_length` is left out, counted as a
        turn.
        """
        refuse_text(sample.text, sample.key)
        _refuse_image_tokens(sample.text, sample.key)
        ids = torch.tensor(self.tokenizer(sample.text)["input_ids"], dtype=torch.int64)
        kept = ids[: self.max_length]
        if len(kept) < 2:
            raise BadSample(f"{sample.key}: a text of {len(kept)} tokens; a token is learned from those before it")
        return replace(
            _empty(sample.key, 3 * self.patch_size**2),
            seed=seed,
            input_ids=kept,
            labels=torch.cat([torch.tensor([IGNORE_LABEL]), kept[1:]]),
            position_ids=torch.arange(len(kept)).expand(3, -1),
            is_text=True,
            dropped_turns=int(len(ids) > len(kept)),
        )

    def _prefix(self, sample: Sample, images: Sequence[Image.Image]) -> tuple[Encoded, Sample]:
        """The image blocks, and the sample without what is about regions that no patch shows."""
        while True:
            try:
                return self.images_prefix(images, sample.prompts, sample.key, sample.prompt_images), sample
            except UnseenRegion as error:
                sample = without_region(sample, error)

    def _features(self, sample: Sample, images: Sequence[Image.Image]) -> tuple[dict[str, Tensor], ...]:
        if self.expert_features is None:
            return ()
        alone = [sample, *(replace(sample, image=image, features={}) for image in sample.more_images)]
        return tuple(map(self.expert_features.of, alone, images))

    def images_prefix(
        self,
        images: Sequence[Image.Image],
        prompts: dict[int, RLE],
        key: str,
        prompt_images: Mapping[int, int] = MappingProxyType({}),
    ) -> Encoded:
        """The image blocks alone, one after the other (pixel_sail/layout.py). Without images, an empty sequence.

        `prompt_images`: K -> the number of the image, from 0, that its region is on; K that are left out: 0. Raises
        BadSample, beginning with `key`, for a region that cannot be drawn, or that is on no image.
        """
        if not images:
            if prompts:
                raise BadSample(f"{key}: prompts {sorted(prompts)} are drawn, but there is no image")
            return _empty(key, 3 * self.patch_size**2)
        on: list[dict[int, RLE]] = [{} for _ in images]
        for k, region in prompts.items():
            on[_number(prompt_images.get(k, 0), len(images), f"{key}: the region of <Prompt{k}>")][k] = region
        blocks = [self.image_prefix(image, drawn, key) for image, drawn in zip(images, on, strict=True)]
        return blocks[0] if len(blocks) == 1 else _joined(blocks)

    def image_prefix(self, image: Image.Image, prompts: dict[int, RLE], key: str) -> Encoded:
        """The block of one image, from `<vision>` to `</vision>`."""
        patches, (h, w) = to_patches(image, self.architecture)
        drawn = torch.full((h * w,), UNPROMPTED)
        if prompts and self.hide != "prompts":
            drawn = prompt_ids(prompts, (image.height, image.width), (h, w), key)
        ids, shape = self._image_ids(h, w), self.architecture
        positions = image_positions(1, h, w, 1, shape.row_ends, one_step=shape.image_positions == "one_step")
        if shape.image_positions == "sequence":
            positions = torch.arange(len(ids)).expand(3, -1)
        return Encoded(
            key=key,
            seed=0,
            input_ids=torch.tensor(ids),
            labels=torch.full((len(ids),), IGNORE_LABEL),
            position_ids=positions,
            patches=torch.zeros(patches.shape) if self.hide == "image" else patches,
            prompt_ids=drawn,
            images=(ImageBlock((0, len(ids)), (h, w), join_masks([], (0, 0)), ()),),
            image_attention=self.architecture.image_attention,
        )

    def _image_ids(self, h: int, w: int) -> list[int]:
        """Tokens of the image block of h x w patches."""
        tokens = self.tokens
        row, end = [tokens.vision_patch] * w, [tokens.vision_end]
        rows = (row + end) * h if self.architecture.row_ends else row * h + end
        return [tokens.vision_start, *rows]

    def question_ids(self, question: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Tokens that ask `question` after the turns (question, answer) of `history`, up to the answer.

        Raises BadSample for image tokens in one of them.
        """
        for text, where in ((question, "the question"), *((text, "the history") for turn in history for text in turn)):
            refuse_text(text, where)
            _refuse_image_tokens(text, where)
        ids: list[int] = []
        for number, (asked, answered) in enumerate(history):
            ids += self._turn_ids(number, asked) + self.text_ids(self.chat.answer(answered)) + self.end_ids
        return ids + self._turn_ids(len(history), question)

    def clicks(
        self,
        ids: Sequence[int],
        clicks: Sequence[Click],
        images: Sequence[ImageBlock],
        size_hw: tuple[int, int],
        where: str,
        on: int = 0,
    ) -> Clicks:
        """The clicks of a text, in the order of its CLICK tokens; none for a model that takes no clicks.

        They are all on one of the `images` of the sequence, the number `on` from 0, of `size_hw` pixels. Raises
        BadSample, beginning with `where`, if their number is not that of the tokens, for a click outside of the image,
        if there is no image, and for clicks on a model that takes none.
        """
        if not self.architecture.clicks:
            if clicks:
                raise BadSample(f"{where}: it has clicks, and the model takes none (architecture.clicks)")
            return Clicks.none()
        tokens = [place for place, token in enumerate(ids) if token == self.tokens.click]
        if len(tokens) != len(clicks):
            raise BadSample(
                f"{where}: the text has {len(tokens)} {CLICK}, which stand for clicks, and there are {len(clicks)} "
                "clicks"
            )
        if not clicks:
            return Clicks.none()
        grids = [image.grid_hw for image in images] or [(0, 0)]
        placed = place_clicks(tokens, clicks, size_hw, grids[on], where)
        return replace(placed, patches=placed.patches + sum(h * w for h, w in grids[:on]))

    def _turn_ids(self, number: int, question: str) -> list[int]:
        """Tokens of a question as the number-th turn of a conversation, up to its answer."""
        return self.text_ids(self.chat.before(number, question))

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answer_text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, which may be only the beginning of an answer; special tokens stay in it."""
        return self.chat.read(self.tokenizer.decode(token_ids, skip_special_tokens=False))

    def _turns(self, sample: Sample, room: int) -> tuple[list[int], list[int], int]:
        """Token ids and labels of the turns that fit into `room` tokens, and the number of these turns."""
        ids: list[int] = []
        labels: list[int] = []
        for number, turn in enumerate(sample.turns):
            asked = self._turn_ids(number, turn.question)
            answered = self.text_ids(self.chat.answer(turn.answer)) + self.end_ids
            if len(ids) + len(asked) + len(answered) > room:
                if number == 0:
                    raise BadSample(
                        f"{sample.key}: its first turn has {len(asked) + len(answered)} tokens and {room} are left "
                        f"beside the image; raise data.max_length (now {self.max_length}) or lower "
                        "architecture.max_side_px"
                    )
                return ids, labels, number
            ids += asked + answered
            labels += [IGNORE_LABEL] * len(asked) + answered
        return ids, labels, len(sample.turns)

    def _check_text(self, sample: Sample) -> None:
        if not sample.turns:
            raise BadSample(f"{sample.key}: it has no question and answer")
        if len(sample.turns) > MAX_TURNS:
            raise BadSample(f"{sample.key}: it has {len(sample.turns):,} turns; at most {MAX_TURNS:,} are encoded")
        check_one_mask_each(sample)
        for turn in sample.turns:
            refuse_text(turn.question, sample.key)
            refuse_text(turn.answer, sample.key)
            _refuse_image_tokens(turn.question + turn.answer, sample.key)
            beyond = [k for k in prompt_names(turn.question + turn.answer) if k >= MAX_PROMPTS]
            if beyond:
                raise BadSample(f"{sample.key}: <Prompt{beyond[0]}> is named; prompts go from 0 to {MAX_PROMPTS - 1}")


def image_positions(before: int, h: int, w: int, after: int, row_ends: bool = False, one_step: bool = False) -> Tensor:
    """(3, before + h w + after) positions t, h, w of an image among text (docs/model.md).

    `row_ends`: a token follows each row but the last, in a column of its own. `one_step`: what follows goes on as after
    one token, however large the image is.
    """
    head, width = torch.arange(before).expand(3, -1), w + row_ends
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(width), indexing="ij")
    patches = before + torch.stack([torch.zeros(h * width, dtype=torch.int64), rows.flatten(), columns.flatten()])
    tail = before + (1 if one_step else max(h, width)) + torch.arange(after)
    return torch.cat([head, patches[:, : h * width - row_ends], tail.expand(3, -1)], dim=1)


def _joined(blocks: Sequence[Encoded]) -> Encoded:
    """Image blocks as one sequence. Each is placed, and its positions go on, behind the one before it."""
    positions, images, tokens, place = [], [], 0, 0
    for block in blocks:
        positions.append(block.position_ids + place)
        place = int(positions[-1][0, -1]) + 1
        images += [replace(block.images[0], span=(tokens, tokens + len(block)))]
        tokens += len(block)
    return replace(
        blocks[0],
        input_ids=torch.cat([block.input_ids for block in blocks]),
        labels=torch.cat([block.labels for block in blocks]),
        position_ids=torch.cat(positions, dim=1),
        patches=torch.cat([block.patches for block in blocks]),
        prompt_ids=torch.cat([block.prompt_ids for block in blocks]),
        images=tuple(images),
    )


def _with_masks(
    image: ImageBlock, number: int, masks: Sequence[np.ndarray], sample: Sample, size_hw: tuple[int, int]
) -> ImageBlock:
    """The `number`-th image of a sample with those of the `masks` (runs) that are on it."""
    own = tuple(n for n in range(len(masks)) if sample.image_of_masks[n] == number)
    return replace(image, masks=join_masks([masks[n] for n in own], size_hw), segs=own)


def _number(number: int, images: int, what: str) -> int:
    if not 0 <= number < images:
        there = "there is one image" if images == 1 else f"there are {images}"
        raise BadSample(f"{what} is on image {number}, counted from 0, and {there}")
    return number


def _load(sample: Sample) -> list[Image.Image]:
    if sample.image is None and sample.more_images:
        raise BadSample(f"{sample.key}: it has more images, but no first one")
    try:
        return [load_image(image) for image in sample.images]
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None


def _check_masks(sample: Sample, images: Sequence[Image.Image]) -> None:
    if sample.masks and not images:
        raise BadSample(f"{sample.key}: it has masks, but no image")
    if len(sample.image_of_masks) != len(sample.masks):
        raise BadSample(
            f"{sample.key}: it has {len(sample.masks)} masks, and says of {len(sample.mask_images)} which image they "
            "are on"
        )
    for number, (rle, on) in enumerate(zip(sample.masks, sample.image_of_masks, strict=True)):
        image = images[_number(on, len(images), f"{sample.key}: mask {number}")]
        if tuple(rle["size"]) != (image.height, image.width):
            raise BadSample(
                f"{sample.key}: mask {number} is of size {rle['size']}, the image is "
                f"{[image.height, image.width]} (height, width)"
            )


def _resized_masks(sample: Sample, sizes_hw: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The runs of each mask at the size of the patches of its image."""
    resized = []
    for number, (rle, image) in enumerate(zip(sample.masks, sample.image_of_masks, strict=True)):
        runs = mask_runs(rle, f"{sample.key}: mask {number}")
        resized.append(resize_runs(runs, tuple(rle["size"]), sizes_hw[image]))
    return resized


def _refuse_image_tokens(text: str, where: str) -> None:
    for token in (VISION_START, VISION_PATCH, VISION_END):
        if token in text:
            raise BadSample(f"{where}: the text contains {token}, which is reserved for images")


def _empty(key: str, patch_values: int) -> Encoded:
    none = torch.empty(0, dtype=torch.int64)
    return Encoded(
        key=key,
        seed=0,
        input_ids=none,
        labels=none,
        position_ids=none.view(1, 0).expand(3, -1),
        patches=torch.empty(0, patch_values, dtype=torch.uint8),
        prompt_ids=none,
    )
