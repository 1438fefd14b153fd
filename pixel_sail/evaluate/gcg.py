"""Grounded caption generation (GLaMM, arXiv 2311.03356): a caption whose phrases have masks.

What is scored, and where it differs from GLaMM's scripts:

* Each image is one question. Each [SEG] belongs to the phrase `<p> ... </p>` before it; the masks of a phrase are
  united.
* `recall`: the share of annotated phrases that are matched by a predicted phrase with IoU >= 0.5 and similar words. The
  matching is one to one, greedily by IoU. Words are similar if the cosine of their counts, in lower case and without
  articles, is at least 0.5. GLaMM compares BERT embeddings instead, which few pairs fail, and stops at the first pair
  that does: its numbers differ.
* `mask_recall`: the same, with any words.
* `ap50`: AP at IoU 0.5 by pycocotools, with all masks of one class and of score 1, as in GLaMM.
* `miou`: the mean IoU of the pairs of an image, matched greedily as long as they overlap, averaged over images.
* `meteor` and `cider`: the caption without its tags against the annotated caption.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import check_rle, encode_mask, unite
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.data.sources.gcg import GRAND_F, NAMES, annotation_file, read_gcg
from pixel_sail.data.sources.grounded import with_masks
from pixel_sail.data.templates import GROUNDED_CAPTION
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, check_list, check_words, with_unusable
from pixel_sail.evaluate.captions import caption_scores
from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.instance_scores import Instances, mask_ap
from pixel_sail.evaluate.region import ask_about_regions
from pixel_sail.metrics import iou
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
    prompts: dict[int, RLE] = field(default_factory=dict)  # empty: the question is about the whole image


@dataclass(frozen=True)
class GroundedCaptions:
    """Grounded captions of a dataset. A line: id, text with its tags, segmentations: one RLE for each [SEG]."""

    name: str
    cases: tuple[GcgCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("text", "segmentations")
    images_per_call: int = 16

    @classmethod
    def read(cls, root: Path, name: str) -> GroundedCaptions:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown or unreadable dataset or split."""
        dataset, _, split = (name.partition(":")[2] or GRAND_F).partition(":")
        split = split or "val"
        if dataset not in NAMES:
            raise DatasetError(f"unknown benchmark {name}; the datasets are {', '.join(NAMES)}")
        problems: list[str] = []
        cases = []
        for image in read_gcg(root, dataset, split, problems):
            try:
                phrases, size = with_masks(image, problems), image.size()
                masks = tuple(image.mask(phrase, size) for phrase in phrases)
                texts = tuple(phrase.text for phrase in phrases)
                cases.append(GcgCase(image.key, image.path, size, image.caption, texts, masks))
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
        check_words(line["text"], where)
        masks, expected = line["segmentations"], line["text"].count(SEG)
        check_list(masks, f"{where}: segmentations", f"an RLE for each {SEG} of the text")
        if len(masks) != expected:
            raise BadSample(
                f"{where}: the text has {expected} {SEG}, and segmentations: {len(masks)}; one RLE for each"
            )
        for number, rle in enumerate(masks):
            check_rle(rle, case.size_hw, f"{where}, segmentation {number}")

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """recall, mask_recall, ap50, miou, meteor, cider in percent (see above); cases, phrases and masks as counts."""
        predictions = [grounded_phrases(line["text"], line["segmentations"]) for line in lines]
        matched = mask_matched = phrases = 0
        image_ious = []
        for case, predicted in zip(self.cases, predictions, strict=True):
            shape = (len(case.masks), len(predicted))  # also where one of them is 0
            ious = np.array([[iou(mask, truth) for _, mask in predicted] for truth in case.masks]).reshape(shape)
            similar = np.array([[similarity(truth, text) for text, _ in predicted] for truth in case.phrases])
            phrases += len(case.phrases)
            matched += len(greedy_pairs(np.where(similar.reshape(shape) >= MIN_SIMILARITY, ious, 0), MIN_IOU))
            mask_matched += len(greedy_pairs(ious, MIN_IOU))
            pairs = greedy_pairs(ious, 0)
            image_ious.append(float(np.mean([ious[pair] for pair in pairs])) if pairs else 0.0)
        captions = [plain_caption(line["text"]) for line in lines]
        scores = {
            "recall": 100 * matched / phrases if phrases else None,
            "mask_recall": 100 * mask_matched / phrases if phrases else None,
            "ap50": _ap50(self.cases, predictions),
            "miou": 100 * float(np.mean(image_ious)) if image_ious else None,
            **caption_scores(captions, [[case.reply] for case in self.cases], ("meteor", "cider")),
            "cases": len(self.cases),
            "phrases": phrases,
            "masks": sum(map(len, predictions)),
        }
        return with_unusable(scores, self.problems)

    def result(self, case: GcgCase, line: Line) -> CaseResult:
        """A caption is neither right nor wrong; `recall` and `miou` compare its masks."""
        return CaseResult(case.image, case.question, line["text"], case.reply, masks=tuple(line["segmentations"]))


DEFINITIONS = (
    Definition(
        ("recall",),
        "share of annotated phrases matched by a predicted phrase with mask IoU of 0.5 or more and words of cosine 0.5 "
        "or more; one to one, greedily by IoU",
        "ours, after GLaMM, which compares BERT embeddings",
    ),
    Definition(("mask_recall",), "as recall, with any words", "ours"),
    Definition(
        ("ap50",), "AP at IoU 0.5 of pycocotools, all masks of one class and of score 1", "GLaMM, arXiv 2311.03356"
    ),
    Definition(
        ("miou",),
        "mean over images of the mean IoU of their pairs of masks, paired greedily by IoU",
        "GLaMM, arXiv 2311.03356",
    ),
    Definition(
        ("meteor", "cider"),
        "METEOR 1.5 and CIDEr of pycocoevalcap; the caption without its tags against the annotated caption",
        "GLaMM, arXiv 2311.03356",
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.GCG,
    open=lambda root, name, options: GroundedCaptions.read(root, name),
    definitions=DEFINITIONS,
)


def grounded_phrases(text: str, segmentations: Sequence[RLE]) -> list[tuple[str, RLE]]:
    """(phrase, its united masks) in order. The phrase is "" where a [SEG] comes before the first phrase."""
    phrases, used = [], 0
    for phrase, after in _spans(text):
        count = phrase.count(SEG) + after.count(SEG)
        masks, used = list(segmentations[used : used + count]), used + count
        if masks:
            phrases.append((" ".join(phrase.replace(SEG, " ").split()), unite(masks, tuple(masks[0]["size"]))))
    return phrases


def _spans(text: str) -> list[tuple[str, str]]:
    """(phrase, the text behind it up to the next phrase); the first phrase is "". In one pass, whatever the text."""
    spans, phrase, rest = [], "", text
    while PHRASE_END in rest and PHRASE_START in rest:
        before, _, tail = rest.partition(PHRASE_START)
        if PHRASE_END not in tail:
            break
        spans.append((phrase, before))
        phrase, _, rest = tail.partition(PHRASE_END)
    return [*spans, (phrase, rest)]


def plain_caption(text: str) -> str:
    """The text without its tags."""
    words = " ".join(re.sub("|".join(map(re.escape, (PHRASE_START, PHRASE_END, SEG))), " ", text).split())
    return re.sub(r" (?=[.,;:!?])", "", words)


def similarity(first: str, second: str) -> float:
    """Cosine of the word counts of two phrases, 0 to 1; articles are left out, case is ignored."""
    a, b = (
        Counter(word for word in re.findall(r"\w+", text.lower()) if word not in _ARTICLES) for text in (first, second)
    )
    length = (sum(n * n for n in a.values()) * sum(n * n for n in b.values())) ** 0.5
    return sum(a[word] * b[word] for word in a) / length if length else 0.0


def greedy_pairs(ious: np.ndarray, least: float) -> list[tuple[int, int]]:
    """(row, column) of one-to-one pairs, the largest IoU first; only IoUs above 0 and of at least `least`."""
    order = sorted(zip(*np.nonzero(ious), strict=True), key=lambda pair: -ious[pair])
    pairs: list[tuple[int, int]] = []
    for row, column in order:
        if ious[row, column] >= least and all(row != r and column != c for r, c in pairs):
            pairs.append((int(row), int(column)))
    return pairs


def _ap50(cases: Sequence[GcgCase], predictions: Sequence[list[tuple[str, RLE]]]) -> float | None:
    """AP of class-agnostic masks at IoU 0.5; None if no mask is annotated."""
    instances = [
        Instances(number, 1, case.size_hw, case.masks, [mask for _, mask in phrases], [1.0] * len(phrases))
        for number, (case, phrases) in enumerate(zip(cases, predictions, strict=True))
    ]
    ap = mask_ap(instances, [MIN_IOU])
    return None if ap is None else float(ap[0])
