"""Which datasets are under a data root, and whether they can be read: `tools/prepare_data.py check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError, UnknownSplit
from pixel_sail.data.files import exists
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import area_px
from pixel_sail.data.sources import RECORDS, Source, open_source, source_record
from pixel_sail.data.turn_masks import check_one_mask_each
from pixel_sail.types import BadSample, Sample

CHECKED = tuple(record.name for record in RECORDS if record.files)


@dataclass(frozen=True)
class Finding:
    """The state of one split of one source under a data root."""

    source: str
    split: str
    expected: str  # the paths of the annotations
    samples: int | None = None  # None: nothing can be read
    decoded: int = 0  # samples that were drawn, with image and masks
    left_out: tuple[str, ...] = ()  # annotations that cannot be used, one line each
    errors: tuple[str, ...] = ()  # why nothing can be read, or why samples could not be drawn
    note: str = ""  # for annotations that exist, but do not have this split

    @property
    def missing(self) -> bool:
        """The dataset or split is not there, which is not an error."""
        return self.samples is None and not self.errors


def check_root(
    root: Path, decode: int, only: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> Iterator[Finding]:
    """One finding per source and split; up to `decode` samples of each, evenly spread, are drawn and decoded.

    `splits`: these instead of the published ones.
    """
    for name in only or CHECKED:
        for split in splits or source_record(name).splits:
            yield check_source(root, name, split, decode)


def check_source(root: Path, name: str, split: str, decode: int) -> Finding:
    """The finding of one split; up to `decode` samples are drawn and decoded. Raises ConfigError for unknown names.

    Of a source with `check_all`, all samples are decoded, and what was left out on reading is an error too.
    """
    record = source_record(name)
    expected = " and ".join(file.where(root, split) for file in record.files_of(split))
    try:
        is_there = exists(record.files_of(split)[0].path(root, split))
    except DatasetError as error:
        return Finding(name, split, expected, errors=(str(error),))
    if not is_there:
        return Finding(name, split, expected)
    data = DataConfig(root=root, mixture=[MixtureEntry(source=name, split=split)])
    try:
        source = open_source(data.mixture[0], data)
    except UnknownSplit as error:  # one file holds all the splits, and some have fewer
        return Finding(name, split, expected, note=str(error))
    except DatasetError as error:
        return Finding(name, split, expected, errors=(str(error),))
    decoded, errors = _decode_some(source, len(source) if record.check_all else decode)
    if record.check_all:
        return Finding(name, split, expected, len(source), decoded, errors=(*source.problems, *errors))
    return Finding(name, split, expected, len(source), decoded, tuple(source.problems), errors)


def _decode_some(source: Source, count: int) -> tuple[int, tuple[str, ...]]:
    """How many of up to `count` samples, evenly spread, can be decoded, and why the others cannot."""
    errors, decoded = [], 0
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist():
        try:
            _decode(source.sample(index, np.random.default_rng(index)))
            decoded += 1
        except BadSample as error:
            errors.append(str(error))
    return decoded, tuple(errors)


def _decode(sample: Sample) -> None:
    """Raises BadSample, beginning with the key, for what the encoder would refuse."""
    check_one_mask_each(sample)
    if sample.image is None:
        return
    try:
        images = [load_image(image) for image in sample.images]
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None
    masks = [("mask", rle, on) for rle, on in zip(sample.masks, sample.image_of_masks, strict=True)]
    regions = [("region", rle, sample.prompt_images.get(k, 0)) for k, rle in sample.prompts.items()]
    for kind, rle, on in (*masks, *regions):
        image = images[on]
        if tuple(rle["size"]) != (image.height, image.width):
            raise BadSample(f"{sample.key}: a {kind} of {rle['size']} on an image of {[image.height, image.width]}")
        if kind == "region" and area_px(rle) == 0:
            raise BadSample(f"{sample.key}: an empty region")


def report(finding: Finding, problems: int) -> list[str]:
    """Lines for the console; up to `problems` of the annotations that were left out, and of the errors, are listed."""
    name = f"{finding.source}:{finding.split}"
    if finding.missing:
        return [f"missing  {name:34} {finding.note or f'expected {finding.expected}'}"]
    if finding.samples is None:
        return [f"BROKEN   {name:34} {finding.errors[0]}"]
    left_out = f", {len(finding.left_out)} problems" if finding.left_out else ""
    state = "BROKEN " if finding.errors else "found  "
    lines = [f"{state}  {name:34} {finding.samples} samples, {finding.decoded} decoded{left_out}"]
    for what, messages in (("cannot be used", finding.errors), ("left out", finding.left_out)):
        lines += [f"           {what}: {message}" for message in messages[:problems]]
        if len(messages) > problems:
            lines.append(f"           {what}: {len(messages) - problems} more; --problems {len(messages)} lists all")
    return lines
