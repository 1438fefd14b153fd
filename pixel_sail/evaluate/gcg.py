"""Grounded caption generation (GLaMM, arXiv 2311.03356): a caption whose phrases have masks.

What is scored, and where it differs from GLaMM's scripts:

* The question is asked once an image. Each [SEG] belongs to the phrase `<p> ... </p>` before it; the masks of one
  phrase are united.
* `recall`: the share of the annotated phrases that are matched one to one, greedily by IoU, by a predicted phrase with
  IoU >= 0.5 and similar words. Similar: cosine of their word counts >= 0.5, in lower case and without articles. GLaMM
  compares BERT embeddings, which few phrases fail, and stops at the first pair that does: numbers differ from its own.
* `mask_recall`: the same without regard to the words.
* `ap50`: AP at IoU 0.5 of pycocotools, all masks of one class and with score 1, as GLaMM has it.
* `miou`: the mean IoU of the pairs of an image, greedily matched as long as they overlap, averaged over images.
* `meteor` and `cider` of the caption without its tags, against the annotated caption.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px, check_rle, encode_mask, overlap_px, unite
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.data.sources.gcg import GRAND_F, NAMES, annotation_file, read_gcg
from pixel_sail.data.sources.grounded import with_masks
from pixel_sail.data.templates import GROUNDED_CAPTION
from pixel_sail.evaluate.benchmark import Line, with_unusable
from pixel_sail.evaluate.captions import caption_scores
from pixel_sail.evaluate.region import ask_about_regions, check_text
from pixel_sail.serve.predictor import Predictor
from pixel_sail.tokens import PHRASE_END, PHRASE_START, SEG
from pixel_sail.types import RLE, BadSample

KIND = "gcg"
MAX_NEW_TOKENS = 384
MIN_IOU = 0.5
MIN_SIMILARITY = 0.5
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class GcgCase:
    id: str  # "open_psg/val/12": dataset, split, and the index of the entry or "image=<id>" in its file
    image: Path
    size_hw: tuple[int, int]  # pixels
    reply: str  # the annotated caption
    phrases: tuple[str, ...]
    masks: tuple[RLE, ...]  # one a phrase
    question: str = GROUNDED_CAPTION[0]
    prompts: dict[int, RLE] = field(default_factory=dict)  # none: the question is about the whole image


@dataclass(frozen=True)
class GroundedCaptions:
    """gcg:<dataset>[:split], val by default. A line: id, text with its tags, segmentations: one RLE for each [SEG]."""

    name: str
    cases: tuple[GcgCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("text", "segmentations")
    images_per_call: int = 16

    @classmethod
    def read(cls, root: Path, part: str) -> GroundedCaptions:
        """`part`: "" (grand_f), dataset or dataset:split. Raises DatasetError for an unknown or unreadable one."""
        dataset, _, split = (part or GRAND_F).partition(":")
        split = split or "val"
        if dataset not in NAMES:
            raise DatasetError(f"unknown benchmark {KIND}:{part}; the datasets are {', '.join(NAMES)}")
        problems: list[str] = []
        cases = []
        for image in read_gcg(root, dataset, split, problems):
            try:
                phrases, size = with_masks(image, problems), image.size()
                masks = tuple(image.mask(phrase, size) for phrase in phrases)
                cases.append(
                    GcgCase(image.key, image.path, size, image.caption, tuple(one.text for one in phrases), masks)
                )
            except BadSample as error:
                problems.append(str(error))
        refuse_nothing(cases, annotation_file(root, dataset, split), problems)
        return cls(f"{KIND}:{dataset}:{split}", tuple(cases), tuple(problems))

    def predict(self, predictor: Predictor, cases: Sequence[GcgCase]) -> list[Line]:
        answers = ask_about_regions(predictor, cases, MAX_NEW_TOKENS)
        return [
            Line(id=case.id, text=answer.text, segmentations=[encode_mask(mask) for mask in answer.masks])
            for case, answer in zip(cases, answers, strict=True)
        ]

    def check(self, line: Line, case: GcgCase, where: str) -> None:
        check_text(line, where)
        given, named = line["segmentations"], line["text"].count(SEG)
        if not isinstance(given, list) or len(given) != named:
            count = len(given) if isinstance(given, list) else given
            raise BadSample(f"{where}: the text has {named} {SEG}, and segmentations: {count}; one RLE for each")
        for number, rle in enumerate(given):
            check_rle(rle, case.size_hw, f"{where}, segmentation {number}")

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """recall, mask_recall, ap50, miou, meteor, cider in percent (see above); cases, phrases and masks as counts."""
        found = [grounded_phrases(line["text"], line["segmentations"]) for line in lines]
        similar = masked = phrases = 0
        ious = []
        for case, predicted in zip(self.cases, found, strict=True):
            iou = np.array([[_iou(true, mask) for _, mask in predicted] for true in case.masks])
            iou = iou.reshape(len(case.masks), len(predicted))
            alike = np.array([[similarity(true, said) for said, _ in predicted] for true in case.phrases])
            phrases += len(case.phrases)
            similar += len(greedy_pairs(np.where(alike.reshape(iou.shape) >= MIN_SIMILARITY, iou, 0), MIN_IOU))
            masked += len(greedy_pairs(iou, MIN_IOU))
            pairs = greedy_pairs(iou, 0)
            ious.append(float(np.mean([iou[pair] for pair in pairs])) if pairs else 0.0)
        captions = [plain_caption(line["text"]) for line in lines]
        scores = {
            "recall": 100 * similar / phrases if phrases else None,
            "mask_recall": 100 * masked / phrases if phrases else None,
            "ap50": _ap50(self.cases, found),
            "miou": 100 * float(np.mean(ious)) if ious else None,
            **caption_scores(captions, [[case.reply] for case in self.cases], ("meteor", "cider")),
            "cases": len(self.cases),
            "phrases": phrases,
            "masks": sum(map(len, found)),
        }
        return with_unusable(scores, self.problems)


def grounded_phrases(text: str, segmentations: Sequence[RLE]) -> list[tuple[str, RLE]]:
    """(phrase, its united masks) in order; the phrase is "" where a [SEG] comes before any."""
    pieces = re.split(rf"{PHRASE_START}(.*?){PHRASE_END}", text, flags=re.DOTALL)  # before, phrase, after, phrase, ...
    said = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    found, used = [], 0
    for phrase, after in said:
        count = phrase.count(SEG) + after.count(SEG)
        masks, used = list(segmentations[used : used + count]), used + count
        if masks:
            found.append((" ".join(phrase.replace(SEG, " ").split()), unite(masks, tuple(masks[0]["size"]))))
    return found


def plain_caption(text: str) -> str:
    """The text without tags."""
    words = " ".join(re.sub("|".join(map(re.escape, (PHRASE_START, PHRASE_END, SEG))), " ", text).split())
    return re.sub(r" (?=[.,;:!?])", "", words)


def similarity(first: str, second: str) -> float:
    """Cosine of the word counts of two phrases, 0 to 1; articles and case do not count."""
    a, b = (
        Counter(word for word in re.findall(r"\w+", text.lower()) if word not in _ARTICLES) for text in (first, second)
    )
    length = (sum(n * n for n in a.values()) * sum(n * n for n in b.values())) ** 0.5
    return sum(a[word] * b[word] for word in a) / length if length else 0.0


def greedy_pairs(iou: np.ndarray, least: float) -> list[tuple[int, int]]:
    """(row, column) of the pairs, the largest first and one to one, that are above 0 and at least `least`."""
    order = sorted(zip(*np.nonzero(iou), strict=True), key=lambda pair: -iou[pair])
    pairs: list[tuple[int, int]] = []
    for row, column in order:
        if iou[row, column] >= least and all(row != r and column != c for r, c in pairs):
            pairs.append((int(row), int(column)))
    return pairs


def _iou(first: RLE, second: RLE) -> float:
    intersection, union = overlap_px(first, second)
    return intersection / union if union else 0.0


def _ap50(cases: Sequence[GcgCase], found: Sequence[list[tuple[str, RLE]]]) -> float | None:
    """AP of class-agnostic masks at IoU 0.5; None where nothing is annotated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    true = [(i, mask) for i, case in enumerate(cases) for mask in case.masks]
    said = [(i, mask) for i, predicted in enumerate(found) for _, mask in predicted]
    if not true or not said:
        return 0.0 if true else None
    common = {"category_id": 1, "iscrowd": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i, "height": case.size_hw[0], "width": case.size_hw[1]} for i, case in enumerate(cases)],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": [
                {"id": n, "image_id": i, "segmentation": mask, "area": area_px(mask), **common}
                for n, (i, mask) in enumerate(true, start=1)
            ],
        }
        truth.createIndex()
        results = [{"image_id": i, "category_id": 1, "segmentation": mask, "score": 1.0} for i, mask in said]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.iouThrs = np.array([MIN_IOU])
        evaluation.evaluate()
        evaluation.accumulate()
    return 100 * float(evaluation.eval["precision"][0, :, 0, 0, -1].mean())  # all sizes, up to 100 masks an image
