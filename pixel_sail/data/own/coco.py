"""COCO instances, as CVAT, Label Studio, Roboflow and others export them: one JSON file, or one for each split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import upright_size
from pixel_sail.data.inside import inside
from pixel_sail.data.own.objects import OwnImage, OwnObject, first_file, own_object, read_images
from pixel_sail.data.sources.coco_instance import Instances, id_order
from pixel_sail.data.sources.entries import member
from pixel_sail.types import BadSample

SPLITS = (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test"))  # folders of Roboflow, and ours
SPLIT_FILE = "_annotations.coco.json"


def read_coco(source: Path, images: Path | None, problems: list[str]) -> list[OwnImage]:
    """The images of a JSON file, or of the files train/_annotations.coco.json, valid/... in a folder.

    `images`: where the images are, if they are in none of the usual places. `problems` gets a line for each fault.
    Raises DatasetError for a file that is no COCO instances file.
    """
    if source.is_file():
        return _read(source, images, None, problems)
    files = [(source / folder / SPLIT_FILE, split) for folder, split in SPLITS]
    there = [(file, split) for file, split in files if file.is_file()]
    if not there:
        raise DatasetError(f"no file {files[0][0]} or {files[1][0]}; give the JSON file itself")
    return [image for file, split in there for image in _read(file, images, split, problems)]


def _read(file: Path, images: Path | None, split: str | None, problems: list[str]) -> list[OwnImage]:
    instances = Instances.read(file)
    places = [file.parent, file.parent / "images", file.parent.parent / "images", file.parent.parent / "images/default"]
    read = partial(_image, instances, [*places, *([] if images is None else [images])], split)
    unknown = sorted(set(instances.by_image) - set(instances.images), key=id_order)
    problems += [
        f"{file}: annotation {instances.by_image[image][category][0]['id']} is of image {image!r:.40}, which 'images' "
        "does not list; export again"
        for image in unknown
        for category in instances.by_image[image]
    ]
    return read_images(sorted(instances.images, key=id_order), read, problems)


def _image(instances: Instances, places: list[Path], split: str | None, image_id: Any, problems: list[str]) -> OwnImage:
    where = f"{instances.path}: image {image_id!r:.40}"
    image, size = instances.image(image_id, where)
    name = inside(member(image, "file_name", str, where), where)
    path = first_file([place / part for place in places for part in dict.fromkeys((name, Path(name).name))], where)
    if path is None:
        looked = ", ".join(str(place) for place in places)
        raise BadSample(f"{where}: no image {name!r} in {looked}; say with --images in which folder it is")
    there = upright_size(path, where)
    if there != size:
        raise BadSample(
            f"{where}: it says {size[0]} x {size[1]} pixels (height x width), and {path} has {there[0]} x {there[1]}; "
            "put the image back that was annotated"
        )
    objects = []
    for category, of_category in instances.by_image.get(image_id, {}).items():
        for annotation in of_category:
            try:
                objects.append(_object(annotation, instances, instances.classes[category], size))
            except BadSample as error:
                problems.append(str(error))
    return OwnImage(path, f"{split}/{name}" if split else name, size, tuple(objects), split)


def _object(annotation: dict[str, Any], instances: Instances, name: str, size_hw: tuple[int, int]) -> OwnObject:
    number, segmentation = annotation["id"], annotation["segmentation"]
    where = f"{instances.path}: annotation {number}"
    if number in instances.repeated_annotations:
        raise BadSample(f"{where}: several annotations have this id; export again")
    if not segmentation:
        raise BadSample(f"{where}: it has no segmentation, perhaps only a box; draw its mask, or delete it")
    return own_object(name, segmentation, size_hw, where, bool(annotation.get("iscrowd")))
