"""A dataset for YOLO segmentation (docs.ultralytics.com): data.yaml, folders of images, and a text file for each.

A line of `labels/a.txt` is an object of `images/a.jpg`: the number of its class, then x y x y ... of its polygon, as
shares of width and height. An image without such a file, or with an empty one, has no object.
"""

from __future__ import annotations

import math
import reprlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pixel_sail import yaml_file
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_text
from pixel_sail.data.image import upright_size
from pixel_sail.data.own.objects import OwnImage, OwnObject, images_in, own_object, read_images
from pixel_sail.data.sources.entries import text_member
from pixel_sail.types import BadSample

SPLITS = (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test"))  # in data.yaml, and ours
SLACK = 0.01  # by which a coordinate may pass the edge, of the side of the image


def read_yolo(file: Path, problems: list[str]) -> list[OwnImage]:
    """The images of all splits of a data.yaml. `problems` gets a line for each fault, with file and line.

    Folders are looked for below that of the file, where `path` says, if it is a folder below it. Raises DatasetError
    for a file that cannot be used.
    """
    values = yaml_file.read(file, DatasetError)
    if not isinstance(values, dict):
        raise DatasetError(f"{file} holds no keys; a data.yaml has names, train and val")
    names = _names(values.get("names"), file)
    images: list[OwnImage] = []
    for key, split in SPLITS:
        for written in _folders(values.get(key), key, file):
            folder = _folder(file, values.get("path"), written, key)
            read = partial(_image, folder, names, split, file)
            images += read_images(images_in(folder), read, problems)
            problems += _without_image(folder)
    if not images and not problems:
        raise DatasetError(f"{file} names no folder with an image; its keys train and val are folders of images")
    return images


def _names(names: Any, file: Path) -> dict[int, str]:
    listed = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(listed, dict) or not all(type(number) is int for number in listed) or not listed:
        raise DatasetError(
            f"{file}: its 'names' are {reprlib.repr(names)}; expected a list of names, or 'number: name'"
        )
    try:
        return {number: text_member(listed, number, f"{file}: names") for number in listed}
    except BadSample as error:
        raise DatasetError(str(error)) from None


def _folders(value: Any, key: str, file: Path) -> list[str]:
    folders = [] if value is None or value == "" else value if isinstance(value, list) else [value]
    for folder in folders:
        if not isinstance(folder, str) or folder.endswith(".txt"):
            raise DatasetError(f"{file}: its {key!r} is {reprlib.repr(folder)}; only folders of images are read")
    return folders


def _folder(file: Path, base: Any, written: str, key: str) -> Path:
    """The folder of a split; "../train/images", as Roboflow writes it, is below the file too."""
    parts = [part for part in PurePosixPath(written.replace("\\", "/")).parts if part not in ("..", "/")]
    below = [part for part in PurePosixPath(base).parts if part not in ("..", "/")] if isinstance(base, str) else []
    places = [file.parent.joinpath(*below, *parts), file.parent.joinpath(*parts)]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        looked = " or ".join(str(place) for place in dict.fromkeys(places))
        raise DatasetError(
            f"{file}: no folder {looked} for its {key!r} ({written!r}); put the images below {file.parent}"
        )
    return folder


def _label_file(image: Path) -> Path:
    """labels/a.txt of images/a.jpg: the last folder called images counts."""
    parts = list(image.parts)
    at = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    return (Path(*parts[:at], "labels", *parts[at + 1 :]) if at is not None else image).with_suffix(".txt")


def _without_image(folder: Path) -> list[str]:
    """A line for each label file that no image has."""
    labels = _label_file(folder / "x").parent
    known = {_label_file(path) for path in images_in(folder)}
    there = sorted(labels.rglob("*.txt")) if labels.is_dir() and labels != folder else []
    return [
        f"{path}: no image {path.stem}.jpg (or .png, ...) in {folder}; put it there, or delete the label file"
        for path in there
        if path not in known
    ]


def _image(folder: Path, names: dict[int, str], split: str, file: Path, path: Path, problems: list[str]) -> OwnImage:
    labels, objects = _label_file(path), []
    size = upright_size(path, str(labels))
    rows = []
    if labels.is_file():
        try:
            rows = read_text(labels).splitlines()
        except DatasetError as error:
            raise BadSample(str(error)) from None
    for number, row in enumerate(rows, start=1):
        if row.strip():
            try:
                objects.append(_object(row.split(), names, size, f"{labels}:{number}", file))
            except BadSample as error:
                problems.append(str(error))
    return OwnImage(path, f"{split}/{path.relative_to(folder).as_posix()}", size, tuple(objects), split)


def _object(words: list[str], names: dict[int, str], size_hw: tuple[int, int], where: str, file: Path) -> OwnObject:
    if not words[0].isdecimal() or len(words[0]) > 9 or int(words[0]) not in names:
        raise BadSample(
            f"{where}: class {words[0]!r:.20} is not in the names of {file} ({_short(names)}); add it there, or "
            "correct the line"
        )
    if len(words) == 5:
        raise BadSample(f"{where}: a box, where a polygon x y x y ... is expected; export segmentation, not detection")
    try:
        shares = [float(word) for word in words[1:]]
    except ValueError as error:
        raise BadSample(f"{where}: {error}; a line is a class and x y x y ...") from None
    if len(shares) < 6 or len(shares) % 2:
        raise BadSample(f"{where}: {len(shares)} numbers after the class; a polygon has x, y of at least three points")
    if not all(math.isfinite(share) and -SLACK <= share <= 1 + SLACK for share in shares):
        wrong = next(share for share in shares if not -SLACK <= share <= 1 + SLACK)
        raise BadSample(f"{where}: {wrong} is no share of a side of the image, 0 to 1; pixels are not read")
    height, width = size_hw
    polygon = [round(share * side, 3) for share, side in zip(shares, (width, height) * (len(shares) // 2), strict=True)]
    return own_object(names[int(words[0])], [polygon], size_hw, where)


def _short(names: dict[int, str]) -> str:
    return f"{min(names)} to {max(names)}" if len(names) > 1 else f"{min(names)} alone"
