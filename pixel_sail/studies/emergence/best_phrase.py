"""When grounding emerges: where in a model's answer the phrase stands whose mask fits the object best, and its concept.

The phrases and their masks are those of attend-and-segment (attend_segment.py), one line an image in phrases.jsonl.
For each image with an object the phrase with the highest IoU is taken, over its masks; of equal ones the first. Its
place is the middle of its tokens as a share of the answer's tokens (PixFoundation, arXiv 2502.04192).

There is always a best phrase, if only by luck. Beside all best phrases ("best") stand therefore those whose mask is
right ("right": IoU > 0.5), and what would come out if any phrase of the same answer were as likely to be the best
("chance").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import check_rle
from pixel_sail.evaluate.pixfoundation.failures import MIN_IOU, mask_iou
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.studies.emergence.concepts import CONCEPTS, Concept, concept_of
from pixel_sail.types import RLE, BadSample

BINS = 10
# (phrase, answer) -> the name of a concept; anything else, and the rules decide
Judge = Callable[[str, str], str | None]


@dataclass(frozen=True)
class Phrase:
    text: str
    tokens: tuple[int, int]  # [first, end) among the generated tokens
    point_xy: tuple[float, float]  # pixels of the stored image; what the masks were asked with
    masks: tuple[RLE, ...]  # of the stored image's size


@dataclass(frozen=True)
class Answered:
    """A line of phrases.jsonl: what a model said about an image, and the masks of its phrases."""

    index: int  # of the PixObject
    prompt: str
    output: str
    tokens: int  # generated
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True)
class Emerged:
    """The best phrase of one image."""

    index: int
    prompt: str
    output: str
    phrase: str
    tokens: tuple[int, int]
    place: float  # of its middle: 0 is the start of the output, 1 its end
    bin: int
    concept: Concept
    judged: bool  # whether the judge named the concept; else the rules
    iou: float
    point_xy: tuple[float, float]
    mask: RLE


@dataclass(frozen=True)
class Results:
    """Counts by place, in `BINS` bins, and by concept; see the module's docstring for best, right and chance.

    `chance` of the concepts is by the rules: None where a judge named those of the best phrases.
    """

    images: int
    right: int
    miou: float | None  # percent, over `images`
    absent: tuple[int, ...]  # indices left out: the object is not in the image
    speechless: tuple[int, ...]  # left out: no phrase with a mask
    places: dict[str, list[float]]
    concepts: dict[str, dict[Concept, float] | None]
    best: tuple[Emerged, ...]


def read_answers(path: Path, objects: Mapping[int, PixObject]) -> list[Answered]:
    """The lines of a phrases.jsonl; `objects` by index. Raises DatasetError, BadSample for a mask that does not fit."""
    if not path.is_file():
        raise DatasetError(f"no file of phrases {path}; tools/attend_segment.py writes it")
    found: dict[int, Answered] = {}
    for number, row in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            line = json.loads(row)
            index = line["index"]
            if index not in objects or index in found:
                why = "is in the file twice" if index in found else "is not of the benchmark"
                raise DatasetError(f"{where}: image {index} {why}")
            found[index] = _answered(line, objects[index], where)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, DatasetError | BadSample):
                raise
            raise DatasetError(f"{where}: {row[:60]!r} is no answer with phrases ({error!r})") from None
    return list(found.values())


def _answered(line: dict[str, Any], one: PixObject, where: str) -> Answered:
    phrases = []
    for phrase in line["phrases"]:
        (first, end), (x, y) = phrase["tokens"], phrase["point_xy"]
        if not 0 <= first < end <= line["tokens"]:
            raise DatasetError(f"{where}: {phrase['text']!r} has tokens {first} to {end} of {line['tokens']}")
        masks = tuple(check_rle(mask, one.size_hw, where) for mask in phrase["masks"])
        phrases.append(Phrase(phrase["text"], (first, end), (x, y), masks))
    return Answered(line["index"], line["prompt"], line["output"], line["tokens"], tuple(phrases))


def when(answers: Sequence[Answered], objects: Mapping[int, PixObject], judge: Judge | None = None) -> Results:
    """Best phrases and their histograms, over the images of `answers`."""
    absent = [one.index for one in answers if objects[one.index].mask_rle is None]
    there = [one for one in answers if one.index not in absent]
    speaking = [one for one in there if any(phrase.masks for phrase in one.phrases)]
    best = [best_phrase(one, objects[one.index], judge) for one in speaking]
    right = [one for one in best if one.iou > MIN_IOU]
    by_chance = [_chance(one) for one in speaking]
    places = {
        "best": _count([one.bin for one in best], range(BINS)),
        "right": _count([one.bin for one in right], range(BINS)),
        "chance": _sums([bins for bins, _ in by_chance], range(BINS)),
    }
    concepts: dict[str, dict[Concept, float] | None] = {
        "best": dict(zip(CONCEPTS, _count([one.concept for one in best], CONCEPTS), strict=True)),
        "right": dict(zip(CONCEPTS, _count([one.concept for one in right], CONCEPTS), strict=True)),
        "chance": dict(zip(CONCEPTS, _sums([names for _, names in by_chance], CONCEPTS), strict=True)),
    }
    return Results(
        images=len(best),
        right=len(right),
        miou=100 * sum(one.iou for one in best) / len(best) if best else None,
        absent=tuple(absent),
        speechless=tuple(one.index for one in there if one not in speaking),
        places=places,
        concepts=concepts if judge is None else concepts | {"chance": None},
        best=tuple(best),
    )


def best_phrase(answer: Answered, one: PixObject, judge: Judge | None = None) -> Emerged:
    """The phrase of which some mask has the highest IoU with the object; the first of equal ones."""
    options = [(mask_iou(mask, one), phrase, mask) for phrase in answer.phrases for mask in phrase.masks]
    iou, phrase, mask = max(options, key=lambda option: option[0])
    said = None if judge is None else judge(phrase.text, answer.output)
    judged = said in CONCEPTS
    return Emerged(
        index=answer.index,
        prompt=answer.prompt,
        output=answer.output,
        phrase=phrase.text,
        tokens=phrase.tokens,
        place=place_of(phrase, answer),
        bin=bin_of(phrase, answer),
        concept=said if judged else _concept(phrase, answer),
        judged=judged,
        iou=iou,
        point_xy=phrase.point_xy,
        mask=mask,
    )


def place_of(phrase: Phrase, answer: Answered) -> float:
    """The middle of its tokens, as a share of all: of the only token of an output, 0.5."""
    return sum(phrase.tokens) / (2 * answer.tokens)


def bin_of(phrase: Phrase, answer: Answered) -> int:
    """0 to BINS - 1: the tenth of the output in which its middle lies."""
    return BINS * sum(phrase.tokens) // (2 * answer.tokens)


def _concept(phrase: Phrase, answer: Answered) -> Concept:
    return concept_of(phrase.text, answer.output, place_of(phrase, answer))


def _chance(answer: Answered) -> tuple[dict[int, float], dict[Concept, float]]:
    """Shares of bins and concepts among the phrases that have masks."""
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
    """`when.json`: every number of the images, and the best phrase of each image with its mask."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "when.json"
    path.write_text(json.dumps(asdict(results), indent=1) + "\n")
    return path


def table(results: Results) -> str:
    """The two histograms as lines of text, and what is left out."""
    lines = [f"{'':<12}{'best':>8}{'right':>8}{'chance':>8}"]
    for number in range(BINS):
        row = [results.places[name][number] for name in ("best", "right", "chance")]
        lines.append(_line(f"{10 * number} to {10 * number + 10} %", row))
    for concept in CONCEPTS:
        row = [(results.concepts[name] or {}).get(concept) for name in ("best", "right", "chance")]
        lines.append(_line(concept, row))
    miou = "-" if results.miou is None else f"{results.miou:.1f}"
    lines.append(
        f"{results.images} images, mIoU of the best phrases {miou}, {results.right} right; left out: "
        f"{len(results.absent)} without an object, {len(results.speechless)} without a phrase"
    )
    return "\n".join(lines)


def _line(name: str, row: Sequence[float | None]) -> str:
    shown = ("-" if value is None else f"{value:.1f}".removesuffix(".0") for value in row)
    return f"{name:<12}" + "".join(f"{value:>8}" for value in shown)
