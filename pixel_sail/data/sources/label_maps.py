"""Semantic classes from label maps: ADE20K, COCO-Stuff and Mapillary Vistas, in the folders of LISA and GLaMM.

A label map is a PNG with the number of a class for each pixel, and has the name of its image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.image import opened_image
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import parse_usable, records, refuse_nothing, text_member
from pixel_sail.data.sources.folders import Folders
from pixel_sail.data.sources.label_classes import ADE20K, COCO_STUFF
from pixel_sail.data.sources.panoptic_segments import united_turn
from pixel_sail.data.sources.record import EntrySource, ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import compose
from pixel_sail.data.templates import Templates
from pixel_sail.types import BadSample, Sample

COCO_FOLDERS = (*ImageFinder.FOLDERS, "coco/train2017", "coco/val2017", "coco_2017/train2017", "coco_2017/val2017")
_UNLABELLED = 255
_FOLDER_OF = {"train": "training", "val": "validation"}  # of ADE20K and Mapillary


def _label_folders(*places: str) -> tuple[ExpectedFile, ...]:
    """`{folder}` in a place stands for "training" or "validation"."""
    named = {split: [place.replace("{folder}", folder) for place in places] for split, folder in _FOLDER_OF.items()}
    return tuple(ExpectedFile(first, tuple(others), splits=(split,)) for split, (first, *others) in named.items())


ADE20K_LABELS = _label_folders(
    "ade20k/annotations/{folder}",
    "ADEChallengeData2016/annotations/{folder}",
    "Semantic_Segm/ade20k/annotations/{folder}",
)
MAPILLARY_LABELS = _label_folders("mapillary/{folder}/v2.0/labels")
MAPILLARY_CLASSES = ExpectedFile("mapillary/config_v2.0.json")
COCO_STUFF_LABELS = ExpectedFile(
    "stuffthingmaps_trainval2017/{split}2017",
    other_places=("cocostuff/annotations/{split}2017", "cocostuff/{split}2017", "coco_stuff/{split}2017"),
)


@dataclass(frozen=True)
class LabelMap:
    key: str
    path: Path  # of the image
    labels: Path  # the PNG: decoded only when it is drawn


class LabelMapSource(EntrySource[LabelMap]):
    """Samples of one image with several of its classes (see `pixel_sail.data.sources.Source`)."""

    def __init__(
        self, entries: list[LabelMap], problems: list[str], names: dict[int, str], templates: Templates, count: int
    ) -> None:
        """`names`: value in a label map -> class; those without a name are not asked for. Others but 255 are errors."""
        super().__init__(entries, problems)
        self._names, self._templates, self._count = names, templates, count

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` draws the classes and their wording. Raises BadSample for a PNG that is damaged or shows no class."""
        entry = self._entries[index]
        labels = _read_labels(entry)
        values = np.unique(labels).tolist()
        if unknown := [value for value in values if value not in self._names and value != _UNLABELLED]:
            raise BadSample(
                f"{entry.key}: {entry.labels} has the value {unknown[0]}, which stands for no class; they go from 0 to "
                f"{max(self._names)}, and {_UNLABELLED} is no class"
            )
        shown = [value for value in values if self._names.get(value)]
        if not shown:
            raise BadSample(f"{entry.key}: {entry.labels} has no class that can be asked for")
        drawn = [shown[i] for i in rng.permutation(len(shown))[: self._count]]
        turns = [
            united_turn(self._templates, self._names[value], [encode_mask(labels == value)], 1, rng) for value in drawn
        ]
        return compose(entry.key, entry.path, turns)


def open_ade20k(root: Path, split: str, data: DataConfig) -> LabelMapSource:
    """Raises DatasetError; label maps without an image are listed in `.problems`."""
    folder = _of_split(ADE20K_LABELS, split).find(root, split)
    images = folder.parents[1] / "images" / folder.name
    return _open("ade20k", split, folder, _beside(images), dict(enumerate(("", *ADE20K))), data)


def open_mapillary(root: Path, split: str, data: DataConfig) -> LabelMapSource:
    """Raises DatasetError; label maps without an image are listed in `.problems`."""
    folder = _of_split(MAPILLARY_LABELS, split).find(root, split)
    path = MAPILLARY_CLASSES.find(root, split)
    what = "the list of Mapillary's classes"
    try:
        labels = [
            (text_member(label, "readable", f"label {value}").lower(), label.get("evaluate", True))
            for value, label in enumerate(records(read_json(path), "labels", (), path, what))
        ]
    except BadSample as error:
        raise DatasetError(f"{path} is not {what}: no 'readable': {error}") from None
    if not labels:
        raise DatasetError(f"{path} is not {what}: its 'labels' are empty")
    names = {value: name if evaluate else "" for value, (name, evaluate) in enumerate(labels)}  # "": void, own vehicle
    return _open("mapillary", split, folder, _beside(folder.parents[1] / "images"), names, data)


def open_coco_stuff(root: Path, split: str, data: DataConfig) -> LabelMapSource:
    """Raises DatasetError; label maps without an image are listed in `.problems`.

    As in LISA, classes with a hyphen ("wall-other", "desk-stuff") are not asked for: nobody calls them so.
    """
    folder, finder = COCO_STUFF_LABELS.find(root, split), ImageFinder(root, (*COCO_FOLDERS, f"cocostuff/{split}2017"))
    names = {value: "" if "-" in name else name for value, name in enumerate(COCO_STUFF)}
    return _open("coco_stuff", split, folder, lambda stem, key: finder.find(f"{stem}.jpg", key), names, data)


def _open(
    name: str,
    split: str,
    folder: Path,
    image_of: Callable[[str, str], Path],
    names: dict[int, str],
    data: DataConfig,
) -> LabelMapSource:
    """`image_of(stem, key)` is the image of a label map, or raises BadSample."""
    templates, problems = Templates.of(data), list[str]()
    paths = ((path, f"{name}/{split}/{path.stem}") for path in sorted(folder.glob("*.png")))
    entries = parse_usable(paths, lambda path, key: LabelMap(key, image_of(path.stem, key), path), problems)
    refuse_nothing(entries, folder, problems)
    return LabelMapSource(entries, problems, names, templates, data.expressions_per_image)


def _of_split(files: tuple[ExpectedFile, ...], split: str) -> ExpectedFile:
    for file in files:
        if split in file.splits:
            return file
    raise DatasetError(f"the splits are {', '.join(_FOLDER_OF)}, got {split!r}")


def _beside(folder: Path) -> Callable[[str, str], Path]:
    folders = Folders()

    def find(stem: str, key: str) -> Path:
        if not folders.has_file(folder / f"{stem}.jpg", key):
            raise BadSample(f"{key}: no image {folder / stem}.jpg")
        return folder / f"{stem}.jpg"

    return find


def _read_labels(entry: LabelMap) -> np.ndarray:
    """(H, W) uint8. Raises BadSample for a PNG that cannot be decoded or is in colour."""
    try:
        with opened_image(entry.labels, "label map") as png:
            if png.mode not in ("L", "P"):
                raise BadSample(f"{entry.labels} is of mode {png.mode}; expected one number a pixel (L or P)")
            return np.asarray(png)
    except BadSample as error:
        raise BadSample(f"{entry.key}: {error}") from None


def _record(name: str, files: tuple[ExpectedFile, ...], open_source: Any, folders: tuple[str, ...]) -> SourceRecord:
    return SourceRecord(
        name=name,
        splits=tuple(_FOLDER_OF),
        files=files,
        sample="an image",
        turn="a class; one `[SEG]`: all its pixels",
        open=open_source,
        image_folders=folders,  # empty: the images are beside the label maps, in `images`
    )


RECORDS = (
    _record("ade20k", ADE20K_LABELS, open_ade20k, ()),
    _record(
        "coco_stuff", (COCO_STUFF_LABELS,), open_coco_stuff, (*COCO_FOLDERS, "cocostuff/train2017", "cocostuff/val2017")
    ),
    _record("mapillary", (*MAPILLARY_LABELS, MAPILLARY_CLASSES), open_mapillary, ()),
)
