"""Questions about regions, and region captioning: the references of a region are the expressions that refer to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.sources import refer
from pixel_sail.data.templates import TELL_APART, about
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, RegionQuestion, check_words, with_unusable
from pixel_sail.evaluate.captions import CaptionSet, as_caption, joined, renamed, scores_of_sets
from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.referring import open_image
from pixel_sail.serve.predictor import Answer, Chat, Predictor
from pixel_sail.types import RLE

KIND = "region_caption"
QUESTION = about("<Prompt0>", TELL_APART[0])


def ask_about_regions(predictor: Predictor, cases: Sequence[RegionQuestion], max_new_tokens: int) -> list[Answer]:
    """One answer a case. Each question is a chat of its own with its own regions; chats are answered in batches."""
    sizes = {case.image: case.size_hw for case in cases}
    images = {path: open_image(path, size_hw) for path, size_hw in sizes.items()}
    chats = [
        Chat(images[case.image], [case.question], {k: decode_mask(rle) for k, rle in case.prompts.items()})
        for case in cases
    ]
    sampling = replace(predictor.sampling, max_new_tokens=max_new_tokens)
    return [answer for (answer,) in predictor.chat_many(chats, sampling)]


@dataclass(frozen=True)
class RegionCase:
    ref_id: int
    image: Path
    size_hw: tuple[int, int]
    region: RLE
    references: tuple[str, ...]
    question: str = QUESTION

    @property
    def prompts(self) -> dict[int, RLE]:
        return {0: self.region}

    @property
    def reply(self) -> str:
        return " / ".join(self.references)


@dataclass(frozen=True)
class RegionCaptions:
    """Descriptions of the regions of a REFER dataset. A line: ref_id, text."""

    name: str
    cases: tuple[RegionCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("ref_id",)
    answer_fields: tuple[str, ...] = ("text",)
    images_per_call: int = 16

    @classmethod
    def read(cls, root: Path, name: str) -> RegionCaptions:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown or unreadable dataset or split."""
        dataset, _, split = name.partition(":")[2].partition(":")
        if dataset not in refer.NAMES:
            raise DatasetError(f"unknown benchmark {name}; the datasets are {', '.join(refer.NAMES)}")
        referring = refer.read_refer(root, dataset, split or "val")
        cases = tuple(
            RegionCase(
                referent.ref_id, image.path, image.size_hw, referent.mask, tuple(text for _, text in referent.sentences)
            )
            for image in referring.images
            for referent in image.referents
        )
        return cls(name, cases, referring.problems)

    def predict(self, predictor: Predictor, cases: Sequence[RegionCase]) -> list[Line]:
        answers = ask_about_regions(predictor, cases, max_new_tokens=64)
        return [Line(ref_id=case.ref_id, text=answer.text) for case, answer in zip(cases, answers, strict=True)]

    def check(self, line: Line, case: RegionCase, where: str) -> None:
        check_words(line["text"], where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of DEFINITIONS; `cases`: regions, each predicted once, `sentences`: their expressions."""
        texts, references = [as_caption(line["text"]) for line in lines], [case.references for case in self.cases]
        names = ("meteor", "cider")
        pairs = [(text, [sentence]) for text, own in zip(texts, references, strict=True) for sentence in own]
        alone = CaptionSet([text for text, _ in pairs], [own for _, own in pairs])
        of_sentences, of_regions = scores_of_sets([alone, CaptionSet(texts, references)], names)
        scores = joined(of_sentences, renamed(of_regions, "_all_references"))
        return with_unusable(scores | {"cases": len(self.cases), "sentences": len(pairs)}, self.problems)

    def result(self, case: RegionCase, line: Line) -> CaseResult:
        return CaseResult(case.image, case.question, line["text"], case.reply, case.prompts)


_TOKENS = "METEOR 1.5 and CIDEr of pycocoevalcap on PTB tokens"
DEFINITIONS = (
    Definition(
        ("meteor", "cider"),
        f"{_TOKENS}; each sentence of a region is a case, with that sentence as its only reference",
        "Pixel-SAIL's authors, arXiv 2504.10465",
    ),
    Definition(
        ("meteor_all_references", "cider_all_references"),
        f"{_TOKENS}; each region is a case, with all its sentences as references",
        "COCO captions, arXiv 1504.00325",
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.REGION,
    open=lambda root, name, options: RegionCaptions.read(root, name),
    definitions=DEFINITIONS,
)
