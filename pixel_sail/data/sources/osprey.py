"""Osprey-724K: conversations about numbered regions of COCO images."""

from __future__ import annotations

import re
import reprlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.conversations import Conversation, ConversationSource, read_turns
from pixel_sail.data.sources.entries import member, refuse_tokens, size_member
from pixel_sail.data.sources.pieces import kept_list
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.targets import refuse_empty
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

# Their questions want a word or a phrase, and do not say so: Osprey's own loader appends this.
SHORT_ANSWERS = ("osprey_short_form", "osprey_part_level")
SHORT_ANSWER = "Answer the question using a single word or phrase."

# <region1>, <Region1>, <region 1>, <region1], <region1 (never closed), <regin1>, <region of1>, region1, region 1.
# All digits belong to the number: <region1> never eats <region10>.
_REGION = re.compile(r"<\s*reg(?:io|i|o)n\s*(?:of\s*)?(\d+)(?:\s*[>\]])?|\bregion\s?(\d+)(?!\w)", re.IGNORECASE)
_NOT_UNDERSTOOD = re.compile(r"<\s*reg(?:io|i|o)n[^\n]{0,12}", re.IGNORECASE)


def open_osprey(name: str, root: Path, split: str, data: DataConfig) -> ConversationSource:
    """One Sample per entry. Raises DatasetError; entries and turns that cannot be used are listed in `.problems`."""
    finder = ImageFinder(root)
    problems: list[str] = []

    def parse(entry: Any, key: str) -> Conversation:
        annotations, size = member(entry, "annotation", list, key), size_member(entry, key)
        image = finder.find(member(entry, "file_name", str, key), key)
        turns = _turns(entry, key, problems)
        if name in SHORT_ANSWERS:
            turns = [Turn(_asking_for_a_short_answer(turn.question), turn.answer) for turn in turns]
        regions = _Regions(annotations, size, key)
        renamed, numbers = _rename(turns, regions, key, problems)
        return Conversation(key, image, renamed, tuple(annotations[n - 1]["segmentation"] for n in numbers), size)

    path = _file(name).find(root, split)
    entries = kept_list(path, name, Conversation, parse, problems, finder.asked)
    return ConversationSource(entries, problems)


def _file(name: str) -> ExpectedFile:
    return ExpectedFile(f"osprey/{name}.json", other_places=(f"osprey-724k/{name}.json", f"Osprey-724K/{name}.json"))


def _asking_for_a_short_answer(question: str) -> str:
    return question if SHORT_ANSWER in question else f"{question} {SHORT_ANSWER}"


def _turns(entry: Any, key: str, problems: list[str]) -> list[Turn]:
    """The conversation. The published detailed descriptions have a list "description" of "<regionN>: text" instead."""
    if "description" not in entry or "conversations" in entry:
        return read_turns(entry, key, problems)
    turns = []
    for text in member(entry, "description", list, key):
        region = _REGION.match(text.strip()) if isinstance(text, str) else None
        description = text.strip()[region.end() :].removeprefix(":").strip() if region else ""
        if not description:
            raise BadSample(f"{key}: the description {reprlib.repr(text)} is not of the form '<regionN>: text'")
        refuse_tokens(description, key)
        turns.append(Turn(about(region[0], DESCRIBE[0]), description))
    if not turns:
        raise BadSample(f"{key}: it has no description")
    return turns


class _Regions:
    """The regions of an entry, numbered from 1 as in its texts."""

    def __init__(self, annotations: list[Any], size_hw: tuple[int, int], key: str) -> None:
        self.count = len(annotations)
        self._annotations, self._size_hw, self._key = annotations, size_hw, key
        self._faults: dict[int, str] = {}

    def fault(self, number: int) -> str:
        """Why a region cannot be drawn; empty if it can."""
        if number not in self._faults:
            where = f"{self._key}: the annotation of <region{number}>"
            try:
                refuse_empty(member(self._annotations[number - 1], "segmentation", object, where), self._size_hw, where)
                self._faults[number] = ""
            except BadSample as error:
                self._faults[number] = str(error)
        return self._faults[number]


def _rename(turns: list[Turn], regions: _Regions, key: str, problems: list[str]) -> tuple[tuple[Turn, ...], list[int]]:
    """The turns with <PromptK> for <regionN>, K by first mention; and the N (from 1) of <Prompt0>, <Prompt1>, ...

    A turn about a region that cannot be drawn, or about one too many, is left out.
    """
    numbers: list[int] = []
    kept: list[Turn] = []
    too_many = 0
    texts = [_Text.of(text, regions.count, key) for turn in turns for text in (turn.question, turn.answer)]
    if not any(text.numbers for text in texts):
        texts[0] = _Text.of(_announcing(turns[0].question, regions, key, problems), regions.count, key)
    for number, (question, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        named = list(dict.fromkeys((*question.numbers, *answer.numbers)))
        fault = next(filter(None, map(regions.fault, named)), "")
        wider = list(dict.fromkeys((*numbers, *named)))
        if fault:
            problems.append(f"{fault}; turn {number} is left out")
        elif len(wider) > MAX_PROMPTS:
            too_many += 1
        else:
            numbers = wider
            kept.append(Turn(question.with_prompts(numbers), answer.with_prompts(numbers)))
    if too_many:
        problems.append(
            f"{key}: {too_many} of its {len(turns)} turns are left out: a sample holds at most {MAX_PROMPTS} regions"
        )
    if not kept:
        raise BadSample(f"{key}: no turn is left")
    return tuple(kept), numbers


def _announcing(question: str, regions: _Regions, key: str, problems: list[str]) -> str:
    """The first question with all regions in front of it: Osprey's own loader lists them there.

    So its texts may name none ("What do they have in common?").
    """
    faults = [regions.fault(number) for number in range(1, regions.count + 1)]
    names = [f"<region{number}>" for number, fault in enumerate(faults, 1) if not fault]
    problems += [f"{fault}; it is not announced" for fault in faults if fault]
    if not 0 < len(names) <= MAX_PROMPTS:
        raise BadSample(f"{key}: none of its {regions.count} regions is named, and {len(names)} can be drawn")
    return " ".join([*names, question])


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
        numbers = [int((bracketed or bare)[:9]) for bracketed, bare in zip(cut[1::3], cut[2::3], strict=True)]
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
