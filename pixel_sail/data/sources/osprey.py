"""Osprey-724K: conversations about numbered regions of COCO images."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.conversations import Conversation, ConversationSource, read_turns
from pixel_sail.data.sources.entries import member, read_entries, refuse_tokens, size_member
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.templates import DESCRIBE, about
from pixel_sail.tokens import MAX_PROMPTS
from pixel_sail.types import BadSample, Turn

NAMES = (
    "osprey_short_form",
    "osprey_conversation",
    "osprey_detail_description",
    "osprey_part_level",
    "osprey_lvis_positive_negative",
)

# <region1>, <Region1>, <region 1>, <region1], <region1 (never closed), <regin1>, <region of1>, region1, region 1.
# All digits belong to the number: <region1> never eats <region10>.
_REGION = re.compile(r"<\s*reg(?:io|i|o)n\s*(?:of\s*)?(\d+)(?:\s*[>\]])?|\bregion\s?(\d+)(?!\w)", re.IGNORECASE)
_NOT_UNDERSTOOD = re.compile(r"<\s*reg(?:io|i|o)n[^\n]{0,12}", re.IGNORECASE)


def open_osprey(name: str, root: Path, split: str, data: DataConfig) -> ConversationSource:
    """One Sample per entry. Raises DatasetError; entries and turns that cannot be used are listed in `.problems`."""
    finder = ImageFinder(root)
    problems: list[str] = []

    def parse(entry: Any, key: str) -> Conversation:
        annotations = member(entry, "annotation", list, key)
        turns, numbers = _rename(_turns(entry, key), len(annotations), key, problems)
        size = size_member(entry, key)
        image = finder.find(member(entry, "file_name", str, key), key)
        segmentations = [
            member(annotations[n - 1], "segmentation", object, f"{key}: the annotation of <region{n}>") for n in numbers
        ]
        return Conversation(key, image, turns, tuple(segmentations), size)

    return ConversationSource(read_entries(_file(name).find(root, split), name, parse, problems), problems)


def _file(name: str) -> ExpectedFile:
    return ExpectedFile(f"osprey/{name}.json")


def _turns(entry: Any, key: str) -> list[Turn]:
    """The conversation. The published detailed descriptions have a list "description" of "<regionN>: text" instead."""
    if "description" not in entry or "conversations" in entry:
        return read_turns(entry, key)
    turns = []
    for text in member(entry, "description", list, key):
        region = _REGION.match(text.strip()) if isinstance(text, str) else None
        description = text.strip()[region.end() :].removeprefix(":").strip() if region else ""
        if not description:
            raise BadSample(f"{key}: the description {text!r:.60} is not of the form '<regionN>: text'")
        refuse_tokens(description, key)
        turns.append(Turn(about(region[0], DESCRIBE[0]), description))
    if not turns:
        raise BadSample(f"{key}: it has no description")
    return turns


def _rename(turns: list[Turn], regions: int, key: str, problems: list[str]) -> tuple[tuple[Turn, ...], list[int]]:
    """The turns with <PromptK> for <regionN>, K by first mention; and the N (from 1) of <Prompt0>, <Prompt1>, ..."""
    numbers: list[int] = []
    kept: list[Turn] = []
    texts = [_Text.of(text, regions, key) for turn in turns for text in (turn.question, turn.answer)]
    if not any(text.numbers for text in texts):
        texts[0] = _Text.of(_naming_the_only_region(turns[0].question, regions, key), regions, key)
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        wider = list(dict.fromkeys((*numbers, *question.numbers, *answer.numbers)))
        if len(wider) <= MAX_PROMPTS:
            numbers = wider
            kept.append(Turn(question.with_prompts(numbers), answer.with_prompts(numbers)))
    if len(kept) < len(turns):
        problems.append(
            f"{key}: {len(turns) - len(kept)} of its {len(turns)} turns are left out: "
            f"a sample holds at most {MAX_PROMPTS} regions"
        )
    if not kept:
        raise BadSample(f"{key}: no turn is left")
    return tuple(kept), numbers


class _Text(NamedTuple):
    """A text cut at the regions that it names: pieces[0], region numbers[0], pieces[1], ..., pieces[-1]."""

    pieces: list[str]
    numbers: list[int]

    @classmethod
    def of(cls, text: str, regions: int, key: str) -> _Text:
        if regions == 1:
            text = text.replace("<region>", "<region1>")  # the only region needs no number
        if "<" in text:
            text = text.replace("<mask>", "").replace("<pos>", "")
        cut = _REGION.split(text)  # text, number in brackets or None, bare number or None, text, ...
        numbers = [int(bracketed or bare) for bracketed, bare in zip(cut[1::3], cut[2::3], strict=True)]
        for number in numbers:
            if not 1 <= number <= regions:
                raise BadSample(f"{key}: <region{number}> is named, but the entry has {regions} annotations")
        wrong = next(filter(None, map(_NOT_UNDERSTOOD.search, cut[::3])), None)
        if wrong:
            raise BadSample(f"{key}: {wrong[0]!r} is not understood; regions are named <region1>, <region2>, ...")
        return cls(cut[::3], numbers)

    def with_prompts(self, numbers: list[int]) -> str:
        names = [f"<Prompt{numbers.index(number)}>" for number in self.numbers]
        return "".join(part for pair in zip(self.pieces, [*names, ""], strict=True) for part in pair)


def _naming_the_only_region(question: str, regions: int, key: str) -> str:
    """Some texts do not name their region: Osprey's own loader lists the regions before the first question."""
    if regions != 1:
        raise BadSample(f"{key}: none of its {regions} regions is named")
    return f"<region1> {question}"


RECORDS = tuple(
    SourceRecord(
        name=name,
        splits=("train",),
        files=(_file(name),),
        sample="an entry",
        turn="a question about regions and its answer; `<regionN>` becomes `<PromptK>`",
        open=partial(open_osprey, name),
        train_only=True,
    )
    for name in NAMES
)
