"""Several sources in one conversation: `also` of an entry of data.mixture.

The tokens of an image cost more than the questions about it. Where several datasets annotate the same images, as all of
COCO's do, joined conversations show an image once for the questions of all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.identity import image_identity
from pixel_sail.data.sources.record import Source
from pixel_sail.data.sources.region_turns import RegionTurn, compose
from pixel_sail.data.turn_masks import check_one_mask_each, turns_with_masks
from pixel_sail.tokens import prompt_names
from pixel_sail.types import BadSample, NoPixels, Sample


class JoinedSource:
    """Samples of one source, each with the turns of other sources about its image (see `Source`).

    Files of one image are found by `image_identity`. The turns are in random order. A sample to whose image the others
    say nothing stays as it is, as does one without an image.
    """

    def __init__(self, first: Source, others: Sequence[Source], names: Sequence[str]) -> None:
        """`names`: of the first and the others, for messages.

        Raises DatasetError for images that are not files, and for one of the others that shares none with the first.
        """
        images = [_identity(first, index, names[0]) for index in range(len(first))]
        self.first, self._others = first, list(others)
        self._found = [_find(images, other, (names[0], name)) for other, name in zip(others, names[1:], strict=True)]
        self.problems = [problem for source in (first, *others) for problem in source.problems]

    def __len__(self) -> int:
        return len(self.first)

    def key(self, index: int) -> str:
        """The keys of all samples that are joined."""
        return " + ".join(source.key(i) for source, i in self._parts(index))

    def image(self, index: int) -> Path | bytes | None:
        return self.first.image(index)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Raises BadSample as the sources do, and where several images would be joined; NoPixels if none has pixels."""
        parts = list(self._parts(index))
        if len(parts) == 1:
            return self.first.sample(index, rng)
        samples, reasons = [], []
        for source, i in parts:
            try:
                samples.append(source.sample(i, rng))
            except NoPixels as error:
                reasons.append(error)
        if not samples:
            raise reasons[0]
        turns = [turn for sample in samples for turn in _turns(sample)]
        joined = compose(self.key(index), samples[0].image, [turns[i] for i in rng.permutation(len(turns))])
        dropped = len(reasons) + sum(sample.dropped_turns for sample in samples)
        return replace(joined, dropped_turns=joined.dropped_turns + dropped)

    def _parts(self, index: int) -> Iterator[tuple[Source, int]]:
        """Every sample that is joined: its source, and its index there."""
        yield self.first, index
        for other, (starts, indices) in zip(self._others, self._found, strict=True):
            for i in indices[starts[index] : starts[index + 1]]:
                yield other, int(i)


def _find(images: list[str | None], other: Source, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Which samples of `other` are of the images: those of image n are indices[starts[n] : starts[n + 1]]."""
    by_image: dict[str | None, list[int]] = defaultdict(list)
    for index in range(len(other)):
        by_image[_identity(other, index, names[1])].append(index)
    by_image.pop(None, None)
    found = [by_image.get(image, []) for image in images]
    if not any(found):
        first, second = (next(filter(None, some), "no image") for some in (images, by_image))
        raise DatasetError(
            f"data.mixture: {names[0]} has also: {names[1]}, but they share no image; the first of the one is {first}, "
            f"of the other {second}"
        )
    starts = np.cumsum([0, *map(len, found)])
    return starts, np.array([index for indices in found for index in indices], dtype=np.int64)


def _identity(source: Source, index: int, name: str) -> str | None:
    """Which image a sample is about; None for a text alone."""
    image = source.image(index)
    if isinstance(image, bytes):
        raise DatasetError(f"data.mixture: {name} cannot be joined with others by also: its images are not files")
    return None if image is None else image_identity(image)


def _turns(sample: Sample) -> Iterator[RegionTurn]:
    """The turns of a sample, each with its own masks and regions."""
    if len(sample.images) > 1:
        raise BadSample(f"{sample.key}: it has several images, so it cannot be joined with other questions about one")
    check_one_mask_each(sample)
    for turn, own in turns_with_masks(sample):
        named = prompt_names(turn.question + turn.answer)
        prompts = {k: sample.prompts[k] for k in named if k in sample.prompts}
        yield RegionTurn(turn.question, turn.answer, prompts, tuple(sample.masks[n] for n in own))
