"""Run experts once over every image of a run's training data and store their features (cache.py)."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
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
from pixel_sail.interrupts import Stopped, finish_first, how_far
from pixel_sail.types import BadSample
from pixel_sail.workers import in_order
from pixel_sail.writable import check_writable, writing_into

ImageLocation = Path | tuple[int, int]  # an image file, or (source, sample) of a sample that carries its bytes


@dataclass(frozen=True)
class PreparedImage:
    """An image resized for the expert."""

    digest: str
    image: Tensor  # (3, H, W) uint8
    grids_hw: tuple[tuple[int, int], ...]  # grid of the student's features, for each entry of `experts`


class ImagesToCache:
    """Item i is image i, prepared; None if its features are stored already; or the reason why it cannot be read.

    `experts`: configs of one and the same expert, which differ in `at` and in their cache.
    """

    def __init__(
        self,
        config: Config,
        experts: Sequence[ExpertConfig],
        multiple: int,
        sources: Sequence[Source],
        locations: Sequence[ImageLocation],
    ):
        self.config, self.experts, self.multiple = config, experts, multiple
        self.sources, self.locations = sources, locations
        self.stored: set[str] = set()

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, number: int) -> PreparedImage | str | None:
        location = self.locations[number]
        try:
            image = location if isinstance(location, Path) else _image(self.sources, *location)
            digest = image_digest(image)
            if digest in self.stored:
                return None
            decoded = load_image(image)
        except BadSample as error:
            return str(error)
        pixels = expert_image(decoded, self.experts[0].size_px, self.experts[0].fit, self.multiple)
        grids = tuple(student_grid(decoded.size, expert, self.config.architecture) for expert in self.experts)
        return PreparedImage(digest, pixels, grids)


def cache_experts(
    config: Config,
    names: Sequence[str],
    device: torch.device | str,
    process: int = 0,
    processes: int = 1,
    batch_size: int = 8,
    progress: bool = True,
) -> list[str]:
    """Store the missing features of one share (`process` of `processes`) of the images of experts `names`.

    Returns a line for each image that was left out. Experts that differ only in `at` and cache are run once. The call
    can be killed at any moment and repeated. Raises ConfigError for an expert that cannot be used or a folder with
    other features, DatasetError for more than data.max_bad_samples unreadable images, Busy for a share that another
    process is storing.
    """
    with how_far(lambda: "what was stored is kept; the same command goes on"):
        return _cache_experts(config, names, device, process, processes, batch_size, progress)


def _cache_experts(
    config: Config,
    names: Sequence[str],
    device: torch.device | str,
    process: int,
    processes: int,
    batch_size: int,
    progress: bool,
) -> list[str]:
    groups = _group_by_expert([find_expert(config, name) for name in dict.fromkeys(names)])
    for expert in (expert for experts in groups for expert in experts):
        check_writable(expert.cache)
    opened = [open_expert(experts[0], device) for experts in groups]
    sources = [open_source(entry, config.data) for entry in config.data.mixture]
    locations = list_images(sources, process, processes, progress)
    problems: dict[str, None] = {}
    for experts, expert in zip(groups, opened, strict=True):
        images = ImagesToCache(config, experts, expert.multiple, sources, locations)
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(
                    CacheWriter(e.cache, manifest_of(e, config.architecture, expert), process, processes)
                )
                for e in experts
            ]
            problems |= dict.fromkeys(store_images(expert, images, writers, config, batch_size, progress))
    return list(problems)


def _group_by_expert(experts: Sequence[ExpertConfig]) -> list[list[ExpertConfig]]:
    """Group the configs that show the same images to the same weights."""
    groups: dict[tuple, list[ExpertConfig]] = {}
    for expert in experts:
        groups.setdefault((expert.kind, expert.path, expert.size_px, expert.fit), []).append(expert)
    return list(groups.values())


def manifest_of(expert: ExpertConfig, architecture: Architecture, opened: Expert) -> dict[str, Any]:
    """The manifest of a new cache; `finish` adds the statistics."""
    settings = made_with(expert, architecture) | {"fingerprint": opened.fingerprint}
    return {"made_with": settings, "path": expert.path, "width": opened.width}


def finish_cache(config: Config, name: str, progress: bool = True) -> str:
    """Check what all processes stored, write the statistics (cache.finish) and return a sentence about them."""
    folder = find_expert(config, name).cache
    statistics = finish(folder, progress)
    images, stored_bytes = statistics["images"], statistics["bytes"]
    return f"{folder}: {images} images, {stored_bytes / images / 1e3:.1f} kB per image, {stored_bytes / 1e9:.3f} GB"


def find_expert(config: Config, name: str) -> ExpertConfig:
    """The expert of that name. Raises ConfigError if the config has none, or none with a cache."""
    for expert in config.experts:
        if expert.name == name:
            if expert.cache is None:
                raise ConfigError(f"expert {name!r} has no cache in the config: name the folder to write as its cache")
            return expert
    raise ConfigError(
        f"no expert {name!r} in the config; it has: {', '.join(e.name for e in config.experts) or 'none'}"
    )


def list_images(sources: Sequence[Source], process: int, processes: int, progress: bool) -> list[ImageLocation]:
    """Locations of the distinct images in the share of `process`. Equal images in two files may be listed twice.

    Samples that cannot be read are skipped: training names and counts them.
    """
    locations: dict[str, ImageLocation] = {}
    total = sum(len(source) for source in sources)
    with tqdm(total=total, desc="listing images", unit="sample", disable=None if progress else True) as bar:
        for number, source in enumerate(sources):
            for index in range(len(source)):
                bar.update()
                try:
                    images = source.sample(index, np.random.default_rng(0)).images
                except BadSample:
                    continue
                for image in images:
                    is_file = isinstance(image, Path)
                    name = str(image) if is_file else image_digest(image)
                    locations.setdefault(name, image if is_file else (number, index))
    return [location for name, location in locations.items() if zlib.crc32(name.encode()) % processes == process]


def store_images(
    expert: Expert,
    images: ImagesToCache,
    writers: Sequence[CacheWriter],
    config: Config,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """Run the expert over `images`, with one writer per `images.experts`. Returns and raises as `cache_experts`."""
    stored = [stored_digests(writer.folder, writer.width) for writer in writers]
    images.stored = set.intersection(*stored)
    problems: list[str] = []
    batch: dict[str, PreparedImage] = {}
    prepared = in_order(images.__getitem__, range(len(images)), config.data.workers)
    with finish_first("this batch of images") as stop, writing_into(writers[0].folder), contextlib.closing(prepared):
        for done, item in enumerate(
            tqdm(prepared, total=len(images), unit="image", disable=None if progress else True), start=1
        ):
            if isinstance(item, str):
                problems.append(item)
                if len(problems) > config.data.max_bad_samples:
                    raise DatasetError(f"more than {config.data.max_bad_samples} images cannot be read; last: {item}")
            elif item is not None and any(item.digest not in digests for digests in stored):
                batch[item.digest] = item
            if len(batch) == batch_size or done == len(images):
                _store(expert, batch, writers, stored)
                batch = {}
            if stop.number:
                for writer in writers:
                    writer.flush()
                raise Stopped(
                    stop.number, f"{done - len(batch)} of {len(images)} images are done; the same command goes on"
                )
    return problems


def _store(
    expert: Expert, batch: dict[str, PreparedImage], writers: Sequence[CacheWriter], stored: Sequence[set[str]]
) -> None:
    """Run the expert over a batch (digest -> image) and store features that a writer lacks.

    A map is stored at its own or the student's resolution, whichever is lower on each axis: resizing works per axis, so
    that the loss compares the same values.
    """
    if not batch:
        return
    maps = expert.features([item.image for item in batch.values()])
    for (digest, item), features in zip(batch.items(), maps, strict=True):
        for writer, digests, grid_hw in zip(writers, stored, item.grids_hw, strict=True):
            if digest in digests:
                continue
            digests.add(digest)
            size = tuple(min(a, b) for a, b in zip(features.shape[1:], grid_hw, strict=True))
            writer.add(digest, resize_features(features, size).permute(2, 0, 1).half().cpu().numpy())


def _image(sources: Sequence[Source], number: int, index: int) -> Path | bytes:
    return sources[number].sample(index, np.random.default_rng(0)).image
