"""What every benchmark offers, so that one runner predicts, resumes and scores them all."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.kinds import Names
from pixel_sail.evaluate.pixfoundation.judge import Judge
from pixel_sail.types import RLE, BadSample

MAX_CHARACTERS = 100_000  # of an answer
MAX_MASKS = 1_000  # of an answer

Line = dict[str, Any]  # one case of a predictions file: its ids, `text` and, where a mask is scored, `segmentation`


class Benchmark(Protocol):
    name: str  # "refcoco:val"
    cases: tuple[Any, ...]  # the cases of one image side by side; each has `image`, the path of the image
    problems: tuple[str, ...]  # annotations that cannot be used, one line each
    id_fields: tuple[str, ...]  # fields of a case and of a line that together identify the case
    answer_fields: tuple[str, ...]  # fields of a line that scoring reads

    images_per_call: int  # number of images whose cases go into one call of `predict`

    def predict(self, predictor: Any, cases: Sequence[Any]) -> list[Line]:
        """The lines of some cases. Raises BadSample for an image that cannot be used."""
        ...

    def check(self, line: Line, case: Any, where: str) -> None:
        """Raises BadSample, with a message that begins with `where`, for an answer that cannot be scored."""
        ...

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """Scores of checked lines in case order: percentages as floats, counts as ints, None where undefined."""
        ...

    def result(self, case: Any, line: Line) -> CaseResult:
        """A case beside its checked line, for galleries and reports."""
        ...


class RegionQuestion(Protocol):
    """A question about an image with prompted regions, and the right reply in words."""

    @property
    def image(self) -> Path: ...
    @property
    def size_hw(self) -> tuple[int, int]: ...
    @property
    def question(self) -> str: ...
    @property
    def prompts(self) -> Mapping[int, RLE]: ...  # K of <PromptK> -> its region
    @property
    def reply(self) -> str: ...


@dataclass(frozen=True)
class Options:
    """Settings of scoring. A benchmark takes those that concern it."""

    min_pixels: int = 0  # gRefCOCO: a smaller prediction counts as empty; 0, as in published numbers: no such rule
    judge: Judge | None = None  # pixmmvp, pixcvbench: reads the answers that choose no option; else see judged.py
    requests: Path | None = None  # the file that takes what a judge is to be asked
    replies: tuple[Path, ...] = ()  # files with a judge's replies


@dataclass(frozen=True)
class Definition:
    """What some scores of a benchmark mean, and whose definition it is. docs/benchmarks.md explains each."""

    scores: tuple[str, ...]  # their names in metrics.json
    text: str  # a sentence without its full stop
    source: str  # the paper or the code that defines it; "ours" if nobody else does
    benchmarks: tuple[str, ...] = ()  # names or their beginnings ("grefcoco"); empty: all benchmarks of the kind

    def of(self, benchmark: str) -> bool:
        """Whether it defines scores of this benchmark."""
        return not self.benchmarks or any(
            benchmark == name or benchmark.startswith(f"{name}:") for name in self.benchmarks
        )


@dataclass(frozen=True)
class BenchmarkKind:
    """All that is written about a kind of benchmark. The module of each kind has one; runner.BENCHMARKS lists them."""

    names: Names
    open: Callable[[Path, str, Options], Benchmark]  # data root, name, options; raises DatasetError
    definitions: tuple[Definition, ...] = ()  # of all scores in percent


def identity(item: Any, benchmark: Benchmark) -> tuple[Hashable, ...]:
    """The ids of a case or a line; they are equal where the line answers the case."""
    return tuple(item[name] if isinstance(item, dict) else getattr(item, name) for name in benchmark.id_fields)


def by_image(cases: Sequence[Any]) -> list[list[Any]]:
    """The cases, grouped by image."""
    return [list(group) for _, group in groupby(cases, key=lambda case: case.image)]


def side_by_side(cases: Sequence[Any]) -> tuple[Any, ...]:
    """The cases in the order of their images' first cases, those of one image next to each other."""
    first = {image: number for number, image in enumerate(dict.fromkeys(case.image for case in cases))}
    return tuple(sorted(cases, key=lambda case: first[case.image]))


def calls(benchmark: Benchmark) -> list[list[Any]]:
    """The cases of each call of `benchmark.predict`."""
    images, size = by_image(benchmark.cases), benchmark.images_per_call
    return [sum(images[first : first + size], []) for first in range(0, len(images), size)]


def is_empty(line: Line) -> bool:
    """Whether a line has an answer of our own model, or several, and all of them are without words and masks."""
    texts = [line[name] for name in ("text", "answers", "replies") if name in line]
    masks = [line[name] for name in ("segmentation", "segmentations") if name in line]
    return bool(texts) and not any(_has_content(value) for value in [*texts, *masks])


def _has_content(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_content, value))
    return bool(value.strip() if isinstance(value, str) else value)


def check_words(words: Any, where: str) -> None:
    """Raises BadSample, beginning with `where`, for what is no text, or one that cannot be an answer."""
    if not isinstance(words, str):
        raise BadSample(f"{where}: the text is {reprlib.repr(words)}")
    if len(words) > MAX_CHARACTERS:
        raise BadSample(f"{where}: the text has {len(words):,} characters; at most {MAX_CHARACTERS:,} are scored")
    if not words.isascii():
        try:
            words.encode()
        except UnicodeEncodeError:
            raise BadSample(f"{where}: the text {reprlib.repr(words)} has a lone surrogate") from None


def check_list(values: Any, where: str, what: str) -> None:
    """Raises BadSample, beginning with `where`, unless `values` is a list that is not too long. `what` it holds."""
    if not isinstance(values, list):
        raise BadSample(f"{where} is {reprlib.repr(values)}, expected a list with {what}")
    if len(values) > MAX_MASKS:
        raise BadSample(f"{where} has {len(values):,} members; at most {MAX_MASKS:,} are scored")


def with_unusable(scores: dict[str, Any], problems: Sequence[str]) -> dict[str, Any]:
    """The scores, and `unusable`, the number of annotations left out, if there are any."""
    return scores | ({"unusable": len(problems)} if problems else {})
