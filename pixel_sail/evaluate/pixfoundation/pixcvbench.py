"""PixCV-Bench: the 2D questions of CV-Bench whose objects have masks, on images of COCO and ADE20K.

    <root>/pixcvbench/CV-Bench/Objects.csv                 Id, file, Objects: a class, or two: "('tv', 'suitcase')"
    <root>/pixcvbench/CV-Bench/test_2d.jsonl               questions, as CV-Bench publishes them; idx is the Id. Or
                                                           test_2d.parquet; earlier: test.jsonl or test.parquet
    <root>/pixcvbench/COCO/FinalSegmentations.json         COCO: RLEs, some of another size than the image
    <root>/pixcvbench/COCO/coco/images/*.jpg
    <root>/pixcvbench/ADE20K/FinalSegmentations.json       or in validation/
    <root>/pixcvbench/ADE20K/validation/images/*.jpg

Without a file of questions there is a warning, and only masks are scored. Parquet needs pyarrow or pandas. The
questions of test_3d.* are about other images, which have no masks here.
"""

from __future__ import annotations

import ast
import contextlib
import reprlib
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.image import image_size
from pixel_sail.data.inside import inside
from pixel_sail.data.masks import decode_mask, encode_mask, from_coco, resize_nearest
from pixel_sail.data.sources.entries import member, records, sized_mask
from pixel_sail.data.templates import listed
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.pixmmvp import read_table, union_or_none
from pixel_sail.evaluate.rows import read_json_rows, read_parquet
from pixel_sail.types import RLE, BadSample

KIND = "pixcvbench"
PAIR_SIZE = 1  # every question stands for itself
_SOURCES = {
    "COCO": ("coco/images", ("FinalSegmentations.json",)),
    "ADE20K": ("validation/images", ("FinalSegmentations.json", "validation/FinalSegmentations.json")),
}
_COLUMNS = ["idx", "question", "choices", "answer"]
# The first that exists is read. CV-Bench split its one file in two; test_3d.* is for a Id that the 2D file lacks.
_QUESTIONS = ("test_2d.jsonl", "test_2d.parquet", "test.jsonl", "test.parquet")
_MORE_QUESTIONS = ("test_3d.jsonl", "test_3d.parquet")
_MAX_DIGITS = 9  # of an Id
_MAX_CHARACTERS = 1000  # of the classes of a row
_NO_SIZE = (0, 0)  # of a missing image


def read_objects(root: Path) -> list[PixObject]:
    """All rows of the sources whose masks exist, by Id. Raises DatasetError, BadSample.

    Masks get the size of their image; if the image is missing, the largest of their own sizes. A polygon has no size of
    its own: such a row has no mask without its image.
    """
    folder = root / KIND
    rows = read_table(folder / "CV-Bench" / "Objects.csv", ("Id", "file", "Objects"))
    for row in rows:
        where = f"{folder / 'CV-Bench' / 'Objects.csv'}: the row of {reprlib.repr(row['file'])}"
        if not row["Id"].isdecimal() or len(row["Id"]) > _MAX_DIGITS:
            raise DatasetError(f"{where} has the Id {reprlib.repr(row['Id'])}; expected a number")
        if not Path(inside(row["file"], where)).name:
            raise DatasetError(f"{where} names no file")
    questions = _read_questions(folder / "CV-Bench")
    objects = []
    for source, (images, files) in _SOURCES.items():
        path = next((folder / source / name for name in files if (folder / source / name).is_file()), None)
        if path is None:
            continue
        own = [row for row in rows if f"/{source}/" in f"/{row['file']}"]
        objects += [
            _object(row, segmentations, folder / source / images, questions)
            for row, segmentations in zip(own, _segmentations(path, own), strict=True)
        ]
    if not objects:
        raise DatasetError(
            f"no FinalSegmentations.json under {folder}: expected {folder / 'COCO'} or {folder / 'ADE20K'}"
        )
    return sorted(objects, key=lambda row: row.index)


def expression_of(objects: str) -> str:
    """ "elephant", or "boat and train" for "('boat', 'train')"."""
    if not objects.startswith("("):
        return objects
    names: Any = None
    if len(objects) <= _MAX_CHARACTERS:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            names = ast.literal_eval(objects)
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(
            f"Objects.csv: {reprlib.repr(objects)} is neither a class nor classes like ('tv', 'suitcase')"
        )
    return listed(list(names))


def _object(row: dict[str, str], segmentations: list[Any], images: Path, questions: dict[int, Any] | None) -> PixObject:
    path, index = images / Path(row["file"]).name, int(row["Id"])
    where = f"{KIND}: {path.name}"
    size = image_size(path, where) if path.is_file() else _own_size(segmentations, where)
    question: dict[str, Any] = {"question": "", "choices": (), "answer": ""}
    if questions is not None:
        if index not in questions:
            raise DatasetError(f"{where}: its Id {index} is no idx of the file of questions")
        question = questions[index]
    return PixObject(
        index=index,
        image=path,
        size_hw=size or _NO_SIZE,
        expression=expression_of(row["Objects"]),
        mask_rle=union_or_none([_resized(mask, size, where) for mask in segmentations], size) if size else None,
        question=question["question"],
        options=tuple(question["choices"]),
        answer=question["answer"].strip("() ").lower(),
        pair=index,
    )


def _segmentations(path: Path, rows: list[dict[str, str]]) -> list[list[Any]]:
    """The masks of each row. An image of several rows is listed once a row; its smaller Id has the smaller image id."""
    values = read_json(path)
    listed_ids: dict[str, list[Any]] = defaultdict(list)
    for image in records(values, "images", ("id",), path, "a COCO file"):
        name = member(image, "file_name", str, f"{path}: image {image['id']!r}")
        listed_ids[Path(name).name].append(image["id"])
    of_image: dict[Any, list[Any]] = defaultdict(list)
    for number, annotation in enumerate(records(values, "annotations", ("image_id",), path, "a COCO file")):
        segmentation = member(annotation, "segmentation", object, f"{path}: annotations[{number}]")
        if segmentation:
            of_image[annotation["image_id"]].append(segmentation)
    by_name: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["Id"])):
        by_name[Path(row["file"]).name].append(row)
    ids: dict[str, int] = {}
    for name, same in by_name.items():
        image_ids = sorted(listed_ids.get(name, ()), key=lambda image_id: (isinstance(image_id, str), image_id))
        if len(image_ids) != len(same):
            raise DatasetError(f"{path} lists {name} {len(image_ids)} times; Objects.csv has {len(same)} rows about it")
        ids |= {row["Id"]: image_id for row, image_id in zip(same, image_ids, strict=True)}
    return [of_image[ids[row["Id"]]] for row in rows]


def _resized(segmentation: Any, size_hw: tuple[int, int], where: str) -> RLE:
    """A mask at the size of the image: each pixel takes the value of the mask's pixel under its centre."""
    mask = (
        sized_mask(segmentation, where) if isinstance(segmentation, dict) else from_coco(segmentation, *size_hw, where)
    )
    return mask if tuple(mask["size"]) == size_hw else encode_mask(resize_nearest(decode_mask(mask), size_hw))


def _own_size(segmentations: list[Any], where: str) -> tuple[int, int] | None:
    """The largest (height, width) of some RLEs; None if one of the masks is a polygon, or there is none."""
    if not segmentations or not all(isinstance(mask, dict) for mask in segmentations):
        return None
    height, width = max(tuple(sized_mask(mask, where)["size"]) for mask in segmentations)
    return (height, width)


def _read_questions(folder: Path) -> dict[int, dict[str, Any]] | None:
    """idx -> {question, choices, answer}; a warning and None without a file of questions."""
    files = [_first_file(folder, names) for names in (_QUESTIONS, _MORE_QUESTIONS)]
    if files[0] is None:
        warnings.warn(
            f"no questions in {folder}: expected one of {', '.join(_QUESTIONS)}, as CV-Bench publishes them. Only the "
            "masks are scored.",
            stacklevel=2,
        )
        return None
    questions: dict[int, dict[str, Any]] = {}
    for path in filter(None, files):
        for row in _rows(path):
            where = f"{path}: the row with the idx {reprlib.repr(row.get('idx') if isinstance(row, dict) else row)}"
            try:
                choices = member(row, "choices", list, where)
                if not all(isinstance(choice, str) for choice in choices):
                    raise BadSample(f"{where}: its 'choices' are {reprlib.repr(choices)}; expected texts")
                texts = {name: member(row, name, str, where) for name in ("question", "answer")}
                questions.setdefault(member(row, "idx", int, where), texts | {"choices": choices})
            except BadSample as error:
                raise DatasetError(f"{error}; a row has {', '.join(_COLUMNS)}") from None
    return questions


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":  # without the images, which are most of the file
        return read_parquet(path, _COLUMNS, "pixfoundation", f"{path.stem}.jsonl, which CV-Bench publishes too,")
    return read_json_rows(path)


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
