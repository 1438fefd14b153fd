"""A dataset of your own without code: a JSON line an image, or several that are asked about together, in the file
<root>/<split>.jsonl. See docs/jsonl.md.
"""

from __future__ import annotations

import reprlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_text
from pixel_sail.data.image import upright_size
from pixel_sail.data.inside import inside, is_file
from pixel_sail.data.limits import MAX_IMAGES, MAX_TURNS
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import area_px, encode_mask, from_coco
from pixel_sail.data.regions import Box, Points, draw_region
from pixel_sail.data.sources.entries import member, parse_usable
from pixel_sail.data.sources.record import EntrySource, ExpectedFile, SourceRecord
from pixel_sail.data.text import printable
from pixel_sail.files import parse_json
from pixel_sail.tokens import IMAGE_TOKENS, MAX_PROMPTS, PROMPTS, SEG, prompt_names
from pixel_sail.types import RLE, BadSample, Sample, Turn

NAME = "jsonl"
FILE = ExpectedFile("{split}.jsonl")
IMAGE_FOLDERS = ("", "images")  # beside the file, in this order
MASK_FOLDERS = ("", "masks")
_NUMBERS = tuple(map(str, range(MAX_PROMPTS)))  # how the regions are called
BOX_SLACK_PX = 1.0  # by which a box may pass the edge of the image: COCO's own boxes are rounded
SHOWN_PROBLEMS = 20  # in an error about a whole file

Shape = Any  # as in the file: RLE, polygons or, here already, the path of a mask file; for a region also box and point


@dataclass(frozen=True)
class JsonlEntry:
    """A line of the file. Its shapes are decoded only when the sample is drawn."""

    key: str  # "train.jsonl:12"
    where: str  # the same with the folder, for messages
    line: int  # from 1
    path: Path | None  # of the image, of several the first
    turns: tuple[Turn, ...]
    masks: tuple[Shape, ...]
    regions: dict[int, Shape]  # K of <PromptK> -> its region
    more_paths: tuple[Path, ...] = ()  # of the other images
    mask_images: tuple[int, ...] = ()  # the number of the image of each mask; empty: the first
    region_images: dict[int, int] = field(default_factory=dict)  # K -> that of its region; left out: the first

    @property
    def paths(self) -> tuple[Path, ...]:
        return () if self.path is None else (self.path, *self.more_paths)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the stored images; see `upright_size`."""
        return [upright_size(path, self.where) for path in self.paths]

    def image_of(self, mask: int) -> int:
        """The number of the image of a mask."""
        return self.mask_images[mask] if self.mask_images else 0

    def target(self, number: int, sizes_hw: list[tuple[int, int]]) -> RLE:
        """A mask. Raises BadSample if it is malformed, empty, or of another size."""
        where = f"{self.where}: mask {number}"
        mask = decode_shape(self.masks[number], sizes_hw[self.image_of(number)], where)
        if area_px(mask) == 0:
            raise BadSample(f"{where} has no pixel")
        return mask

    def prompts(self, sizes_hw: list[tuple[int, int]]) -> dict[int, RLE]:
        """The regions. Raises BadSample for one that is malformed, empty, or the same as another."""
        drawn: dict[int, RLE] = {}
        for k, shape in sorted(self.regions.items()):
            image = self.region_images.get(k, 0)
            region = _region(shape, sizes_hw[image], f"{self.where}: region {k}", PROMPTS[k])
            for other, earlier in drawn.items():
                if earlier == region and self.region_images.get(other, 0) == image:
                    raise BadSample(f"{self.where}: regions {other} and {k} are the same pixels; use one of them twice")
            drawn[k] = region
        return drawn


class JsonlSource(EntrySource[JsonlEntry]):
    """Samples of a line each, with all its questions in their order (see `pixel_sail.data.sources.Source`)."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` is not used. Raises BadSample, naming file and line, for a shape that cannot be used."""
        entry = self._entries[index]
        if entry.path is None:
            return Sample(entry.key, None, entry.turns)
        sizes = entry.sizes()
        return Sample(
            entry.key,
            entry.path,
            entry.turns,
            tuple(entry.target(number, sizes) for number in range(len(entry.masks))),
            entry.prompts(sizes),
            more_images=entry.more_paths,
            mask_images=entry.mask_images,
            prompt_images=entry.region_images,
        )

    def images(self, index: int) -> tuple[Path, ...]:
        """All image files of a sample, where `image` gives the first."""
        return self._entries[index].paths


def open_jsonl(root: Path, split: str, data: DataConfig) -> JsonlSource:
    """`<root>/<split>.jsonl`. Raises DatasetError; lines that cannot be used are listed in `.problems`."""
    problems: list[str] = []
    return JsonlSource(read_jsonl(FILE.find(root, split), problems), problems)


def read_jsonl(path: Path, problems: list[str]) -> list[JsonlEntry]:
    """Every usable line; `problems` gets a message with file and line for each other. Blank lines are skipped.

    Raises DatasetError for a missing file, one in another encoding (see `read_text`), and one without a usable line.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    rows = [(row, f"{path}:{number}") for number, row in lines if row.strip()]
    entries = parse_usable(rows, lambda row, where: _parse(row, where, path), problems)
    if not entries:
        shown = [*problems[:SHOWN_PROBLEMS], *(["..."] if len(problems) > SHOWN_PROBLEMS else [])]
        reasons = ":" + "".join(f"\n  {problem}" for problem in shown) if problems else ": it is empty"
        raise DatasetError(f"nothing of {path} can be used{reasons}")
    return entries


def _parse(row: str, where: str, file: Path) -> JsonlEntry:
    try:
        values = parse_json(row)
    except ValueError as error:
        raise BadSample(f"{where}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise BadSample(f"{where}: {reprlib.repr(values)} is no object {{...}}; one line is one image")
    turns = tuple(
        read_turn(talk, f"{where}: conversation {number}")
        for number, talk in enumerate(_few(member(values, "conversations", list, where), where))
    )
    if not turns:
        raise BadSample(f"{where}: its 'conversations' are empty")
    masks, regions = values.get("masks") or [], values.get("regions") or {}
    if not isinstance(masks, list):
        raise BadSample(f"{where}: its 'masks' are {reprlib.repr(masks)}; expected a list, one for each {SEG}")
    if not isinstance(regions, dict):
        raise BadSample(f"{where}: its 'regions' are {reprlib.repr(regions)}; expected {{\"K\": region of <PromptK>}}")
    check_masks(turns, masks, where)
    numbered = _numbered(regions, where)
    check_regions(turns, numbered, where)
    names = _image_names(values, where)
    if not names and (masks or regions):
        raise BadSample(f"{where}: it has masks or regions, but no image")
    folder, number = file.parent, int(where.rpartition(":")[2])
    image, *more = [_find(folder, IMAGE_FOLDERS, name, f"{where}: no image") for name in names] or [None]
    mask_images = _mask_images(values, masks, names, where)
    region_images = _region_images(values, numbered, names, where)
    located = [_located(folder, mask, f"{where}: mask {n}") for n, mask in enumerate(masks)]
    placed = {k: _located(folder, region, f"{where}: region {k}") for k, region in numbered.items()}
    return JsonlEntry(
        f"{file.name}:{number}", where, number, image, turns, tuple(located), placed,
        tuple(more), mask_images, region_images,
    )  # fmt: skip


def _image_names(values: dict[str, Any], where: str) -> list[str]:
    """The name of the "image", or those of several "images"."""
    if "images" not in values:
        if "image" not in values:
            raise BadSample(f"{where}: it has no 'image'; write null for a conversation without one")
        return [] if values["image"] is None else [member(values, "image", str, where)]
    names = member(values, "images", list, where)
    if "image" in values:
        raise BadSample(f"{where}: it has 'image' and 'images'; give one of them")
    if not 1 <= len(names) <= MAX_IMAGES or not all(isinstance(name, str) for name in names):
        raise BadSample(
            f"{where}: its 'images' are {reprlib.repr(names)}; expected the names of 1 to {MAX_IMAGES} files"
        )
    return names


def _mask_images(values: dict[str, Any], masks: list[Any], names: list[str], where: str) -> tuple[int, ...]:
    """Of several images, the number of each mask's."""
    numbers = values.get("mask_images")
    if numbers is None and (len(names) < 2 or not masks):
        return ()
    if not isinstance(numbers, list) or len(numbers) != len(masks) or not all(_is_image(n, names) for n in numbers):
        raise BadSample(
            f"{where}: its 'mask_images' are {reprlib.repr(numbers)}; expected for each of the {len(masks)} masks the "
            f"number of its image, 0 to {len(names) - 1}"
        )
    return tuple(numbers)


def _region_images(values: dict[str, Any], regions: dict[int, Any], names: list[str], where: str) -> dict[int, int]:
    """Of several images, K -> the number of its region's."""
    numbers = values.get("region_images")
    if numbers is None and (len(names) < 2 or not regions):
        return {}
    keys = set(map(str, regions))
    if not isinstance(numbers, dict) or set(numbers) != keys or not all(_is_image(n, names) for n in numbers.values()):
        raise BadSample(
            f"{where}: its 'region_images' are {reprlib.repr(numbers)}; expected for the K of each region the number "
            f"of its image, 0 to {len(names) - 1}"
        )
    return {int(k): number for k, number in numbers.items()}


def _is_image(number: Any, names: list[str]) -> bool:
    return type(number) is int and 0 <= number < len(names)


def _few(talks: list[Any], where: str) -> list[Any]:
    if len(talks) > MAX_TURNS:
        raise BadSample(f"{where}: its 'conversations' have {len(talks):,} turns; at most {MAX_TURNS:,} are read")
    return talks


def read_turn(talk: Any, where: str) -> Turn:
    """Of {"question": ..., "answer": ...}. Raises BadSample, beginning with `where`."""
    question, answer = (member(talk, name, str, where).strip() for name in ("question", "answer"))
    if not question or not answer:
        raise BadSample(f"{where}: its {'answer' if question else 'question'} is empty")
    if SEG in question:
        raise BadSample(f"{where}: {SEG} stands in the question; it stands for a mask, and masks belong to answers")
    reserved = [token for token in IMAGE_TOKENS if token in question + answer]
    if reserved:
        raise BadSample(f"{where}: the text contains {reserved[0]}, which is reserved for images")
    return Turn(question, answer)


def check_masks(turns: tuple[Turn, ...], masks: list[Any], where: str) -> None:
    """Raises BadSample unless there is a mask for each [SEG] of the answers."""
    places = sum(turn.answer.count(SEG) for turn in turns)
    if places != len(masks):
        raise BadSample(f"{where}: its answers have {places} {SEG}, but 'masks' has {len(masks)}; each needs its own")


def _numbered(regions: dict[str, Any], where: str) -> dict[int, Any]:
    for name in regions:
        if name not in _NUMBERS:
            raise BadSample(
                f'{where}: no region can be called "{printable(name[:80])}"; write the K of <PromptK>, '
                f'"0" to "{MAX_PROMPTS - 1}"'
            )
    return {int(name): region for name, region in regions.items()}


def check_regions(turns: tuple[Turn, ...], regions: dict[int, Any], where: str) -> None:
    """Raises BadSample unless the regions are those that the turns name."""
    named = {k for turn in turns for k in prompt_names(turn.question + " " + turn.answer)}
    if missing := sorted(named - set(regions)):
        raise BadSample(f"{where}: <Prompt{missing[0]}> is named, but 'regions' has no \"{missing[0]}\"")
    if unnamed := sorted(set(regions) - named):
        raise BadSample(f"{where}: region {unnamed[0]} is drawn, but no question or answer names {PROMPTS[unnamed[0]]}")


def _located(folder: Path, shape: Any, where: str) -> Shape:
    return _find(folder, MASK_FOLDERS, shape, f"{where}: no mask file") if isinstance(shape, str) else shape


def _find(folder: Path, places: tuple[str, ...], name: str, what: str) -> Path:
    inside(name, what.rpartition(": no ")[0])
    paths = [folder / place / name for place in places]
    path = next((path for path in paths if is_file(path, what.rpartition(": no ")[0])), None)
    if path is None:
        raise BadSample(f"{what} {' or '.join(dict.fromkeys(map(str, paths)))}")
    return path


def decode_shape(shape: Shape | bytes, size_hw: tuple[int, int], where: str) -> RLE:
    """A mask of polygons, RLE or a mask file (its path or its bytes). Raises BadSample, beginning with `where`."""
    if isinstance(shape, Path | bytes):
        mask = read_mask_file(shape, where)
        if mask.shape != size_hw:
            name = "the mask file" if isinstance(shape, bytes) else shape
            raise BadSample(f"{where}: {name} is {_by(mask.shape)} pixels, the image {_by(size_hw)} (width x height)")
        return encode_mask(mask)
    if isinstance(shape, list) and shape and all(_is_number(value) for value in shape):
        raise BadSample(f"{where}: {reprlib.repr(shape)} is one polygon; write a list of polygons, [[x, y, x, y, ...]]")
    degenerate: list[str] = []
    mask = from_coco(shape, *size_hw, where, degenerate)
    if degenerate:  # the user's own file: a slip to mend, where a published dataset has it for good
        raise BadSample(degenerate[0])
    return mask


def _region(shape: Shape, size_hw: tuple[int, int], where: str, name: str) -> RLE:
    if isinstance(shape, list) and shape and all(_is_number(value) for value in shape):
        if len(shape) == 2:
            return _draw(Points(((shape[0], shape[1]),)), size_hw, where, name)
        if len(shape) == 4:
            return _draw(_box(shape, size_hw, where), size_hw, where, name)
        raise BadSample(
            f"{where}: {reprlib.repr(shape)} has {len(shape)} numbers; a box has 4 (x, y, width, height), a point 2 "
            "(x, y), and polygons are a list of lists, [[x, y, x, y, ...]]"
        )
    mask = decode_shape(shape, size_hw, where)
    if area_px(mask) == 0:
        raise BadSample(f"{where} has no pixel")
    return mask


def _box(values: list[float], size_hw: tuple[int, int], where: str) -> Box:
    x, y, width, height = values
    if not all(abs(value) <= sys.float_info.max for value in values) or width <= 0 or height <= 0:
        raise BadSample(f"{where}: {reprlib.repr(values)} is no box [x, y, width, height]: both sides must be above 0")
    box = Box(x, y, x + width, y + height)
    beyond = min(x, y, size_hw[1] - box.x1, size_hw[0] - box.y1)
    if beyond < -BOX_SLACK_PX:
        raise BadSample(
            f"{where}: the box {reprlib.repr(values)} reaches from ({x}, {y}) to ({box.x1}, {box.y1}), beyond the "
            f"image of {_by(size_hw)} pixels; a box is [x, y, width, height]"
        )
    return box


def _draw(region: Box | Points, size_hw: tuple[int, int], where: str, name: str) -> RLE:
    try:
        return draw_region(region, size_hw, name)
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by(size_hw: tuple[int, ...]) -> str:
    return f"{size_hw[1]} x {size_hw[0]}"


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val", "test"),
        files=(FILE,),
        sample="a line",
        turn="a question and its answer, with masks and regions; see [docs/jsonl.md](../docs/jsonl.md)",
        open=open_jsonl,
        image_folders=IMAGE_FOLDERS,
        check_all=True,
    ),
)
