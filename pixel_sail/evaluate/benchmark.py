"""What every benchmark offers, so that one runner predicts, resumes and scores them all."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any, Protocol

Line = dict[str, Any]  # one case in a predictions file: its ids, `text` and, where masks are asked for, `segmentation`


class Benchmark(Protocol):
    name: str  # "refcoco:val"
    cases: tuple[Any, ...]  # those of one image side by side; each has `image`, the path of the image
    problems: tuple[str, ...]  # annotations that could not be used, one line each
    id_fields: tuple[str, ...]  # fields of a case and of a line that together say which case it is
    answer_fields: tuple[str, ...]  # fields of a line that scoring reads

    images_per_call: int  # a call of `predict` gets the cases of so many images

    def predict(self, predictor: Any, cases: Sequence[Any]) -> list[Line]:
        """The lines of some cases. Raises BadSample for an image that cannot be used."""
        ...

    def check(self, line: Line, case: Any, where: str) -> None:
        """Raises BadSample, beginning with `where`, for an answer that cannot be scored."""
        ...

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """Scores of checked lines in case order: percentages as floats, counts as ints, None where undefined."""
        ...


def identity(item: Any, benchmark: Benchmark) -> tuple[Hashable, ...]:
    """What joins a line to its case."""
    return tuple(item[name] if isinstance(item, dict) else getattr(item, name) for name in benchmark.id_fields)


def by_image(cases: Sequence[Any]) -> list[list[Any]]:
    """The cases of each image together."""
    return [list(group) for _, group in groupby(cases, key=lambda case: case.image)]


def calls(benchmark: Benchmark) -> list[list[Any]]:
    """The cases of each call of `benchmark.predict`."""
    images, size = by_image(benchmark.cases), benchmark.images_per_call
    return [sum(images[first : first + size], []) for first in range(0, len(images), size)]


def with_unusable(scores: dict[str, Any], problems: Sequence[str]) -> dict[str, Any]:
    """`unusable` counts the annotations left out, where there are any."""
    return scores | ({"unusable": len(problems)} if problems else {})
