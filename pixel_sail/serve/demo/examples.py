"""Examples that the page offers: an image, what to do with it, and a region where the question is about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pixel_sail.errors import UserError
from pixel_sail.files import read_json
from pixel_sail.serve.demo.uploads import check_upload

FILE = "examples.json"
_FORM = (
    'each is {"image": "file beside it", "segment": ["phrase", ...]}, or with "ask": "question" in the place of '
    '"segment"; "box": [x0, y0, x1, y1] draws a region'
)


@dataclass(frozen=True)
class Example:
    """`image`: the bytes of a file. `text`: phrases, one a line, or a question. `shapes`: see `drawn_regions`."""

    image: bytes
    name: str
    task: Literal["segment", "ask"]
    text: str
    shapes: list[dict[str, Any]] = field(default_factory=list)


def box(corners_xyxy_px: Sequence[float]) -> dict[str, Any]:
    """Region A as a box."""
    x0, y0, x1, y1 = corners_xyxy_px
    return {"region": 0, "kind": "box", "xy": [[x0, y0], [x1, y1]]}


def image_example(path: Path) -> Example:
    """An image without a text. Raises UserError, naming the file, for what the page would not accept."""
    try:
        return Example(check_upload(path), path.name, "segment", "")
    except UserError as error:
        raise UserError(f"the example {path}: {error}") from None


def read_examples(folder: Path) -> list[Example]:
    """The examples of folder/examples.json. Raises UserError, naming the entry, for a bad one."""
    path = folder / FILE
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is no list of examples; {_FORM}")
    return [_read(entry, folder, f"{path}, example {number}") for number, entry in enumerate(entries, 1)]


def _read(entry: Any, folder: Path, where: str) -> Example:
    known = isinstance(entry, dict) and entry.keys() <= {"image", "segment", "ask", "box"}
    if not known or ("segment" in entry) == ("ask" in entry):
        raise UserError(f"{where}: {_FORM}")
    phrases = entry["segment"] if "segment" in entry else [entry["ask"]]
    corners = entry.get("box")
    good = isinstance(phrases, list) and phrases and all(isinstance(text, str) and text.strip() for text in phrases)
    if not good or not isinstance(entry.get("image"), str) or not (corners is None or _are_corners(corners)):
        raise UserError(f"{where}: {_FORM}")
    if Path(entry["image"]).name != entry["image"]:
        raise UserError(f"{where}: the image {entry['image']} is not a file beside {FILE}")
    image = image_example(folder / entry["image"])
    task = "segment" if "segment" in entry else "ask"
    return Example(image.image, image.name, task, "\n".join(phrases), [box(corners)] if corners else [])


def _are_corners(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(number) in (int, float) for number in value)
