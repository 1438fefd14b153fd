"""The cases of a referring benchmark: every sentence of every ref of a split, grouped by image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources import grefer, refer
from pixel_sail.types import RLE


@dataclass(frozen=True)
class Case:
    ref_id: int
    sent_id: int
    sentence: str
    image: Path
    image_id: int
    size_hw: tuple[int, int]  # pixels of the stored image
    mask: RLE | None  # None: nothing in the image matches
    # objects united in the mask; not in the repr, by which earlier predictions are recognized
    targets: int = field(default=1, repr=False)


@dataclass(frozen=True)
class Cases:
    name: str  # "refcoco:val"
    cases: tuple[Case, ...]  # by image id
    problems: tuple[str, ...]  # annotations that could not be used, one line each

    @property
    def has_no_target(self) -> bool:
        """Whether the benchmark is generalized: an expression may match nothing."""
        return self.name.startswith(grefer.NAME + ":")


def read_benchmark(root: Path, name: str) -> Cases:
    """`name` is dataset:split, for example "refcoco+:testA". Raises DatasetError for an unknown or unreadable one."""
    dataset, colon, split = name.partition(":")
    known = (*refer.NAMES, grefer.NAME)
    if dataset not in known or not colon:
        raise DatasetError(f"unknown benchmark {name!r}: write dataset:split with one of {', '.join(known)}")
    referring = refer.read_refer(root, dataset, split) if dataset in refer.NAMES else grefer.read_grefer(root, split)
    cases = tuple(
        Case(
            referent.ref_id,
            sent_id,
            sentence,
            image.path,
            image.image_id,
            image.size_hw,
            referent.mask,
            referent.targets,
        )
        for image in referring.images
        for referent in image.referents
        for sent_id, sentence in referent.sentences
    )
    return Cases(name, cases, referring.problems)
