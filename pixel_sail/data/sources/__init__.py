"""Readers of annotations: one small file per format, each gives Samples. No tokenizer, no tensors here."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Iterator

from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data.sources import (
    coco_instance,
    coco_panoptic,
    concepts,
    gcg,
    grefer,
    hf,
    image_text,
    jsonl,
    label_maps,
    llava,
    muse,
    osprey,
    panoptic_segments,
    parts,
    perbench,
    pix2cap,
    plain_text,
    reason_explained,
    reason_seg,
    refcocog_mdetr,
    refer,
    region_captions,
    sam_captions,
    semantic,
    stored,
)
from pixel_sail.data.sources.joined import JoinedSource
from pixel_sail.data.sources.record import Source, SourceRecord

SAY_EVERY_S = 60.0  # while a source is opened

__all__ = ["RECORDS", "Source", "SourceRecord", "open_source", "source_record"]

RECORDS: tuple[SourceRecord, ...] = (
    *refer.RECORDS,
    *grefer.RECORDS,
    *region_captions.RECORDS,
    *reason_seg.RECORDS,
    *coco_instance.RECORDS,
    *concepts.RECORDS,
    *panoptic_segments.RECORDS,
    *coco_panoptic.RECORDS,
    *semantic.RECORDS,
    *gcg.RECORDS,
    *muse.RECORDS,
    *pix2cap.RECORDS,
    *osprey.RECORDS,
    *sam_captions.RECORDS,
    *perbench.RECORDS,
    *llava.RECORDS,
    *stored.RECORDS,
    *reason_explained.RECORDS,
    *refcocog_mdetr.RECORDS,
    *label_maps.RECORDS,
    *parts.RECORDS,
    *jsonl.RECORDS,
    *hf.RECORDS,
    *image_text.RECORDS,
    *plain_text.RECORDS,
)


def source_record(name: str) -> SourceRecord:
    """The record of a source. Raises ConfigError for an unknown name."""
    for record in RECORDS:
        if record.name == name:
            return record
    raise ConfigError(f"unknown source {name!r}; known: {', '.join(record.name for record in RECORDS)}")


def open_source(entry: MixtureEntry, data: DataConfig) -> Source:
    """Reads the annotations of a mixture entry, and of those that it joins with `also`.

    Raises ConfigError for an unknown source, and for a split that a train-only source does not have; DatasetError for
    files that cannot be read and unknown splits, and for sources that cannot be joined.
    """
    source = _open(entry, data)
    if not entry.also:
        return source
    others = [MixtureEntry(source=other.source, split=other.split, root=entry.root) for other in entry.also]
    names = [f"{one.source} ({one.split})" for one in (entry, *others)]
    return JoinedSource(source, [_open(other, data) for other in others], names)


def _open(entry: MixtureEntry, data: DataConfig) -> Source:
    record = source_record(entry.source)
    if record.train_only and entry.split != "train":
        raise ConfigError(f"source {record.name!r} has only the split 'train', got {entry.split!r}")
    with _without_collecting(), _saying(f"opening {record.name} ({entry.split})"):
        if record.open_entry is not None:
            return record.open_entry(entry, data)
        return record.open(entry.root or data.root, entry.split, data)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Readers make millions of objects and no cycles: to look for cycles again and again takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """A line on stderr every minute that this takes: large annotations are read, or another process reads them."""
    start, ended = time.monotonic(), threading.Event()

    def say() -> None:
        while not ended.wait(SAY_EVERY_S):
            print(f"note: still {what} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, name="saying", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
