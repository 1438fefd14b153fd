"""Conversations in the format of LLaVA and Osprey: [{from: human|gpt, value}]. All turns are kept in their order."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.limits import MAX_TURNS
from pixel_sail.data.masks import from_coco
from pixel_sail.data.sources.entries import member, refuse_tokens
from pixel_sail.data.sources.record import EntrySource
from pixel_sail.data.sources.region_turns import RegionTurn, compose
from pixel_sail.tokens import SEG
from pixel_sail.types import BadSample, Sample, Turn


@dataclass(frozen=True)
class Conversation:
    key: str
    image: Path | None
    turns: tuple[Turn, ...]
    segmentations: tuple[Any, ...] = ()  # of <Prompt0>, <Prompt1>, ..., as in the annotation file
    size_hw: tuple[int, int] = (0, 0)  # pixels; of the segmentations

    @property
    def path(self) -> Path | None:
        return self.image


class ConversationSource(EntrySource[Conversation]):
    """Samples of one conversation each (see `pixel_sail.data.sources.Source`)."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` is not used. Raises BadSample for a malformed or empty region: regions are decoded only here."""
        talk = self._entries[index]
        prompts = {
            k: from_coco(segmentation, *talk.size_hw, f"{talk.key}: the region of <Prompt{k}>")
            for k, segmentation in enumerate(talk.segmentations)
        }
        return compose(talk.key, talk.image, [RegionTurn(turn.question, turn.answer, prompts) for turn in talk.turns])


def read_turns(entry: Any, where: str, problems: list[str]) -> list[Turn]:
    """The turns of an entry. An answer before the first question, and a question after the last answer, are left out.

    They go into `problems`. Raises BadSample unless human and gpt alternate, and for [SEG] in answers.
    """
    if len(member(entry, "conversations", list, where)) > 2 * MAX_TURNS:
        raise BadSample(f"{where}: its conversation has over {2 * MAX_TURNS:,} messages; at most so many are read")
    messages = _from_question_to_answer(member(entry, "conversations", list, where), where, problems)
    texts = []
    for number, message in enumerate(messages):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(message, dict) or message.get("from") != speaker:
            said = message.get("from") if isinstance(message, dict) else message
            raise BadSample(
                f"{where}: message {number} is from {reprlib.repr(said)}, expected {speaker!r}; "
                "human and gpt alternate, human first"
            )
        texts.append(member(message, "value", str, f"{where}: message {number}").strip())
    if not texts:
        raise BadSample(f"{where}: its conversation is empty")
    turns = [Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    for number, turn in enumerate(turns):
        # A [SEG] in a question asks for no mask.
        refuse_tokens(turn.question.replace(SEG, ""), f"{where}: question {number}")
        refuse_tokens(turn.answer, f"{where}: answer {number}")
        if not turn.question or not turn.answer:
            raise BadSample(f"{where}: turn {number} has an empty question or answer")
    return turns


def _from_question_to_answer(messages: list[Any], where: str, problems: list[str]) -> list[Any]:
    """The messages from the first of human to the last of gpt."""
    speakers = [message.get("from") if isinstance(message, dict) else None for message in messages]
    start, stop = 0, len(messages)
    while start < stop and speakers[start] == "gpt":
        start += 1
    while start < stop and speakers[stop - 1] == "human":
        stop -= 1
    if start:
        problems.append(f"{where}: {start} of its messages, before the first question, left out")
    if stop < len(messages):
        problems.append(f"{where}: {len(messages) - stop} of its messages, after the last answer, left out")
    return messages[start:stop]
