"""COCO `instances.json`, and where the pictures of a dataset lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import from_coco
from pixel_sail.types import RLE, BadSample

IMAGE_FOLDERS = ("images/train2014", "images/mscoco/images/train2014")  # ours, and REFER's


@dataclass(frozen=True)
class CocoImage:
    file_name: str
    size_hw: tuple[int, int]  # pixels


@dataclass(frozen=True)
class CocoInstances:
    """One parsed `instances.json`."""

    path: Path
    images: dict[int, CocoImage]
    annotations: dict[int, dict[str, Any]]  # id -> {image_id, segmentation}

    @classmethod
    def read(cls, path: Path) -> CocoInstances:
        """Raises DatasetError for a file that is missing or is not COCO."""
        values = read_json(path)
        try:
            images = {
                image["id"]: CocoImage(image["file_name"], (image["height"], image["width"]))
                for image in values["images"]
            }
            annotations = {annotation["id"]: annotation for annotation in values["annotations"]}
        except (TypeError, KeyError) as error:
            raise DatasetError(f"{path} is not a COCO instances file: no {error}") from None
        return cls(path, images, annotations)

    def mask(self, annotation_id: int, image_id: int) -> RLE:
        """The mask of an annotation; BadSample when it is absent, malformed or of another image."""
        where = f"{self.path.parent.name}: annotation {annotation_id} of image {image_id}"
        annotation = self.annotations.get(annotation_id)
        if annotation is None or annotation.get("image_id") != image_id:
            raise BadSample(f"{where}: not in {self.path}")
        return from_coco(annotation.get("segmentation"), *self.images[image_id].size_hw, where)


def read_json(path: Path) -> Any:
    """Parsed contents; DatasetError for a missing or broken file."""
    if not path.is_file():
        raise DatasetError(f"no file {path}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from None


def image_folder(root: Path) -> Path:
    """The folder of the pictures under a data root; DatasetError names the places where it may be."""
    for folder in IMAGE_FOLDERS:
        if (root / folder).is_dir():
            return root / folder
    expected = " or ".join(str(root / folder) for folder in IMAGE_FOLDERS)
    raise DatasetError(f"no pictures under {root}: put (or link) COCO train2014 at {expected}")
