"""When grounding emerges: the place and the concept of the phrase of an answer whose mask fits the object best.

The phrases and their masks come from attend-and-segment: one line for each image in phrases.jsonl. For each image with
an object, the best phrase is the one whose mask has the highest IoU, the first of equal ones. Its place is the middle
of its tokens as a share of the answer's tokens (PixFoundation, arXiv 2502.04192).

Every answer has a best phrase, if only by luck. So the counts of all best phrases ("best") come with two more: those
whose mask is right ("right": IoU > 0.5), and the expected counts if every phrase of the same answer were equally
likely to be the best ("chance").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixel_sail import durable
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import check_rle
from pixel_sail.data.text import refuse_text
from pixel_sail.evaluate.pixfoundation.failures import MIN_IOU, mask_iou
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.files import parse_json
from pixel_sail.studies.emergence.concepts import CONCEPTS, Concept, concept_of
from pixel_sail.types import RLE, BadSample

BINS = 10
MAX_TOKENS = 2**20  # of an answer


@dataclass(frozen=True)
class Phrase:
    text: str
    tokens: tuple[int, int]  # [first, end) among the generated tokens
    point_xy: tuple[float, float]  # pixels of the stored image; the point that prompted the masks
    masks: tuple[RLE, ...]  # of the stored image's size


@dataclass(frozen=True)
class Answer:
    """A line of phrases.jsonl: a model's answer about an image, and the masks of its phrases."""

    index: int  # of the PixObject
    prompt: str
    output: str
    tokens: int  # generated
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True)
class BestPhrase:
    """The best phrase of one image."""

    index: int
    prompt: str
    output: str
    phrase: str
    tokens: tuple[int, int]
    place: float  # of its middle: 0 is the start of the output, 1 is its end
    bin: int
    concept: Concept
    iou: float
    point_xy: tuple[float, float]
    mask: RLE


@dataclass(frozen=True)
class Results:
    """Counts by place, in `BINS` bins, and by concept. The module's docstring explains best, right and chance."""

    images: int
    right: int
    miou: float | None  # percent, over `images`
    absent: tuple[int, ...]  # indices of images that are left out because the object is absent
    speechless: tuple[int, ...]  # left out because no phrase has a mask
    places: dict[str, list[float]]
    concepts: dict[str, dict[Concept, float]]
    best: tuple[BestPhrase, ...]


def read_answers(path: Path, objects: Mapping[int, PixObject]) -> list[Answer]:
    """The lines of a phrases.jsonl; `objects` by index. Raises DatasetError, BadSample for a mask of another size."""
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; tools/attend_segment.py writes it")
    answers: dict[int, Answer] = {}
    for number, row in enumerate(durable.whole_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            line = parse_json(row)
            index = line["index"]
            if index not in objects or index in answers:
                problem = "is in the file twice" if index in answers else "is not in the benchmark"
                raise DatasetError(f"{where}: image {index} {problem}")
            answers[index] = _answer(line, objects[index], where)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, DatasetError | BadSample):
                raise
            raise DatasetError(f"{where}: {row[:60]!r} is not an answer with phrases ({error!r})") from None
    return list(answers.values())


def _answer(line: dict[str, Any], target: PixObject, where: str) -> Answer:
    phrases = []
    for phrase in line["phrases"]:
        (first, end), (x, y) = phrase["tokens"], phrase["point_xy"]
        whole = all(type(number) is int for number in (first, end, line["tokens"]))
        if not whole or not 0 <= first < end <= line["tokens"] <= MAX_TOKENS:
            raise DatasetError(f"{where}: {phrase['text']!r} has tokens {first} to {end} of {line['tokens']}")
        if not isinstance(phrase["text"], str) or not (math.isfinite(x) and math.isfinite(y)):
            raise DatasetError(f"{where}: a phrase without a text or a point")
        refuse_text(phrase["text"], where)
        masks = tuple(check_rle(mask, target.size_hw, where) for mask in phrase["masks"])
        phrases.append(Phrase(phrase["text"], (first, end), (x, y), masks))
    if not all(isinstance(line[key], str) for key in ("prompt", "output")):
        raise DatasetError(f"{where}: the prompt and the output must be texts")
    for key in ("prompt", "output"):
        refuse_text(line[key], where)
    return Answer(line["index"], line["prompt"], line["output"], line["tokens"], tuple(phrases))


def summarize(answers: Sequence[Answer], objects: Mapping[int, PixObject]) -> Results:
    """The best phrase of each answer, and histograms of their places and concepts."""
    absent = [answer.index for answer in answers if objects[answer.index].mask_rle is None]
    present = [answer for answer in answers if answer.index not in absent]
    speaking = [answer for answer in present if any(phrase.masks for phrase in answer.phrases)]
    best = [best_phrase(answer, objects[answer.index]) for answer in speaking]
    right = [phrase for phrase in best if phrase.iou > MIN_IOU]
    by_chance = [_chance(answer) for answer in speaking]
    places = {
        "best": _count([phrase.bin for phrase in best], range(BINS)),
        "right": _count([phrase.bin for phrase in right], range(BINS)),
        "chance": _sums([bins for bins, _ in by_chance], range(BINS)),
    }
    concepts = {
        "best": dict(zip(CONCEPTS, _count([phrase.concept for phrase in best], CONCEPTS), strict=True)),
        "right": dict(zip(CONCEPTS, _count([phrase.concept for phrase in right], CONCEPTS), strict=True)),
        "chance": dict(zip(CONCEPTS, _sums([names for _, names in by_chance], CONCEPTS), strict=True)),
    }
    return Results(
        images=len(best),
        right=len(right),
        miou=100 * sum(phrase.iou for phrase in best) / len(best) if best else None,
        absent=tuple(absent),
        speechless=tuple(answer.index for answer in present if answer not in speaking),
        places=places,
        concepts=concepts,
        best=tuple(best),
    )


def best_phrase(answer: Answer, target: PixObject) -> BestPhrase:
    """The phrase with the mask of highest IoU with the object; the first of equal ones."""
    options = [(mask_iou(mask, target), phrase, mask) for phrase in answer.phrases for mask in phrase.masks]
    iou, phrase, mask = max(options, key=lambda option: option[0])
    return BestPhrase(
        index=answer.index,
        prompt=answer.prompt,
        output=answer.output,
        phrase=phrase.text,
        tokens=phrase.tokens,
        place=place_of(phrase, answer),
        bin=bin_of(phrase, answer),
        concept=_concept(phrase, answer),
        iou=iou,
        point_xy=phrase.point_xy,
        mask=mask,
    )


def place_of(phrase: Phrase, answer: Answer) -> float:
    """The middle of its tokens, as a share of all tokens: 0.5 for the only token of an output."""
    return sum(phrase.tokens) / (2 * answer.tokens)


def bin_of(phrase: Phrase, answer: Answer) -> int:
    """0 to BINS - 1: the tenth of the output that contains its middle."""
    return BINS * sum(phrase.tokens) // (2 * answer.tokens)


def _concept(phrase: Phrase, answer: Answer) -> Concept:
    return concept_of(phrase.text, answer.output, place_of(phrase, answer))


def _chance(answer: Answer) -> tuple[dict[int, float], dict[Concept, float]]:
    """The shares of bins and of concepts among the phrases that have masks."""
    phrases = [phrase for phrase in answer.phrases if phrase.masks]
    bins = [bin_of(phrase, answer) for phrase in phrases]
    concepts = [_concept(phrase, answer) for phrase in phrases]
    return (
        {number: bins.count(number) / len(phrases) for number in set(bins)},
        {concept: concepts.count(concept) / len(phrases) for concept in set(concepts)},
    )


def _count(values: Sequence[Any], kinds: Sequence[Any]) -> list[float]:
    return [values.count(kind) for kind in kinds]


def _sums(shares: Sequence[Mapping[Any, float]], kinds: Sequence[Any]) -> list[float]:
    return [sum(share.get(kind, 0.0) for share in shares) for kind in kinds]


def write_results(results: Results, out: Path) -> Path:
    """`emergence.json`: every number of the histograms, and the best phrase of each image with its mask."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "emergence.json"
    durable.write_json(path, asdict(results))
    return path


def table(results: Results) -> str:
    """The two histograms as text, and the number of images that are left out."""
    lines = [f"{'':<12}{'best':>8}{'right':>8}{'chance':>8}"]
    for number in range(BINS):
        row = [results.places[name][number] for name in ("best", "right", "chance")]
        lines.append(_line(f"{10 * number} to {10 * number + 10} %", row))
    for concept in CONCEPTS:
        row = [results.concepts[name][concept] for name in ("best", "right", "chance")]
        lines.append(_line(concept, row))
    miou = "-" if results.miou is None else f"{results.miou:.1f}"
    lines.append(
        f"{results.images} images, mIoU of the best phrases {miou}, {results.right} right; left out: "
        f"{len(results.absent)} without an object, {len(results.speechless)} without a phrase"
    )
    return "\n".join(lines)


def _line(name: str, row: Sequence[float]) -> str:
    shown = (f"{value:.1f}".removesuffix(".0") for value in row)
    return f"{name:<12}" + "".join(f"{value:>8}" for value in shown)
