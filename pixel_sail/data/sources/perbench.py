"""PerBench: captions, multiple choice and segmentation about prompted regions.

The files in `<root>/perbench` are for scoring. Those in `<root>/perbench_train`, in the same format and of other
images, are for training.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.masks import area_px
from pixel_sail.data.options import parse_options, stated_letter
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import (
    member,
    numbered,
    parse_usable,
    read_entries,
    refuse_nothing,
    sized_mask,
    text_member,
)
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.sources.sam_captions import CaptionedObject, read_captions
from pixel_sail.data.templates import DESCRIBE, about
from pixel_sail.tokens import MAX_PROMPTS, SEG
from pixel_sail.types import RLE, BadSample

Task = Literal["caption", "mcq", "vtres"]
FILES: dict[Task, str] = {
    "caption": "STBench_Detailed_Caption.json",
    "mcq": "STBench_MCQ.json",
    "vtres": "STBench_VRES.json",
}
_TAG = re.compile(r"<[A-Za-z]\w*(?: \w+)?>")


@dataclass(frozen=True)
class PerbenchCase:
    id: str  # "caption/3/0": task, entry of the file, and object of the entry (not for vtres)
    image: Path
    size_hw: tuple[int, int]  # pixels, as the masks say
    question: str  # with <PromptK> in place
    prompts: dict[int, RLE]  # K of <PromptK> -> its region, K in order of first mention
    reference: str | tuple[RLE, ...]  # a caption, the letter of the right option, or the masks asked for
    reply: str  # what a model is taught to answer
    masks: tuple[RLE, ...] = ()  # one for each [SEG] of the reply
    answer: str = ""  # mcq: the right answer as the file has it, a letter or a text


@dataclass(frozen=True, slots=True)
class TaughtTurn:
    """What training takes of a case."""

    question: str
    reply: str
    prompts: tuple[RLE, ...]  # of <Prompt0>, <Prompt1>, ...
    masks: tuple[RLE, ...]

    @classmethod
    def of(cls, case: PerbenchCase) -> TaughtTurn:
        return cls(case.question, case.reply, tuple(case.prompts.values()), case.masks)


@dataclass(frozen=True)
class Perbench:
    task: Task
    cases: tuple[PerbenchCase, ...]  # in the order of the file
    problems: tuple[str, ...]  # one line for each entry or object that could not be used


def read_perbench(folder: Path, task: Task) -> Perbench:
    """One task of `<root>/perbench` or `<root>/perbench_train`; the images are under root. Raises DatasetError."""
    return _read(folder, task, ImageFinder(folder.parent))


def _read(folder: Path, task: Task, finder: ImageFinder) -> Perbench:
    problems: list[str] = []
    path = folder / FILES[task]
    if task == "caption":
        parts = [_captions(image, problems) for image in read_captions(path, finder, task, problems)]
    elif task == "mcq":
        parts = read_entries(path, task, lambda entry, key: _mcqs(entry, finder, key, problems), problems)
    else:
        parts = read_entries(path, task, lambda entry, key: [_vres(entry, finder, key)], problems)
    cases = [case for part in parts for case in part]
    refuse_nothing(cases, path, problems)
    return Perbench(task, tuple(cases), tuple(f"{folder.name}/{problem}" for problem in problems))


def open_perbench(task: Task, root: Path, split: str, data: DataConfig) -> RegionSource[TaughtTurn]:
    """Samples of one image each, from `<root>/perbench_train`. Raises DatasetError."""
    folder, finder, problems = root / "perbench_train", ImageFinder(root), list[str]()

    def read() -> list[RegionImage[TaughtTurn]]:
        perbench = _read(folder, task, finder)
        problems.extend(perbench.problems)
        return _by_image(perbench.cases)

    images = kept_entries(
        f"perbench_train/{task}", (folder / FILES[task],), finder.asked, RegionImage[TaughtTurn], problems, read
    )
    return RegionSource(
        images, problems, data.expressions_per_image, _ask_in_other_words if task == "caption" else _ask
    )


def _by_image(cases: Sequence[PerbenchCase]) -> list[RegionImage[TaughtTurn]]:
    by_image: dict[Path, list[PerbenchCase]] = defaultdict(list)
    for case in cases:
        by_image[case.image].append(case)
    return [
        RegionImage(f"perbench_train/{of_image[0].id}", image, tuple(map(TaughtTurn.of, of_image)))
        for image, of_image in by_image.items()
    ]


def _ask(image: RegionImage[TaughtTurn], drawn: list[TaughtTurn], rng: np.random.Generator) -> list[RegionTurn]:
    return [RegionTurn(turn.question, turn.reply, dict(enumerate(turn.prompts)), turn.masks) for turn in drawn]


def _ask_in_other_words(
    image: RegionImage[TaughtTurn], drawn: list[TaughtTurn], rng: np.random.Generator
) -> list[RegionTurn]:
    turns = _ask(image, drawn, rng)
    return [replace(turn, question=about("<Prompt0>", DESCRIBE[rng.integers(len(DESCRIBE))])) for turn in turns]


def _captions(image: RegionImage[CaptionedObject], problems: list[str]) -> list[PerbenchCase]:
    def parse(item: CaptionedObject, key: str) -> PerbenchCase:
        region, question = _region(item.segmentation, key), about("<Prompt0>", DESCRIBE[0])
        size = tuple(region["size"])
        return PerbenchCase(key, image.path, size, question, {0: region}, reference=item.caption, reply=item.caption)

    return parse_usable(((item, item.key) for item in image.items), parse, problems)


def _mcqs(entry: Any, finder: ImageFinder, key: str, problems: list[str]) -> list[PerbenchCase]:
    image = finder.find(member(entry, "image_name", str, key), key)
    mcqs = member(entry, "mcqs", list, key)
    if not mcqs:
        raise BadSample(f"{key}: it has no question")
    return parse_usable(numbered(mcqs, key), partial(_mcq, image), problems)


def _mcq(image: Path, mcq: Any, key: str) -> PerbenchCase:
    question, answer = member(mcq, "question", str, key).strip(), text_member(mcq, "answer", key)
    options = parse_options(question)
    if not options:
        raise BadSample(f"{key}: its question has no options; they are written 'A. red', 'A) red' or '(A) red'")
    letter = stated_letter(answer, options)
    if letter is None:
        raise BadSample(f"{key}: its answer {answer!r} is not one of the options {', '.join(options)}")
    region = _region(member(mcq, "object", object, key), key)
    question = _naming_the_region(question, key)
    # The text and not its letter: small models can name what they see long before they can find its letter.
    reply = options[letter]
    return PerbenchCase(key, image, tuple(region["size"]), question, {0: region}, letter, reply, answer=answer)


def _naming_the_region(question: str, key: str) -> str:
    """The region is <Prompt0>, whatever the file calls it. A question that does not name it gets the name in front."""
    tags = set(_TAG.findall(question))
    if len(tags) > 1:
        raise BadSample(f"{key}: its question names {sorted(tags)}; a multiple-choice question has one region")
    return question.replace(tags.pop(), "<Prompt0>") if tags else f"<Prompt0> {question}"


def _vres(entry: Any, finder: ImageFinder, key: str) -> PerbenchCase:
    image = finder.find(member(entry, "image_name", str, key), key)
    question, answer = member(entry, "question", str, key).strip(), member(entry, "answer", str, key).strip()
    if SEG in answer:
        raise BadSample(f"{key}: its answer contains {SEG}; masks are named there by the tags of its segmentations")
    segmentations = member(entry, "segmentations", dict, key)
    regions = {tag: _region(rle, f"{key}: {tag}") for tag, rle in segmentations.items()}
    asked, answered = _mentions(question, regions), _mentions(answer, regions)
    prompts = {tag: k for k, tag in enumerate(dict.fromkeys(asked))}
    targets = [tag for tag in answered if tag not in prompts]  # a prompted region is known and not an answer
    _check_vres(regions, prompts, targets, key)
    names = {tag: f"<Prompt{prompts[tag]}>" if tag in prompts else SEG for tag in regions}
    question, reply = (_replace(text, names, key) for text in (question, answer))
    return PerbenchCase(
        id=key,
        image=image,
        size_hw=tuple(regions[targets[0]]["size"]),
        question=question,
        prompts={k: regions[tag] for tag, k in prompts.items()},
        reference=tuple(rle for tag, rle in regions.items() if tag in targets),  # file order, as the authors' code
        reply=reply,
        masks=tuple(regions[tag] for tag in targets),
    )


def _check_vres(regions: dict[str, RLE], prompts: dict[str, int], targets: list[str], key: str) -> None:
    unnamed = sorted(set(regions) - set(prompts) - set(targets))
    if unnamed:
        raise BadSample(f"{key}: the segmentations {unnamed} are named neither in the question nor in the answer")
    if not targets:
        raise BadSample(f"{key}: its answer names no segmentation that is not in the question")
    if len(prompts) > MAX_PROMPTS:
        raise BadSample(f"{key}: its question names {len(prompts)} regions, at most {MAX_PROMPTS} can be prompted")
    if len({tuple(region["size"]) for region in regions.values()}) > 1:
        raise BadSample(f"{key}: its segmentations are of several sizes: {[r['size'] for r in regions.values()]}")


def _mentions(text: str, tags: dict[str, Any]) -> list[str]:
    """The tags in `text`, in order, with repeats."""
    return _tag_pattern(tags).findall(text) if tags else []


def _replace(text: str, names: dict[str, str], key: str) -> str:
    unknown = [tag for tag in _TAG.findall(text) if tag not in names]
    if unknown:
        raise BadSample(f"{key}: {unknown[0]} is named, but has no segmentation")
    return _tag_pattern(names).sub(lambda match: names[match[0]], text)


def _tag_pattern(tags: dict[str, Any]) -> re.Pattern[str]:
    """Any of the tags. A tag without brackets must be a whole word: obj1 does not match in obj10."""
    before, after = ({True: guard, False: ""} for guard in (r"(?<!\w)", r"(?!\w)"))
    return re.compile("|".join(before[t[:1].isalnum()] + re.escape(t) + after[t[-1:].isalnum()] for t in tags))


def _region(segmentation: Any, where: str) -> RLE:
    region = sized_mask(segmentation, where)
    if area_px(region) == 0:
        raise BadSample(f"{where}: its mask has no pixel")
    return region


_TURNS: dict[Task, str] = {
    "caption": "a region and its description",
    "mcq": "a question about a region, and the text of the right option",
    "vtres": "a question that names regions; the answer has a `[SEG]` for each region asked for",
}
RECORDS = tuple(
    SourceRecord(
        name=f"perbench_{task}",
        splits=("train",),
        files=(ExpectedFile(f"perbench_train/{file}"),),
        sample="an image",
        turn=_TURNS[task],
        open=partial(open_perbench, task),
        train_only=True,
    )
    for task, file in FILES.items()
)
