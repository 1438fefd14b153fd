"""A mask that is refined by clicks: the image is read once, and each click continues from its keys and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from pixel_sail.data.clicks import check_click
from pixel_sail.data.pack import pack
from pixel_sail.data.regions import Regions, draw_regions, images_of, name_regions, names_region, undrawn
from pixel_sail.errors import UserError
from pixel_sail.model.generation import Generated, GenerationRequest, ReadImages, Sampling, generate, read_images
from pixel_sail.serve.images import ImageInput, as_images
from pixel_sail.serve.predictor import MAX_ROWS, Answer, Predictor, image_number
from pixel_sail.tokens import CLICK, IMAGE_TOKENS, PROMPTS, SEG
from pixel_sail.types import Click, ImageBlock, Turn

AT_ONCE = Sampling(max_new_tokens=1)  # the answer to a click is [SEG] and needs no decoding
MAX_CLICKS = 100  # of a mask
_RESERVED = re.compile("|".join(map(re.escape, (*IMAGE_TOKENS, CLICK))))


class Session:
    """An image, the phrase that was segmented on it last, and the clicks on its mask.

    The image's keys and values stay on the device as long as the session lives. The text, a few tokens for a phrase and
    for each click, is read again with every click. A phrase that names no region is about the image without them, which
    is then read too. Of several images that are read together, masks and clicks are on
    one: the number `masks_on` from 0, or -1 for the last. data.clicks trains clicks on the first alone.
    """

    def __init__(
        self,
        predictor: Predictor,
        image: ImageInput | Sequence[ImageInput],
        regions: Regions = (),
        masks_on: int = -1,
    ):
        """Reads the image, once. Raises UserError as `Predictor.chat` for an image or regions that cannot be used."""
        self.images = as_images(image)
        if not self.images:
            raise UserError("there is no image to click on; give one")
        self.predictor = predictor
        sizes = [(pixels.height, pixels.width) for pixels in self.images]
        self.masks_on = image_number(masks_on, len(self.images))
        self.size_hw = sizes[self.masks_on]
        self.drawn, self.drawn_on = draw_regions(regions, *sizes), images_of(regions)
        self.read: dict[bool, ReadImages] = {}  # with regions, and without
        self.blocks = self._read_images(bool(self.drawn))
        self.turns: tuple[Turn, ...] = ()  # since the last phrase

    def segment(self, expression: str, soft: bool = False) -> Answer:
        """The mask of what `expression` names, as `Predictor.segment`. Clicks are about this mask from now on."""
        (question,) = self.predictor.segment_questions([expression])
        if names_region(question):
            question = name_regions(question, self.drawn)
        missing = undrawn(question, self.drawn)
        if missing:
            raise UserError(f"{PROMPTS[missing[0]]} is named, but no such region is drawn")
        return self._answer((Turn(question, ""),), soft)

    def refine(self, clicks: Sequence[Click | tuple[float, float, bool]], soft: bool = False) -> Answer:
        """The mask after one more click, or several: (x, y, positive) in pixels of the image.

        Without `segment` before it, the clicks alone say what is meant. Raises UserError for a click outside of the
        image, for none, for too many, and for a model that was not trained with clicks.
        """
        return self._answer((*self.turns, self.click_turn(clicks)), soft)

    def undo(self) -> None:
        """Takes back the last `segment` or `refine`; does nothing at the start."""
        self.turns = self.turns[:-1]

    def click_turn(self, clicks: Sequence[Click | tuple[float, float, bool]]) -> Turn:
        """The turn of these clicks, without its answer. Errors as `refine`."""
        refuse_without_clicks(self.predictor)
        if not 1 <= len(clicks) <= MAX_CLICKS - sum(len(turn.clicks) for turn in self.turns):
            raise UserError(f"{len(clicks)} new clicks: give one at least, and {MAX_CLICKS} for one mask at most")
        new = tuple(click if isinstance(click, Click) else Click(*click) for click in clicks)
        for click in new:
            check_click(click, self.size_hw, "refine")
        return Turn(CLICK * len(new), "", new)

    def _answer(self, conversation: tuple[Turn, ...], soft: bool) -> Answer:
        (answer,) = self.answers([conversation], soft)
        self.turns = (*conversation[:-1], replace(conversation[-1], answer=answer.text))
        return answer

    def answers(self, conversations: Sequence[Sequence[Turn]], soft: bool = False) -> list[Answer]:
        """The answer to the last turn of each conversation, in batches; the session's own stays as it was.

        They end in clicks, all of them or none. Raises BadSample for text that stands for an image or a click.
        """
        predictor, encoder, requests = self.predictor, self.predictor.encoder, []
        about_regions = [
            bool(self.drawn) and any(names_region(turn.question) for turn in conversation)
            for conversation in conversations
        ]
        read = list(dict.fromkeys(about_regions))
        for missing in set(read) - self.read.keys():
            self._read_images(missing)
        clicked = bool(conversations[0][-1].clicks)
        said = tuple(encoder.text_ids(encoder.chat.answer(SEG))) if clicked else ()
        for conversation, shown in zip(conversations, about_regions, strict=True):
            *history, asked = conversation
            ids = encoder.question_ids(asked.question, [(turn.question, _plain(turn.answer)) for turn in history])
            clicks = [click for turn in conversation for click in turn.clicks]
            placed = encoder.clicks(ids, clicks, self.blocks, self.size_hw, "the question", self.masks_on)
            requests.append(GenerationRequest(ids, read.index(shown), said, masks_on=self.masks_on, clicks=placed))
        sampling = AT_ONCE if clicked else predictor.sampling
        stops = (encoder.end_ids[0], *predictor.stop_ids)
        complete = (lambda answer: True) if clicked else predictor.ends_in(sampling.stop_strings)
        with self._precision():
            images = [self.read[shown] for shown in read]
            generated = generate(
                predictor.model, images, requests, encoder.tokens.seg, stops, sampling, complete, MAX_ROWS
            )
        if clicked:
            generated = [replace(one, token_ids=list(said)) for one in generated]
        return [self._read(one, sampling, soft) for one in generated]

    def _read_images(self, with_regions: bool) -> tuple[ImageBlock, ...]:
        """Reads the images with the regions or without; where their tokens are."""
        predictor, tokens = self.predictor, self.predictor.encoder.tokens
        drawn = self.drawn if with_regions else {}
        what = "the image" if len(self.images) == 1 else "the images"
        prefix = predictor.encoder.images_prefix(self.images, drawn, what, self.drawn_on)
        batch = pack([prefix], tokens.seg, tokens.vision_patch).to(predictor.model.device)
        with self._precision():
            (self.read[with_regions],) = read_images(predictor.model, batch)
        predictor.images_encoded += len(self.images)
        return prefix.images

    def _read(self, generated: Generated, sampling: Sampling, soft: bool) -> Answer:
        return self.predictor.read_answer(generated, self.size_hw, sampling, soft)

    def _precision(self) -> torch.autocast:
        predictor = self.predictor
        return torch.autocast(predictor.model.device.type, torch.bfloat16, enabled=predictor.autocast)


def _plain(answer: str) -> str:
    """An answer without tokens that stand for an image or a click: a poor model says anything."""
    return _RESERVED.sub("", answer)


def refuse_without_clicks(predictor: Predictor) -> None:
    """Raises UserError for a model that was not trained with clicks."""
    if not predictor.model.config.architecture.clicks:
        raise UserError(
            "this model takes no clicks; training adds them: see configs/clicks_alone.yaml and docs/finetune.md"
        )
