"""ReasonSeg (LISA, arXiv 2308.00692): questions whose target must be inferred.

Each image has a JSON file of the same name: {text: [..], is_sentence, shapes: [{label, points}]}.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.image import image_size, upright
from pixel_sail.data.inside import is_file
from pixel_sail.data.limits import MAX_POLYGONS
from pixel_sail.data.masks import area_px, decode_mask, encode_mask, refuse_long_outline
from pixel_sail.data.polygons import outlined_polygon
from pixel_sail.data.sources.entries import member, parse_usable, refuse_nothing, refuse_tokens
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates
from pixel_sail.types import RLE, BadSample, NoPixels, Sample

NAME = "reason_seg"
FOLDER = ExpectedFile("reason_seg/ReasonSeg/{split}")
SPLITS = ("train", "val", "test")
_TARGET, _IGNORED = 1, 255
_FAR_OUTSIDE = 1_000_000  # pixels

Shape = tuple[int, tuple[tuple[int, int], ...]]  # _TARGET or _IGNORED, (x, y) in pixels


@dataclass(frozen=True)
class ReasonImage:
    key: str
    path: Path
    texts: tuple[str, ...]
    is_sentence: bool  # "What ...?"; else a phrase, as in referring segmentation
    shapes: tuple[Shape, ...]


Text = tuple[ReasonImage, str]  # one of the texts of an image


class ReasonSource(RegionSource[Text]):
    """Samples with the image as it is shown: the polygons were drawn there, so an EXIF rotation is applied."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().sample(index, rng)
        return replace(sample, image=upright(self._entries[index].path))


def open_reason_seg(root: Path, split: str, data: DataConfig) -> ReasonSource:
    """Samples of one image with several texts. Raises DatasetError; unusable images are listed in `.problems`."""
    templates, problems = Templates.of(data), list[str]()
    images = [
        RegionImage(image.key, image.path, tuple((image, text) for text in image.texts))
        for image in read_reason_seg(root, split, problems)
    ]
    return ReasonSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _ask(
    templates: Templates, image: RegionImage[Text], drawn: list[Text], rng: np.random.Generator
) -> list[RegionTurn]:
    """Pixels marked as ignored are not part of the target. Raises BadSample if the target is empty."""
    target, _ = target_and_ignored(drawn[0][0])
    turns = [
        templates.reason(text, rng) if reasoned.is_sentence else templates.turn(text, 1, rng)
        for reasoned, text in drawn
    ]
    return [RegionTurn(turn.question, turn.answer, masks=(target,)) for turn in turns]


def read_reason_seg(root: Path, split: str, problems: list[str]) -> list[ReasonImage]:
    """Every image of a split, by name. Raises DatasetError."""
    folder = FOLDER.path(root, split)
    if not folder.is_dir():
        raise DatasetError(f"no folder {folder}; its splits are {', '.join(SPLITS)}")
    paths = ((path, f"{NAME}/{split}/{path.stem}") for path in sorted(folder.glob("*.json")))
    images = parse_usable(paths, partial(_read, problems), problems)
    refuse_nothing(images, folder, problems)
    return images


def target_and_ignored(image: ReasonImage) -> tuple[RLE, RLE]:
    """The target, and the pixels that are not scored, of the image as it is shown (after the EXIF rotation).

    Polygons are drawn largest first, as LISA's reader does.
    Raises BadSample if the image cannot be read, and NoPixels if the target is empty.
    """
    size = image_size(image.path, image.key, orient=True)
    drawn = [encode_mask(outlined_polygon(corners, size)) for _, corners in image.shapes]
    marked = np.zeros(size, dtype=np.uint8)
    # Among equally large shapes the last of the file comes first, as with LISA's reversed argsort.
    for i in np.argsort([area_px(mask) for mask in drawn], kind="stable")[::-1]:
        marked[decode_mask(drawn[i])] = image.shapes[i][0]
    if not (marked == _TARGET).any():
        raise NoPixels(f"{image.key}: no pixel of the image is marked as the target")
    return encode_mask(marked == _TARGET), encode_mask(marked == _IGNORED)


def _read(problems: list[str], path: Path, key: str) -> ReasonImage:
    try:
        values = read_json(path, fallback="cp1252")  # some of the published files
    except DatasetError as error:
        raise BadSample(f"{key}: {error}") from None
    image, is_sentence = path.with_suffix(".jpg"), member(values, "is_sentence", object, key)
    if not isinstance(is_sentence, int):  # or True and False
        raise BadSample(f"{key}: its 'is_sentence' is {reprlib.repr(is_sentence)}; expected true or false")
    if not is_file(image, key):
        raise BadSample(f"{key}: no image {image}")
    texts = [text.strip() if isinstance(text, str) else "" for text in member(values, "text", list, key)]
    if not texts or not all(texts):
        raise BadSample(f"{key}: its 'text' is {reprlib.repr(texts)}; expected one or more questions or phrases")
    for text in texts:
        refuse_tokens(text, key)
    degenerate: list[str] = []
    if len(member(values, "shapes", list, key)) > MAX_POLYGONS:
        raise BadSample(f"{key}: it has {len(values['shapes']):,} shapes; at most {MAX_POLYGONS:,} are drawn")
    shapes = [
        _shape(shape, degenerate, f"{key}: shape {i}") for i, shape in enumerate(member(values, "shapes", list, key))
    ]
    used = tuple(shape for shape in shapes if shape is not None)
    if all(kind == _IGNORED for kind, _ in used):
        raise NoPixels(degenerate[0] if degenerate else f"{key}: none of its shapes is a target")
    problems += degenerate
    return ReasonImage(key, image, tuple(texts), bool(is_sentence), used)


def _shape(shape: Any, degenerate: list[str], where: str) -> Shape | None:
    """None for a "flag": the authors' own notes, which have no meaning here; and for one that encloses nothing.

    The latter, a point or a line, goes into `degenerate`. Raises BadSample for what is no shape.
    """
    label = member(shape, "label", str, where).lower()
    if label == "flag":
        return None
    points = member(shape, "points", list, where)
    try:
        corners = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        corners = np.empty(0)
    if len(points) < 3:
        degenerate.append(
            f"{where}: its points {reprlib.repr(points)} are no polygon; it needs x, y of at least three points"
        )
        return None
    numbers = all(type(value) in (int, float) for point in points if isinstance(point, list) for value in point)
    if not numbers or corners.ndim != 2 or corners.shape[1] != 2 or not (np.abs(corners) < _FAR_OUTSIDE).all():
        raise BadSample(
            f"{where}: its points {reprlib.repr(points)} are no polygon; it needs x, y in pixels of each point"
        )
    refuse_long_outline(corners, where)
    return _IGNORED if "ignore" in label else _TARGET, tuple((int(x), int(y)) for x, y in corners)


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=SPLITS,
        files=(FOLDER,),
        sample="an image",
        turn="a question or a phrase, and the mask of its target",
        open=open_reason_seg,
        image_folders=(),  # the images are beside the JSON files
    ),
)
