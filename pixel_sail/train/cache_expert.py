"""Runs an expert once over every image of a run's training data and stores its features (data/feature_cache.py)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pixel_sail.config import Config, ConfigError, ExpertConfig, ModelSection
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.feature_cache import CacheWriter, finish, image_digest, made_with, stored_digests, student_grid
from pixel_sail.data.image import load_image
from pixel_sail.data.sources import Source, open_source
from pixel_sail.data.teachers import teacher_picture
from pixel_sail.experts import Expert, open_expert
from pixel_sail.losses import resize_features
from pixel_sail.types import BadSample

Place = Path | tuple[int, int]  # an image file, or the (source, sample) that has it


@dataclass(frozen=True)
class Ready:
    """An image as the expert is to see it."""

    digest: str
    picture: Tensor  # (3, H, W) uint8
    grid_hw: tuple[int, int]  # of the student's features


class Images(Dataset):
    """Item i is image i made ready, None where its features are stored already, or why it cannot be read."""

    def __init__(
        self, config: Config, expert: ExpertConfig, multiple: int, sources: Sequence[Source], places: Sequence[Place]
    ):
        self.config, self.expert, self.multiple = config, expert, multiple
        self.sources, self.places = sources, places
        self.stored: set[str] = set()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Ready | str | None:
        place = self.places[number]
        try:
            image = place if isinstance(place, Path) else _image(self.sources, *place)
            digest = image_digest(image)
            if digest in self.stored:
                return None
            picture = load_image(image)
        except BadSample as error:
            return str(error)
        shown = teacher_picture(picture, self.expert.size_px, self.expert.fit, self.multiple)
        return Ready(digest, shown, student_grid(picture.size, self.expert, self.config.model))


def cache_expert(
    config: Config,
    name: str,
    device: torch.device | str,
    process: int = 0,
    processes: int = 1,
    batch_size: int = 8,
    progress: bool = True,
) -> list[str]:
    """Stores what is missing of the share of `process` in `processes`; returns a line for each image left out.

    It can be killed at any moment and called again. Raises ConfigError for an expert that cannot be used and a folder
    with other features, DatasetError for more than data.max_bad_samples unreadable images.
    """
    expert = find_expert(config, name)
    opened = open_expert(expert, device)
    sources = [open_source(entry, config.data) for entry in config.data.mixture]
    with CacheWriter(expert.cache, manifest_of(expert, config.model, opened), process, processes) as writer:
        places = list_images(sources, process, processes, progress)
        images = Images(config, expert, opened.multiple, sources, places)
        images.stored = stored_digests(expert.cache, opened.width)
        return store_images(opened, images, writer, config, batch_size, progress)


def manifest_of(expert: ExpertConfig, model: ModelSection, opened: Expert) -> dict[str, Any]:
    """What a cache's manifest says before there are statistics."""
    weights = {"fingerprint": opened.fingerprint}
    return {"made_with": made_with(expert, model) | weights, "path": expert.path, "width": opened.width}


def finish_cache(config: Config, name: str, progress: bool = True) -> str:
    """Checks what all processes stored and writes the statistics; a sentence about it. See feature_cache.finish."""
    folder = find_expert(config, name).cache
    statistics = finish(folder, progress)
    each = statistics["bytes"] / statistics["images"]
    return f"{folder}: {statistics['images']} images, {each / 1e3:.1f} kB an image, {statistics['bytes'] / 1e9:.3f} GB"


def find_expert(config: Config, name: str) -> ExpertConfig:
    """The expert of that name; ConfigError where there is none, or it has no cache to write."""
    for expert in config.experts:
        if expert.name == name:
            if expert.cache is None:
                raise ConfigError(f"expert {name!r} has no cache in the config: name the folder to write as its cache")
            return expert
    raise ConfigError(
        f"no expert {name!r} in the config; it has: {', '.join(e.name for e in config.experts) or 'none'}"
    )


def list_images(sources: Sequence[Source], process: int, processes: int, progress: bool) -> list[Place]:
    """Where each different image of the data is that falls to `process`. Samples that cannot be read are passed over.

    (Training names and counts those.) The same image in two files may be listed twice.
    """
    places: dict[str, Place] = {}
    total = sum(len(source) for source in sources)
    with tqdm(total=total, desc="listing images", unit="sample", disable=not progress) as bar:
        for number, source in enumerate(sources):
            for index in range(len(source)):
                bar.update()
                try:
                    image = source.sample(index, np.random.default_rng(0)).image
                except BadSample:
                    continue
                if image is not None:
                    found = image if isinstance(image, Path) else (number, index)
                    places.setdefault(str(image) if isinstance(image, Path) else image_digest(image), found)
    return [place for name, place in places.items() if zlib.crc32(name.encode()) % processes == process]


def store_images(
    expert: Expert, images: Images, writer: CacheWriter, config: Config, batch_size: int, progress: bool
) -> list[str]:
    """Runs the expert over `images`; returns and raises as `cache_expert` does."""
    problems: list[str] = []
    waiting: list[Ready] = []
    written: set[str] = set()
    for item in tqdm(_read(images, config.data.workers), total=len(images), unit="image", disable=not progress):
        if isinstance(item, str):
            problems.append(item)
            if len(problems) > config.data.max_bad_samples:
                raise DatasetError(f"more than {config.data.max_bad_samples} images cannot be read; last: {item}")
        elif item is not None and item.digest not in written:
            written.add(item.digest)
            waiting.append(item)
        if len(waiting) == batch_size:
            _store(expert, waiting, writer)
            waiting = []
    _store(expert, waiting, writer)
    return problems


def _read(images: Images, workers: int) -> Iterator[Ready | str | None]:
    loader = DataLoader(
        images,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        collate_fn=_unchanged,
    )
    return iter(loader)


def _store(expert: Expert, ready: Sequence[Ready], writer: CacheWriter) -> None:
    """Neither more of the expert's places than it has, nor more than the loss compares: the resize works per axis."""
    for item, features in zip(ready, expert.features([item.picture for item in ready]), strict=True):
        size = tuple(min(a, b) for a, b in zip(features.shape[1:], item.grid_hw, strict=True))
        stored = resize_features(features, size).permute(2, 0, 1)
        writer.add(item.digest, stored.half().cpu().numpy())


def _image(sources: Sequence[Source], number: int, index: int) -> Path | bytes:
    return sources[number].sample(index, np.random.default_rng(0)).image


def _unchanged(item: Ready | str | None) -> Ready | str | None:
    return item
