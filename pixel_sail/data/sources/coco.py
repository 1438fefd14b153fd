"""COCO `instances.json`, and the search for images under a data root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import exists, read_json
from pixel_sail.data.inside import inside
from pixel_sail.data.masks import object_mask
from pixel_sail.data.sources.entries import member, records, repeated, size_member
from pixel_sail.data.sources.folders import Folders
from pixel_sail.types import RLE, BadSample

_COCO_FOLDER = re.compile(r"^(coco/)?(train|val|test)20(14|17)/(?=[^/]+$)")
INSTANCES_FILE = "a COCO instances file"
COCO_2014_FOLDERS = ("images/train2014", "images/mscoco/images/train2014")  # the second is REFER's


@dataclass(frozen=True, slots=True)
class CocoImage:
    file_name: str
    size_hw: tuple[int, int]  # pixels


@dataclass(frozen=True)
class CocoInstances:
    """One parsed `instances.json`."""

    path: Path
    images: dict[int, dict[str, Any]]  # id -> {file_name, height, width}
    annotations: dict[int, dict[str, Any]]  # id -> {image_id, segmentation, iscrowd}
    repeated_images: frozenset[int]  # ids of several images
    repeated_annotations: frozenset[int]

    @classmethod
    def read(cls, path: Path) -> CocoInstances:
        """Raises DatasetError for a file that is missing or not in the format of COCO."""
        values = read_json(path)
        listed = records(values, "images", ("id",), path, INSTANCES_FILE)
        annotated = records(values, "annotations", ("id", "image_id"), path, INSTANCES_FILE)
        return cls(
            path,
            {image["id"]: image for image in listed},
            {annotation["id"]: annotation for annotation in annotated},
            repeated(image["id"] for image in listed),
            repeated(annotation["id"] for annotation in annotated),
        )

    def image(self, image_id: int) -> CocoImage:
        """Raises BadSample if the image is missing, listed twice, or without name and size."""
        if image_id not in self.images:
            raise BadSample(f"image {image_id!r} is not in {self.path}")
        if image_id in self.repeated_images:
            raise BadSample(f"{self.path} has several images with the id {image_id}")
        image, where = self.images[image_id], f"image {image_id} in {self.path}"
        return CocoImage(inside(member(image, "file_name", str, where), where), size_member(image, where))

    def mask(self, annotation_id: int, image_id: int, left_out: list[str] | None = None) -> RLE:
        """The mask of an annotation; degenerate pieces go into `left_out` (see `object_mask`).

        Raises NoPixels if nothing is left of it, and BadSample if it is missing, listed twice, malformed or of another
        image.
        """
        annotation = self._annotation(annotation_id, image_id)
        size_hw, where = self.image(image_id).size_hw, self._where(annotation_id, image_id)
        return object_mask(annotation.get("segmentation"), *size_hw, where, left_out)

    def is_crowd(self, annotation_id: int, image_id: int) -> bool:
        """Whether an annotation is of a group without single objects. Raises BadSample as `mask` does."""
        return bool(self._annotation(annotation_id, image_id).get("iscrowd"))

    def _annotation(self, annotation_id: int, image_id: int) -> dict[str, Any]:
        where, annotation = self._where(annotation_id, image_id), self.annotations.get(annotation_id)
        if annotation is None or annotation.get("image_id") != image_id:
            raise BadSample(f"{where}: not in {self.path}")
        if annotation_id in self.repeated_annotations:
            raise BadSample(f"{where}: {self.path} has several annotations with this id")
        return annotation

    def _where(self, annotation_id: int, image_id: int) -> str:
        return f"{self.path.parent.name}: annotation {annotation_id} of image {image_id}"


class ImageFinder:
    """Finds the images of a data root by the name that an annotation gives them."""

    FOLDERS: ClassVar[tuple[str, ...]] = (
        "images/train2017",
        "images/val2017",
        "train2017",
        "val2017",
        *COCO_2014_FOLDERS,
        "images/sam",
        "images",
    )

    def __init__(self, root: Path, folders: tuple[str, ...] = FOLDERS) -> None:
        """`folders` under `root` are searched in this order. Raises DatasetError if none of them exists."""
        self._folders = [root / folder for folder in folders if exists(root / folder) and (root / folder).is_dir()]
        self._paths: dict[str, Path] = {}  # annotations name an image many times
        self.asked = Folders()
        for folder in folders:
            if root / folder not in self._folders:
                self.asked.watch(root / folder)  # images may come later
        if not self._folders:
            raise DatasetError(f"no images under {root}: expected one of the folders {', '.join(folders)}")

    def find(self, file_name: str, where: str) -> Path:
        """The image. Raises BadSample, beginning with `where` and naming the folders, if none of them has it.

        COCO 2017 holds the images of COCO 2014 without the prefix COCO_train2014_: a 2014 name finds them there too.
        Some files write COCO's folder before the name ("train2017/9.jpg"): the image may be in any of the folders.
        """
        if file_name not in self._paths:
            inside(file_name, where)
            bare = _COCO_FOLDER.sub("", file_name)
            names = dict.fromkeys((file_name, bare, re.sub(r"COCO_(train|val)2014_(?=\d+\.jpg$)", "", bare)))
            paths = (folder / name for name in names for folder in self._folders)
            path = next((path for path in paths if self.asked.has_file(path, where)), None)
            if path is None:
                folders = ", ".join(str(folder) for folder in self._folders)
                raise BadSample(f"{where}: no image {file_name!r} in {folders}")
            self._paths[file_name] = path
        return self._paths[file_name]


def image_folder(root: Path) -> Path:
    """The folder of COCO's images of 2014. Raises DatasetError, naming the places where it may be."""
    for folder in COCO_2014_FOLDERS:
        if (root / folder).is_dir():
            return root / folder
    expected = " or ".join(str(root / folder) for folder in COCO_2014_FOLDERS)
    raise DatasetError(f"no images under {root}: put (or link) COCO train2014 at {expected}")
