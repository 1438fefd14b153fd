"""Runs experts once over every image of a run's training data and stores their features (data/feature_cache.py)."""

from __future__ import annotations

import contextlib
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

from pixel_sail.architecture import Architecture
from pixel_sail.config import Config, ConfigError, ExpertConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import load_image
from pixel_sail.data.sources import Source, open_source
from pixel_sail.experts import Expert, open_expert
from pixel_sail.experts.cache import CacheWriter, finish, image_digest, made_with, stored_digests, student_grid
from pixel_sail.experts.expert import resize_features
from pixel_sail.experts.features import expert_image
from pixel_sail.types import BadSample

Place = Path | tuple[int, int]  # an image file, or the (source, sample) that has it


@dataclass(frozen=True)
class Ready:
    """An image as the expert is to see it."""

    digest: str
    image: Tensor  # (3, H, W) uint8
    grids_hw: tuple[tuple[int, int], ...]  # of the student's features in each of the places that the expert teaches


class Images(Dataset):
    """Item i is image i made ready, None where its features are stored already, or why it cannot be read.

    `experts` are one expert, attached to several places.
    """

    def __init__(
        self,
        config: Config,
        experts: Sequence[ExpertConfig],
        multiple: int,
        sources: Sequence[Source],
        places: Sequence[Place],
    ):
        self.config, self.experts, self.multiple = config, experts, multiple
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
            decoded = load_image(image)
        except BadSample as error:
            return str(error)
        shown = expert_image(decoded, self.experts[0].size_px, self.experts[0].fit, self.multiple)
        return Ready(
            digest, shown, tuple(student_grid(decoded.size, e, self.config.architecture) for e in self.experts)
        )


def cache_experts(
    config: Config,
    names: Sequence[str],
    device: torch.device | str,
    process: int = 0,
    processes: int = 1,
    batch_size: int = 8,
    progress: bool = True,
) -> list[str]:
    """Stores what is missing of the share of `process` in `processes`; returns a line for each image left out.

    Those of `names` that are one expert at several places are run once. It can be killed at any moment and called
    again. Raises ConfigError for an expert that cannot be used and a folder with other features, DatasetError for more
    than data.max_bad_samples unreadable images.
    """
    groups = _same_expert([find_expert(config, name) for name in dict.fromkeys(names)])
    opened = [open_expert(experts[0], device) for experts in groups]
    sources = [open_source(entry, config.data) for entry in config.data.mixture]
    places = list_images(sources, process, processes, progress)
    problems: dict[str, None] = {}
    for experts, expert in zip(groups, opened, strict=True):
        images = Images(config, experts, expert.multiple, sources, places)
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(
                    CacheWriter(e.cache, manifest_of(e, config.architecture, expert), process, processes)
                )
                for e in experts
            ]
            problems |= dict.fromkeys(store_images(expert, images, writers, config, batch_size, progress))
    return list(problems)


def _same_expert(experts: Sequence[ExpertConfig]) -> list[list[ExpertConfig]]:
    """Those that see the same images with the same weights, together."""
    groups: dict[tuple, list[ExpertConfig]] = {}
    for expert in experts:
        groups.setdefault((expert.kind, expert.path, expert.size_px, expert.fit), []).append(expert)
    return list(groups.values())


def manifest_of(expert: ExpertConfig, architecture: Architecture, opened: Expert) -> dict[str, Any]:
    """What a cache's manifest says before there are statistics."""
    weights = {"fingerprint": opened.fingerprint}
    return {"made_with": made_with(expert, architecture) | weights, "path": expert.path, "width": opened.width}


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
    expert: Expert,
    images: Images,
    writers: Sequence[CacheWriter],
    config: Config,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """Runs the expert over `images`, with a writer for each of their experts; returns and raises as `cache_experts`."""
    stored = [stored_digests(writer.folder, writer.width) for writer in writers]
    images.stored = set.intersection(*stored)
    problems: list[str] = []
    waiting: dict[str, Ready] = {}
    for item in tqdm(_read(images, config.data.workers), total=len(images), unit="image", disable=not progress):
        if isinstance(item, str):
            problems.append(item)
            if len(problems) > config.data.max_bad_samples:
                raise DatasetError(f"more than {config.data.max_bad_samples} images cannot be read; last: {item}")
        elif item is not None and any(item.digest not in there for there in stored):
            waiting[item.digest] = item
        if len(waiting) == batch_size:
            _store(expert, waiting, writers, stored)
            waiting = {}
    _store(expert, waiting, writers, stored)
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


def _store(
    expert: Expert, waiting: dict[str, Ready], writers: Sequence[CacheWriter], stored: Sequence[set[str]]
) -> None:
    """Neither more of the expert's places than it has, nor more than the loss compares: the resize works per axis."""
    found = expert.features([item.image for item in waiting.values()])
    for (digest, item), features in zip(waiting.items(), found, strict=True):
        for writer, there, grid_hw in zip(writers, stored, item.grids_hw, strict=True):
            if digest in there:
                continue
            there.add(digest)
            size = tuple(min(a, b) for a, b in zip(features.shape[1:], grid_hw, strict=True))
            writer.add(digest, resize_features(features, size).permute(2, 0, 1).half().cpu().numpy())


def _image(sources: Sequence[Source], number: int, index: int) -> Path | bytes:
    return sources[number].sample(index, np.random.default_rng(0)).image


def _unchanged(item: Ready | str | None) -> Ready | str | None:
    return item
