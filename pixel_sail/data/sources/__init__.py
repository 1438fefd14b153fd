"""Readers of annotations: one small file per family of formats, each gives Samples. No tokenizer, no tensors here."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data import shards
from pixel_sail.data.sources import (
    choices,
    coco_instance,
    coco_panoptic,
    gcg,
    grefer,
    llava,
    muse,
    osprey,
    panoptic_segments,
    perbench,
    pix2cap,
    reason_seg,
    refer,
    region_captions,
    sam_captions,
    semantic,
)
from pixel_sail.data.sources.referring import ReferringSource
from pixel_sail.data.templates import Templates
from pixel_sail.types import Sample

NAMES = (
    *refer.NAMES,
    grefer.NAME,
    *region_captions.NAMES,
    reason_seg.NAME,
    coco_instance.NAME,
    panoptic_segments.NAME,
    coco_panoptic.NAME,
    semantic.NAME,
    *gcg.NAMES,
    muse.NAME,
    *pix2cap.NAMES,
    *osprey.NAMES,
    sam_captions.NAME,
    *perbench.NAMES,
    llava.NAME,
    choices.NAME,
    shards.NAME,
)
TRAIN_ONLY = (*osprey.NAMES, *perbench.NAMES, choices.NAME, shards.NAME)


class Source(Protocol):
    """A dataset as Samples. `problems` lists, one line each, the annotations that were left out on reading."""

    problems: list[str]

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The key that `sample(index, ...)` will carry, without reading it."""
        ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The same `index` and state of `rng` give the same Sample. Raises BadSample."""
        ...


def open_source(entry: MixtureEntry, data: DataConfig) -> Source:
    """Reads the annotations of a mixture entry. Raises ConfigError for an unknown name, DatasetError for bad files."""
    root, name, split, count = entry.root or data.root, entry.source, entry.split, data.expressions_per_image
    if name in TRAIN_ONLY and split != "train":
        raise ConfigError(f"source {name!r} has only the split 'train', got {split!r}")
    if name in refer.NAMES:
        return ReferringSource(refer.read_refer(root, name, split), Templates.of(data), count)
    if name == grefer.NAME:
        return ReferringSource(grefer.read_grefer(root, split), Templates.of(data), count)
    if name in region_captions.NAMES:
        return region_captions.open_region_captions(root, name, split, count)
    if name == reason_seg.NAME:
        return reason_seg.open_reason_seg(root, split, Templates.of(data), count)
    if name == coco_instance.NAME:
        return coco_instance.open_coco_instance(root, split, Templates.of(data), count)
    if name == panoptic_segments.NAME:
        return panoptic_segments.open_panoptic_segments(root, split, Templates.of(data), count)
    if name in gcg.NAMES:
        return gcg.open_gcg(root, name, split)
    if name == muse.NAME:
        return muse.open_muse(root, split, count)
    if name == coco_panoptic.NAME:
        return coco_panoptic.open_panoptic(root, split, count)
    if name == semantic.NAME:
        return semantic.open_semantic(root, split, Templates.of(data), count)
    if name in pix2cap.NAMES:
        return pix2cap.open_pix2cap(root, name, split, count, Templates.of(data))
    if name in osprey.NAMES:
        return osprey.open_osprey(root, name)
    if name == sam_captions.NAME:
        return sam_captions.open_sam_captions(root, split, count)
    if name in perbench.NAMES:
        return perbench.open_perbench(root, name, count)
    if name == llava.NAME:
        return llava.open_llava(root, split)
    if name == choices.NAME:
        return choices.open_choices(root)
    if name == shards.NAME:
        return shards.open_shards(root, data)
    raise ConfigError(f"unknown source {name!r}; known: {', '.join(NAMES)}")
