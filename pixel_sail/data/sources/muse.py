"""MUSE (PixelLM, arXiv 2312.02228): questions whose answer names several objects."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.masks import area_px, from_coco
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, numbered, parse_usable, refuse_tokens, size_member
from pixel_sail.data.sources.pieces import kept_list
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.sources.targets import refuse_empty
from pixel_sail.data.templates import listed
from pixel_sail.tokens import SEG
from pixel_sail.types import BadSample

NAME = "muse"
FILE = ExpectedFile("muse/MUSE_{split}.json", other_places=("muse/muse_{split}.json",))  # PixelLM has both
_PLACE = "{seg}"


@dataclass(frozen=True, slots=True)
class Question:
    where: str
    question: str
    answer: str  # with a [SEG] for each segmentation
    segmentations: tuple[Any, ...]  # as in the file: decoded only when they are drawn
    size_hw: tuple[int, int]  # pixels


def open_muse(root: Path, split: str, data: DataConfig) -> RegionSource[Question]:
    """Samples of one image with several questions. Raises DatasetError; unusable questions are in `.problems`."""
    problems: list[str] = []
    finder = ImageFinder(root)

    def parse(entry: Any, key: str) -> RegionImage[Question]:
        url = "file_name" if isinstance(entry, dict) and "file_name" in entry else "coco_url"
        image = finder.find(member(entry, url, str, key).rsplit("/", 1)[-1], key)
        questions, answers = member(entry, "questions", list, key), member(entry, "answers", list, key)
        texts = entry.get("text_answers") or [None] * len(questions)
        if not isinstance(texts, list) or not len(questions) == len(answers) == len(texts):
            texts = texts if isinstance(texts, list) else [texts]
            raise BadSample(f"{key}: {len(questions)} questions, {len(answers)} answers, {len(texts)} text_answers")
        size = size_member(entry, key)
        triples = numbered(zip(questions, answers, texts, strict=True), key)
        usable = parse_usable(triples, lambda triple, where: _question(*triple, size, where), problems)
        if not usable:
            raise BadSample(f"{key}: no question is left")
        return RegionImage(key, image, tuple(usable))

    path = FILE.find(root, split)
    images = kept_list(path, f"{NAME}/{split}", RegionImage[Question], parse, problems, finder.asked)
    return RegionSource(images, problems, data.expressions_per_image, _ask)


def _question(question: Any, answer: Any, text: Any, size_hw: tuple[int, int], where: str) -> Question:
    if not isinstance(question, str) or not question.strip() or not isinstance(answer, list) or not answer:
        raise BadSample(f"{where}: it needs a question and a list of the objects that answer it")
    segmentations = tuple(member(target, "segmentation", object, where) for target in answer)
    for segmentation in segmentations:
        refuse_empty(segmentation, size_hw, where)
    if text is None:
        keys = ["rephrased_name" if target.get("rephrased_name") else "category_name" for target in answer]
        names = [member(target, key, str, where) for target, key in zip(answer, keys, strict=True)]
        text = listed([f"{name} {_PLACE}" for name in names]) + "."
    if not isinstance(text, str) or text.count(_PLACE) != len(answer):
        raise BadSample(f"{where}: its answer {reprlib.repr(text)} needs a {_PLACE} for each of {len(answer)} objects")
    for part in (question, text):
        refuse_tokens(part, where)
    return Question(where, question.strip(), text.strip().replace(_PLACE, SEG), segmentations, size_hw)


def _ask(image: RegionImage[Question], drawn: list[Question], rng: np.random.Generator) -> list[RegionTurn]:
    turns = []
    for item in drawn:
        masks = tuple(from_coco(segmentation, *item.size_hw, item.where) for segmentation in item.segmentations)
        if not all(map(area_px, masks)):
            raise BadSample(f"{item.where}: one of its masks has no pixel")
        turns.append(RegionTurn(item.question, item.answer, masks=masks))
    return turns


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val", "test_less", "test_many"),  # test_less: up to three objects per answer
        files=(FILE,),
        sample="an image",
        turn="a question; the answer has one `[SEG]` per object",
        open=open_muse,
    ),
)
