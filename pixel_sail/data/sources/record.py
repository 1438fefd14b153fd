"""What a reader says about its dataset. Opening, `tools/prepare_data.py check` and data/README.md all read this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import numpy as np

from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import exists
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.columns import E, Entries
from pixel_sail.data.text import printable
from pixel_sail.types import Sample


class Source(Protocol):
    """A dataset as Samples. `problems` has one line for each annotation that was left out on reading."""

    problems: list[str]

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The key that `sample(index, ...)` will carry, without reading it."""
        ...

    def image(self, index: int) -> Path | bytes | None:
        """The image file that `sample(index, ...)` will carry, without decoding it. None for a text alone."""
        ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The same `index` and state of `rng` give the same Sample. Raises BadSample."""
        ...


class EntrySource(Generic[E]):
    """The part of a Source that is the same for all: entries with key and image. `sample` is in the subclasses.

    Entries are kept as bytes, and each is made anew when it is asked for.
    """

    def __init__(self, entries: Sequence[E], problems: list[str]) -> None:
        problems[:] = map(printable, problems)
        self.problems = problems
        self._entries = entries if isinstance(entries, Entries) else Entries.packed(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, index: int) -> str:
        return self._entries.key(index)

    def image(self, index: int) -> Path | None:
        return self._entries.path(index)


@dataclass(frozen=True)
class ExpectedFile:
    """A file or folder that a source needs. `{split}` in a place stands for the name of the split."""

    place: str  # relative to the data root
    other_places: tuple[str, ...] = ()  # where it may be instead: the first place that exists is read
    splits: tuple[str, ...] = ()  # the splits that need it; empty: all of them

    @property
    def places(self) -> tuple[str, ...]:
        return (self.place, *self.other_places)

    def path(self, root: Path, split: str) -> Path:
        """The first place that exists, or the first of all if none does."""
        paths = self._paths(root, split)
        return next((path for path in paths if exists(path)), paths[0])

    def find(self, root: Path, split: str) -> Path:
        """The first place that exists. Raises DatasetError, naming all places, if none does."""
        path = self.path(root, split)
        if not exists(path):
            raise DatasetError(f"no file {self.where(root, split)}")
        return path

    def where(self, root: Path, split: str) -> str:
        """All places, for a message: "<root>/a.json or <root>/b.json"."""
        return " or ".join(map(str, self._paths(root, split)))

    def _paths(self, root: Path, split: str) -> list[Path]:
        return [root / place.replace("{split}", split) for place in self.places]


@dataclass(frozen=True)
class SourceRecord:
    """One source of samples: a name that `data.mixture` may use."""

    name: str
    splits: tuple[str, ...]  # the published ones, which `tools/prepare_data.py check` tries
    files: tuple[ExpectedFile, ...]  # the first tells whether the dataset is there; empty: not part of a data root
    sample: str  # what one sample is, in a phrase for the table in data/README.md
    turn: str  # what one turn is, likewise
    # one of the two; both raise DatasetError and ConfigError
    open: Callable[[Path, str, DataConfig], Source] | None = None  # (data root, split, settings)
    open_entry: Callable[[MixtureEntry, DataConfig], Source] | None = None  # of one with keys of its own in the mixture
    train_only: bool = False  # any split but "train" is refused
    image_folders: tuple[str, ...] = ImageFinder.FOLDERS  # searched in this order; empty: no folder of images
    check_all: bool = False  # a file of the user's own: `check` decodes every sample, and each problem is an error

    def files_of(self, split: str) -> tuple[ExpectedFile, ...]:
        """What a split needs, the annotations first."""
        return tuple(file for file in self.files if not file.splits or split in file.splits)
