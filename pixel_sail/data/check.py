"""What of the datasets lies under a data root: `tools/prepare_data.py check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import area_px
from pixel_sail.data.sources import (
    choices,
    coco_instance,
    coco_panoptic,
    gcg,
    grefer,
    llava,
    muse,
    open_source,
    osprey,
    panoptic_segments,
    perbench,
    pix2cap,
    reason_seg,
    region_captions,
    sam_captions,
    semantic,
)
from pixel_sail.tokens import SEG
from pixel_sail.types import BadSample, Sample

_REFER_SPLITS = ("train", "val", "testA", "testB")
# source -> its splits, and the annotations that it needs of each, relative to the root
EXPECTED: dict[str, tuple[tuple[str, ...], str]] = {
    **{name: (_REFER_SPLITS, f"{name}/instances.json") for name in ("refcoco", "refcoco+")},
    "refcocog": (("train", "val", "test"), "refcocog/instances.json"),
    grefer.NAME: (_REFER_SPLITS, "grefcoco/grefs(unc).json"),
    **{name: (("train",), f"{name.removesuffix('_captions')}/instances.json") for name in region_captions.NAMES},
    reason_seg.NAME: (reason_seg.SPLITS, "reason_seg/ReasonSeg/{split}"),
    coco_instance.NAME: (("train", "val"), "annotations/instances_{split}2017.json"),
    **{
        name: (("train", "val"), "annotations/panoptic_{split}2017.json")
        for name in (panoptic_segments.NAME, coco_panoptic.NAME, semantic.NAME)
    },
    **{name: (gcg.SPLITS[name], "") for name in gcg.NAMES},
    muse.NAME: (muse.SPLITS, "muse/MUSE_{split}.json"),
    **{name: (("train", "val"), "pix2cap/pix2cap_coco_{split}.json") for name in pix2cap.NAMES},
    **{name: (("train",), f"osprey/{name}.json") for name in osprey.NAMES},
    sam_captions.NAME: (("train", "val"), "sam_captions/{split}.json"),
    **{
        name: (("train",), f"perbench_train/{perbench.FILES[name.removeprefix('perbench_')]}")
        for name in perbench.NAMES
    },
    llava.NAME: (("train", "val"), "llava/{split}.json"),
    choices.NAME: (("train",), "llava/choices.json"),
}


@dataclass(frozen=True)
class Finding:
    source: str
    split: str
    path: Path  # of the annotations that are expected
    samples: int | None = None  # None: nothing can be read
    decoded: int = 0  # samples that were drawn, with image and masks
    left_out: tuple[str, ...] = ()  # annotations that cannot be used, one line each
    errors: tuple[str, ...] = ()  # why nothing can be read, or of samples that could not be drawn
    note: str = ""  # of annotations that are there, but not of this split

    @property
    def missing(self) -> bool:
        """Nothing is there, which is no error."""
        return self.samples is None and not self.errors


def check_root(root: Path, decode: int, only: Sequence[str] | None = None) -> Iterator[Finding]:
    """One finding for each source and split; of each up to `decode` samples, evenly spread, are drawn and decoded."""
    for source in only or EXPECTED:
        for split in EXPECTED[source][0]:
            yield check_source(root, source, split, decode)


def check_source(root: Path, name: str, split: str, decode: int) -> Finding:
    path = expected_path(root, name, split)
    if not path.exists():
        return Finding(name, split, path)
    data = DataConfig(root=root, mixture=[MixtureEntry(source=name, split=split)])
    try:
        source = open_source(data.mixture[0], data)
    except DatasetError as error:
        if f"has no split {split!r}" in str(error):  # one file holds all the splits, and some have fewer
            return Finding(name, split, path, note=str(error))
        return Finding(name, split, path, errors=(str(error),))
    errors, decoded = [], 0
    for index in np.unique(np.linspace(0, len(source) - 1, min(decode, len(source))).astype(int)).tolist():
        try:
            _decode(source.sample(index, np.random.default_rng(index)))
            decoded += 1
        except BadSample as error:
            errors.append(str(error))
    return Finding(name, split, path, len(source), decoded, tuple(source.problems), tuple(errors))


def expected_path(root: Path, name: str, split: str) -> Path:
    """The annotations of a source and split."""
    if name in gcg.NAMES:
        return gcg.annotation_file(root, name, split)
    return root / EXPECTED[name][1].format(split=split)


def _decode(sample: Sample) -> None:
    """BadSample, beginning with the key, for what the encoder would refuse."""
    segs = sum(turn.answer.count(SEG) for turn in sample.turns)
    if segs != len(sample.masks):
        raise BadSample(f"{sample.key}: its answers have {segs} {SEG} and it has {len(sample.masks)} masks")
    if sample.image is None:
        return
    try:
        image = load_image(sample.image)
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None
    for what, rle in [*(("mask", rle) for rle in sample.masks), *(("region", rle) for rle in sample.prompts.values())]:
        if tuple(rle["size"]) != (image.height, image.width):
            raise BadSample(f"{sample.key}: a {what} of {rle['size']} on an image of {[image.height, image.width]}")
        if what == "region" and area_px(rle) == 0:
            raise BadSample(f"{sample.key}: an empty region")


def report(finding: Finding, problems: int) -> list[str]:
    """Lines for the console; up to `problems` of what is left out are listed."""
    name = f"{finding.source}:{finding.split}"
    if finding.missing:
        return [f"missing  {name:34} {finding.note or f'expected {finding.path}'}"]
    if finding.samples is None:
        return [f"BROKEN   {name:34} {finding.errors[0]}"]
    out = f", {len(finding.left_out)} problems" if finding.left_out else ""
    state = "BROKEN " if finding.errors else "found  "
    lines = [f"{state}  {name:34} {finding.samples} samples, {finding.decoded} decoded{out}"]
    lines += [f"           not decoded: {error}" for error in finding.errors]
    lines += [f"           left out: {problem}" for problem in finding.left_out[:problems]]
    return lines
