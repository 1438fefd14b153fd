"""Ref-L4 (arXiv 2406.16866): one box for each long expression, at several thresholds, by size and by class.

    <root>/ref_l4/ref-l4-{val,test}.parquet     {id, caption, bbox, ori_category_id, height, width, file_name, ...}
    <root>/ref_l4/ref-l4-{val,test}.jsonl       the same rows as JSON lines, which need no pyarrow; read first
    <root>/ref_l4/images/*.jpg                  from images.tar.gz; COCO's also from where COCO is

A line of predictions is {id, pred_bbox, format}, as in the authors' file: format is "xyxy" or "xywh". A model that
answers with masks gives the box of its mask.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import box_px
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, parse_usable, refuse_nothing, size_member, text_member
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, side_by_side, with_unusable
from pixel_sail.evaluate.boxes import Box, box_iou, check_box, from_xywh
from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.referring import open_image, union_mask
from pixel_sail.evaluate.rows import read_json_rows, read_parquet
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import BadSample

KIND = "ref_l4"
SPLITS = ("val", "test")
COLUMNS = ("id", "caption", "bbox", "ori_category_id", "height", "width", "file_name")
FORMATS = ("xyxy", "xywh")
THRESHOLDS = (0.5, 0.75, 0.9)
_MEANT = tuple(percent / 100 for percent in range(50, 100, 5))  # of mAcc
_SMALL_PX, _LARGE_PX = 128, 256  # of the square root of the box's area: below, and above
SIZES = ("small", "medium", "large")
# COCO's category -> that of Objects365 which the authors count as the same class: "refcoco_<id>" -> "o365_<id>". COCO's
# hair drier (37 there) has none.
_AS_OBJECTS365 = """
1:1 2:47 3:6 4:59 5:115 6:56 7:117 8:66 9:22 10:41 11:177 13:128 14:250 15:25 16:56 17:140 18:93 19:79 20:100 21:97
22:145 23:296 24:179 25:181 27:39 28:40 31:13 32:44 33:194 34:220 35:119 36:174 37:100000 38:155 39:138 40:114 41:146
42:147 43:205 44:9 46:36 47:11 48:89 49:85 50:94 51:26 52:113 53:83 54:266 55:104 56:142 57:153 58:235 59:144 60:151
61:98 62:3 63:51 64:26 65:76 67:98 70:154 72:37 73:74 74:116 75:133 76:107 77:62 78:164 79:135 80:278 81:82 82:134
84:19 85:95 86:31 87:170 88:70 89:328 90:227
"""
CLASSES = {f"refcoco_{coco}": f"o365_{other}" for coco, other in (pair.split(":") for pair in _AS_OBJECTS365.split())}


@dataclass(frozen=True)
class RefL4Case:
    id: int
    image: Path
    size_hw: tuple[int, int]
    caption: str
    box: Box
    category: str  # as the authors average: see CLASSES

    @property
    def size(self) -> str:
        """A member of SIZES."""
        side_px = math.sqrt((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))
        return SIZES[(side_px >= _SMALL_PX) + (side_px > _LARGE_PX)]


@dataclass(frozen=True)
class RefL4:
    """A line: id, pred_bbox, format."""

    name: str
    cases: tuple[RefL4Case, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("pred_bbox", "format")
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, name: str) -> RefL4:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown split and an unreadable file."""
        split = name.partition(":")[2] or "all"
        if split not in (*SPLITS, "all"):
            raise DatasetError(f"unknown benchmark {name}; the splits are {', '.join(SPLITS)} and all, which is both")
        cases: list[RefL4Case] = []
        problems: list[str] = []
        for part in SPLITS if split == "all" else (split,):
            cases += _read(root, part, problems)
        return cls(f"{KIND}:{split}", side_by_side(cases), tuple(problems))

    def predict(self, predictor: Predictor, cases: Sequence[RefL4Case]) -> list[Line]:
        """The lines of one image. The masks of an answer are united, and their box is given."""
        answers = predictor.segment(open_image(cases[0].image, cases[0].size_hw), [case.caption for case in cases])
        lines = []
        for case, answer in zip(cases, answers, strict=True):
            mask = union_mask(answer.masks, case.size_hw)
            line = Line(id=case.id, caption=case.caption, text=answer.text)
            lines.append(line | {"pred_bbox": mask and box_px(mask), "format": "xyxy"} | score_fields(answer))
        return lines

    def check(self, line: Line, case: RefL4Case, where: str) -> None:
        if line["format"] not in FORMATS:
            raise BadSample(f"{where}: the format is {line['format']!r:.60}; expected one of {', '.join(FORMATS)}")
        check_box(line["pred_bbox"], where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of DEFINITIONS; `<size>_cases` and `classes` as counts."""
        ious = [_iou(case, line) for case, line in zip(self.cases, lines, strict=True)]
        scores: dict[str, Any] = {f"acc@{threshold}": _accuracy(ious, threshold) for threshold in THRESHOLDS}
        scores |= {"macc": _macc(ious), "cases": len(ious)}
        for size in SIZES:
            own = [value for case, value in zip(self.cases, ious, strict=True) if case.size == size]
            scores |= {f"{size}_acc@0.5": _accuracy(own, 0.5), f"{size}_macc": _macc(own), f"{size}_cases": len(own)}
        classes = defaultdict(list)
        for case, value in zip(self.cases, ious, strict=True):
            classes[case.category].append(value)
        scores["class_acc@0.5"] = fmean(_accuracy(own, 0.5) for own in classes.values())
        scores["class_macc"] = fmean(_macc(own) for own in classes.values())
        return with_unusable(scores | {"classes": len(classes)}, self.problems)

    def result(self, case: RefL4Case, line: Line) -> CaseResult:
        box = line["pred_bbox"]
        answer, expected = (str(sides and [round(side, 1) for side in sides]) for sides in (box, case.box))
        right = _iou(case, line) > 0.5
        return CaseResult(case.image, case.caption, answer, expected, right=right, groups={"box size": case.size})


_PAPER = "Ref-L4, arXiv 2406.16866"
DEFINITIONS = (
    Definition(
        (*(f"acc@{threshold}" for threshold in THRESHOLDS), "macc"),
        "Acc@X is the share of boxes with an IoU above X; mAcc is the mean of Acc@0.5 to Acc@0.95 in steps of 0.05; a "
        "model that answers with masks gives the box of its mask's pixels; without a box the IoU is 0",
        _PAPER,
    ),
    Definition(
        tuple(f"{size}_{score}" for size in SIZES for score in ("acc@0.5", "macc")),
        "the same of the boxes whose square root of the area is below 128 px, up to 256 px, and above",
        _PAPER,
    ),
    Definition(
        ("class_acc@0.5", "class_macc"),
        "the mean over classes of the same of each class; COCO's classes are merged with those of Objects365",
        _PAPER,
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.REF_L4,
    open=lambda root, name, options: RefL4.read(root, name),
    definitions=DEFINITIONS,
)


def _read(root: Path, split: str, problems: list[str]) -> list[RefL4Case]:
    folder = root / KIND
    lines, parquet = (folder / f"ref-l4-{split}.{ending}" for ending in ("jsonl", "parquet"))
    path = parquet if parquet.is_file() and not lines.is_file() else lines
    if not path.is_file():
        raise DatasetError(f"no file {parquet} (or {lines}, the same rows as JSON lines)")
    instead = f"its rows as JSON lines, {lines.name},"
    rows = read_json_rows(path) if path is lines else read_parquet(path, COLUMNS, "pixfoundation", instead)
    finder = ImageFinder(root, (f"{KIND}/images", KIND, *ImageFinder.FOLDERS))
    numbered = ((row, f"{path.name}, row {number}") for number, row in enumerate(rows, start=1))
    cases = parse_usable(numbered, lambda row, where: _case(row, finder, where), problems)
    if not cases and (folder / "images.tar.gz").is_file() and not (folder / "images").is_dir():
        raise DatasetError(f"{folder}/images.tar.gz is not unpacked: tar -xzf images.tar.gz -C images, in {folder}")
    refuse_nothing(cases, path, problems)
    return cases


def _case(row: Any, finder: ImageFinder, where: str) -> RefL4Case:
    """Raises BadSample."""
    box, category = member(row, "bbox", list, where), member(row, "ori_category_id", str, where)
    check_box(box, f"{where}: its 'bbox'")
    if min(box[2:]) <= 0:
        raise BadSample(f"{where}: its 'bbox' is {box}; expected x, y, width, height with a width and a height")
    return RefL4Case(
        id=member(row, "id", int, where),
        image=finder.find(member(row, "file_name", str, where), where),
        size_hw=size_member(row, where),
        caption=text_member(row, "caption", where),
        box=from_xywh(box),
        category=CLASSES.get(category, category),
    )


def _iou(case: RefL4Case, line: Line) -> float:
    box = line["pred_bbox"]
    if box is not None and line["format"] == "xywh":
        box = from_xywh(box)
    return box_iou(box, case.box)


def _accuracy(ious: Sequence[float], threshold: float) -> float | None:
    """In percent; None without boxes."""
    return 100 * sum(value > threshold for value in ious) / len(ious) if ious else None


def _macc(ious: Sequence[float]) -> float | None:
    return fmean(_accuracy(ious, threshold) for threshold in _MEANT) if ious else None
