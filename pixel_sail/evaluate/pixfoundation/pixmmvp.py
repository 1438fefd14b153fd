"""PixMMVP: 300 images of MMVP in pairs with the same question and different answers, and the object of each question.

<root>/pixmmvp/Questions.csv       Index, Question, Options "(a) Open (b) Closed", Correct Answer "(a)"
<root>/pixmmvp/Objects.csv         Index, Object: the referring expression, or None
<root>/pixmmvp/Segmentations.json  COCO: any number of polygons an image, also 0
<root>/pixmmvp/MMVP Images/<index>.jpg
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_csv, read_json
from pixel_sail.data.inside import inside
from pixel_sail.data.masks import area_px, from_coco, unite
from pixel_sail.data.sources.entries import member, records, repeated, size_member
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.vqa import parse_options
from pixel_sail.types import RLE, BadSample

KIND = "pixmmvp"
PAIR_SIZE = 2
IMAGES = "MMVP Images"
# Index -> expression of the published questions whose label is disputed. Other data in this format has other objects.
DISPUTED = {99: "the elephant's tusks", 279: "the elderly person"}


def read_objects(root: Path) -> list[PixObject]:
    """All rows, in order; their images may be missing. Raises DatasetError, BadSample."""
    folder = root / KIND
    questions = read_table(folder / "Questions.csv", ("Index", "Question", "Options", "Correct Answer"))
    expressions = read_table(folder / "Objects.csv", ("Index", "Object"))
    numbers = [str(number) for number in range(1, len(questions) + 1)]
    for name, table in (("Questions.csv", questions), ("Objects.csv", expressions)):
        if [row["Index"] for row in table] != numbers:
            raise DatasetError(f"{folder / name}: its {len(table)} rows are not numbered from 1 to {len(questions)}")
    images, segmentations = _read_segmentations(folder / "Segmentations.json")
    objects = []
    for question, expression in zip(questions, expressions, strict=True):
        index = int(question["Index"])
        where = f"{folder.name}: image {index}"
        if index not in images:
            raise DatasetError(f"{folder / 'Segmentations.json'} has no image with id {index}")
        size = size_member(images[index], where)
        pieces = [from_coco(polygons, *size, where) for polygons in segmentations[index]]
        options, letter = read_choices(question["Options"], question["Correct Answer"], where)
        text = read_expression(expression["Object"])
        objects.append(
            PixObject(
                index=index,
                image=folder / IMAGES / images[index]["file_name"],
                size_hw=size,
                expression=text,
                mask_rle=union_or_none(pieces, size),
                question=question["Question"],
                options=options,
                answer=letter,
                pair=(index - 1) // PAIR_SIZE,
                disputed=text is not None and DISPUTED.get(index) == text,
            )
        )
    return objects


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file, as values by column; spaces around names and values are ignored. Raises DatasetError."""
    head, *rows = read_csv(path) or [[]]
    names = [name.strip() for name in head]
    missing = [column for column in columns if column not in names]
    if missing:
        raise DatasetError(f"{path} has the columns {names}; expected {', '.join(columns)}")
    bad = [number for number, row in enumerate(rows, start=2) if row and len(row) != len(names)]
    if bad:
        raise DatasetError(f"{path}, line {bad[0]}: {len(rows[bad[0] - 2])} values for {len(names)} columns")
    return [dict(zip(names, (value.strip() for value in row), strict=True)) for row in rows if row]


def read_expression(expression: str) -> str | None:
    """The expression, or None for "None". The file doubles quotes even in fields that are not quoted."""
    text = expression.replace('""', '"')
    return None if text.casefold() in ("", "none") else text


def read_choices(options: str, answer: str, where: str) -> tuple[tuple[str, ...], str]:
    """("(a) Open (b) Closed", "(a)") -> (("Open", "Closed"), "a"). Raises DatasetError."""
    texts, letter = parse_options(options), answer.strip().strip("()").lower()
    if not texts or letter not in list("abcdefghijklmnopqrstuvwxyz"[: len(texts)]):
        raise DatasetError(
            f"{where}: the options are {options!r} and the answer {answer!r}; expected '(a) x (b) y', '(a)'"
        )
    return texts, letter


def union_or_none(pieces: list[RLE], size_hw: tuple[int, int]) -> RLE | None:
    """The union of the pieces; None if it has no pixel."""
    mask = unite(pieces, size_hw)
    return mask if area_px(mask) else None


def _read_segmentations(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, list[Any]]]:
    """id -> image; image id -> its segmentations."""
    values, segmentations = read_json(path), defaultdict(list)
    for number, annotation in enumerate(records(values, "annotations", ("image_id",), path, "a COCO file")):
        where = f"{path}: annotations[{number}]"
        segmentations[annotation["image_id"]].append(member(annotation, "segmentation", object, where))
    images = {}
    for image in records(values, "images", ("id",), path, "a COCO file"):
        where = f"{path}: image {image['id']!r}"
        images[image["id"]] = image | {"file_name": inside(member(image, "file_name", str, where), where)}
    for what in ("images", "annotations"):
        entries = records(values, what, (), path, "a COCO file")
        twice = repeated(repr(entry["id"]) for entry in entries if "id" in entry)
        if twice:
            raise DatasetError(f"{path} has several {what} with the id {min(twice)}")
    unknown = sorted(set(segmentations) - set(images), key=str)
    if unknown:
        raise BadSample(f"{path}: an annotation is of image {unknown[0]!r}, which is not listed")
    return images, segmentations
