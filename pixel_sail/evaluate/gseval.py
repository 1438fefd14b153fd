"""GroundingSuite-Eval (arXiv 2503.10596): masks and boxes of stuff, parts, several objects and single objects.

    <root>/gseval/GroundingSuite-Eval.jsonl     {idx, image_path, class_id, label, caption, box, segmentation} a line
    <root>/gseval/unlabeled2017/*.jpg           COCO's; image_path is "unlabeled2017/<name>". Also below <root>

`gseval` scores masks, and their boxes; a line of predictions is {idx, segmentation}. `gseval:box` scores the boxes of
any model, {idx, box}; a model that answers with masks gives the box of its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px, box_px
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, parse_usable, refuse_nothing, sized_mask, text_member
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, side_by_side, with_unusable
from pixel_sail.evaluate.boxes import Box, box_iou, check_box
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.referring import check_mask, open_image, union_mask
from pixel_sail.evaluate.rows import read_json_rows
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.metrics import iou
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import RLE, BadSample

KIND = "gseval"
FILE = "GroundingSuite-Eval.jsonl"
# class_id -> the paper's four granularities. The published files do not name them: read off their captions.
CLASSES = {1: "stuff", 2: "part", 3: "multi", 4: "single"}
MIN_IOU = 0.5  # of a box that is right


@dataclass(frozen=True)
class GsCase:
    idx: int
    image: Path
    size_hw: tuple[int, int]  # pixels, as the mask says
    caption: str
    granularity: str  # a value of CLASSES
    box: Box  # as the file has it
    mask: RLE


@dataclass(frozen=True)
class GsEval:
    """A line: idx, segmentation; if `boxes`: idx, box."""

    name: str
    cases: tuple[GsCase, ...]
    problems: tuple[str, ...]
    boxes: bool = False
    id_fields: tuple[str, ...] = ("idx",)
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, name: str) -> GsEval:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown name and an unreadable file."""
        task = name.partition(":")[2]
        if name not in (KIND, f"{KIND}:box"):
            raise DatasetError(f"unknown benchmark {name}; known are {KIND} and {KIND}:box")
        path, problems = root / KIND / FILE, list[str]()
        rows, finder = read_json_rows(path), ImageFinder(root, (KIND, ".", *ImageFinder.FOLDERS))
        numbered = ((row, f"{path.name}, line {number}") for number, row in enumerate(rows, start=1))
        cases = parse_usable(numbered, lambda row, where: _case(row, finder, where), problems)
        refuse_nothing(cases, path, problems)
        return cls(name, side_by_side(cases), tuple(problems), task == "box")

    @property
    def answer_fields(self) -> tuple[str, ...]:
        return ("box",) if self.boxes else ("segmentation",)

    def predict(self, predictor: Predictor, cases: Sequence[GsCase]) -> list[Line]:
        """The lines of one image, which is encoded once for all its captions. The masks of an answer are united."""
        answers = predictor.segment(open_image(cases[0].image, cases[0].size_hw), [case.caption for case in cases])
        lines = []
        for case, answer in zip(cases, answers, strict=True):
            mask = union_mask(answer.masks, case.size_hw)
            given = {"box": mask and box_px(mask)} if self.boxes else {"segmentation": mask}
            lines.append(Line(idx=case.idx, caption=case.caption, text=answer.text, **given, **score_fields(answer)))
        return lines

    def check(self, line: Line, case: GsCase, where: str) -> None:
        if self.boxes:
            check_box(line["box"], where)
        else:
            check_mask(line["segmentation"], case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of DEFINITIONS; `<granularity>_cases` as counts."""
        pairs = list(zip(self.cases, lines, strict=True))
        parts = [("", pairs)]
        for granularity in CLASSES.values():
            own = [pair for pair in pairs if pair[0].granularity == granularity]
            parts.append((f"{granularity}_", own))
        scores: dict[str, Any] = {}
        for prefix, own in parts:
            if not self.boxes:
                scores[f"{prefix}giou"] = _mean([iou(line["segmentation"], case.mask) for case, line in own])
            scores[f"{prefix}acc@0.5"] = _mean([self._box_iou(case, line) >= MIN_IOU for case, line in own])
            scores[f"{prefix}cases"] = len(own)
        return with_unusable(scores, self.problems)

    def result(self, case: GsCase, line: Line) -> CaseResult:
        groups, text = {"granularity": case.granularity}, line.get("text", "")
        if not self.boxes:
            return mask_result(case.image, case.caption, [line["segmentation"]], case.mask, groups, answer=text)
        right = self._box_iou(case, line) >= MIN_IOU
        answer, expected = (str(box and [round(side, 1) for side in box]) for box in (line["box"], case.box))
        return CaseResult(case.image, case.caption, answer, expected, right=right, groups=groups)

    def _box_iou(self, case: GsCase, line: Line) -> float:
        if self.boxes:
            return box_iou(line["box"], case.box)
        mask = line["segmentation"]
        return box_iou(mask and box_px(mask), case.box)


_PAPER = "GroundingSuite, arXiv 2503.10596"
DEFINITIONS = (
    Definition(
        ("giou", *(f"{part}_giou" for part in CLASSES.values())),
        "mean IoU of the masks, of all cases and of each granularity; the masks of an answer are united, a missing "
        "mask counts as an empty one",
        _PAPER,
    ),
    Definition(
        ("acc@0.5", *(f"{part}_acc@0.5" for part in CLASSES.values())),
        "share of boxes with IoU of 0.5 or more, of all cases and of each granularity; where masks are scored, the box "
        "of the mask's pixels",
        _PAPER,
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.GSEVAL,
    open=lambda root, name, options: GsEval.read(root, name),
    definitions=DEFINITIONS,
)


def _case(row: Any, finder: ImageFinder, where: str) -> GsCase:
    """Raises BadSample."""
    class_id = member(row, "class_id", int, where)
    if class_id not in CLASSES:
        raise BadSample(f"{where}: its 'class_id' is {class_id}; known are {CLASSES}")
    box, mask = member(row, "box", list, where), sized_mask(member(row, "segmentation", dict, where), where)
    check_box(box, f"{where}: its 'box'")
    if not area_px(mask):
        raise BadSample(f"{where}: its mask has no pixel")
    return GsCase(
        idx=member(row, "idx", int, where),
        image=finder.find(member(row, "image_path", str, where), where),
        size_hw=(mask["size"][0], mask["size"][1]),
        caption=text_member(row, "caption", where),
        granularity=CLASSES[class_id],
        box=(box[0], box[1], box[2], box[3]),
        mask=mask,
    )


def _mean(values: Sequence[float]) -> float | None:
    """In percent; None without values."""
    return 100 * sum(values) / len(values) if values else None
