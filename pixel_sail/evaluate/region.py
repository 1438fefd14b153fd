"""Region captioning: a region of RefCOCOg is described, its referring expressions are the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.sources import refer
from pixel_sail.data.templates import TELL_APART, about
from pixel_sail.evaluate.benchmark import Line, with_unusable
from pixel_sail.evaluate.captions import caption_scores
from pixel_sail.evaluate.referring import open_picture
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.types import RLE, BadSample

KIND = "region_caption"
QUESTION = about("<Prompt0>", TELL_APART[0])


@dataclass(frozen=True)
class RegionCase:
    ref_id: int
    image: Path
    size_hw: tuple[int, int]
    region: RLE
    references: tuple[str, ...]


@dataclass(frozen=True)
class RegionCaptions:
    """region_caption:<REFER dataset>[:split], val by default. A line: ref_id, text."""

    name: str
    cases: tuple[RegionCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("ref_id",)
    answer_fields: tuple[str, ...] = ("text",)
    pictures_per_call: int = 16

    @classmethod
    def read(cls, root: Path, part: str) -> RegionCaptions:
        """`part`: dataset or dataset:split. Raises DatasetError for an unknown or unreadable one."""
        dataset, _, split = part.partition(":")
        if dataset not in refer.NAMES:
            raise DatasetError(f"unknown benchmark {KIND}:{part}; the datasets are {', '.join(refer.NAMES)}")
        referring = refer.read_refer(root, dataset, split or "val")
        cases = tuple(
            RegionCase(found.ref_id, image.path, image.size_hw, found.mask, tuple(text for _, text in found.sentences))
            for image in referring.images
            for found in image.referents
        )
        return cls(f"{KIND}:{part}", cases, referring.problems)

    def predict(self, predictor: Predictor, cases: Sequence[RegionCase]) -> list[Line]:
        """Each region is asked about alone; they are answered in batches."""
        chats = [Chat(open_picture(case.image, case.size_hw), [QUESTION], [decode_mask(case.region)]) for case in cases]
        answers = predictor.chat_many(chats, Sampling(max_new_tokens=64))
        return [Line(ref_id=case.ref_id, text=answer.text) for case, (answer,) in zip(cases, answers, strict=True)]

    def check(self, line: Line, case: RegionCase, where: str) -> None:
        if not isinstance(line["text"], str):
            raise BadSample(f"{where}: the text is {line['text']!r}")

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """meteor and cider, times 100."""
        texts, references = [line["text"] for line in lines], [case.references for case in self.cases]
        scores = caption_scores(texts, references, ("meteor", "cider"))
        return with_unusable(scores | {"cases": len(self.cases)}, self.problems)
