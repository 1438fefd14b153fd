"""Attend-and-segment over a benchmark: phrases.jsonl image by image, then its two predictions files and scores.

In `<out>/`:
    phrases.manifest.json        the model and settings behind phrases.jsonl; with others it is started anew
    phrases.jsonl                one line for each image: index, image, prompt, output, tokens, phrases (see
                                 `attend_and_segment`); answers: the replies to the wordings of the question; automatic:
                                 the chosen mask or null; undecided: whether the choice fell back to comparing words
    predictions/oracle.jsonl     for tools/test.py --predictions: the answers, and the best of all masks
    predictions/automatic.jsonl  the answers, and the mask chosen without knowing the object
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixel_sail import durable
from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate.benchmark import Line
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.templates import NO_EXPRESSION, vqa_prompts
from pixel_sail.evaluate.predictions import in_case_order
from pixel_sail.evaluate.referring import open_image
from pixel_sail.studies.attend_segment import select
from pixel_sail.studies.attend_segment.generate import Adapter
from pixel_sail.studies.attend_segment.phrase_masks import Record, attend_and_segment
from pixel_sail.studies.attend_segment.phrases import Chunker
from pixel_sail.studies.attend_segment.segmenters import Segmenter

PROMPT = "Describe {expression} in detail."
FIELDS = ("{expression}", "{question}", "{options}")  # a prompt may contain these
_MAX_ANSWER_TOKENS = 64
CHOICES = ("oracle", "automatic")


@dataclass(frozen=True)
class Baseline:
    """Everything needed to turn a row of a benchmark into a line of phrases.jsonl."""

    adapter: Adapter
    segmenter: Segmenter
    chunker: Chunker
    choose: select.Choose
    questions: tuple[str, ...]  # the wordings of the benchmark's question
    prompt: str = PROMPT  # may contain FIELDS
    max_new_tokens: int = 256

    def record(self, target: PixObject) -> Record:
        """The line of one image. Raises BadSample if the image cannot be read or has another size."""
        image = open_image(target.image, target.size_hw)
        prompt = fill_prompt(self.prompt, target)
        phrases = attend_and_segment(self.adapter, self.segmenter, self.chunker, image, prompt, self.max_new_tokens)
        prompts = vqa_prompts(target, self.questions)
        answers = [self.adapter.answer(image, wording, _MAX_ANSWER_TOKENS).text for wording in prompts]
        mask, undecided = select.automatic(phrases, image, target.expression, self.choose)
        record = {"index": target.index, "image": str(target.image), **phrases}
        return record | {"answers": answers, "automatic": mask, "undecided": undecided}


def fill_prompt(prompt: str, target: PixObject) -> str:
    """Replace FIELDS by the values of one object. Braces in its expression are kept."""
    options = " ".join(f"({letter}) {text}" for letter, text in zip("abcdefgh", target.options, strict=False))
    for field, value in zip(FIELDS, (target.expression or NO_EXPRESSION, target.question, options), strict=True):
        prompt = prompt.replace(field, value)
    return prompt.strip()


def collect(cases: Sequence[PixObject], baseline: Baseline, out: Path, made_with: dict[str, Any]) -> list[Record]:
    """The records of the cases, in their order. Images that are already in phrases.jsonl are not processed again.

    phrases.jsonl is continued only if its manifest equals `made_with` (plain JSON values). Raises BadSample,
    DatasetError.
    """
    path = out / "phrases.jsonl"
    records = {record["index"]: record for record in _resume(path, made_with)}
    todo = [target for target in cases if target.index not in records]
    for target in tqdm(todo, desc="attend", unit="image"):
        records[target.index] = baseline.record(target)
        durable.append_json_line(path, records[target.index])
    return [records[target.index] for target in cases]


def score(benchmark: PixBenchmark, records: Sequence[Record], out: Path) -> dict[str, dict[str, Any]]:
    """Write both predictions files and score them: {"oracle": scores, "automatic": scores}."""
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    masks = {
        "oracle": [select.oracle(r, target) for r, target in zip(records, benchmark.cases, strict=True)],
        "automatic": [record["automatic"] for record in records],
    }
    results = {}
    for name, chosen in masks.items():
        path = out / "predictions" / f"{name}.jsonl"
        lines = [
            Line(index=record["index"], answers=record["answers"], segmentations=[mask])
            for record, mask in zip(records, chosen, strict=True)
        ]
        durable.write_json_lines(path, lines)
        results[name] = benchmark.score(in_case_order(benchmark, lines, str(path)))
    results["automatic"]["undecided_choices"] = sum(record["undecided"] for record in records)
    return results


def _resume(path: Path, made_with: dict[str, Any]) -> list[Record]:
    """The records of an earlier run. Afterwards the file has exactly these lines, and the manifest says `made_with`."""
    manifest = path.with_name("phrases.manifest.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        changes = durable.differences(json.loads(manifest.read_text()), made_with)
    except (FileNotFoundError, ValueError):
        changes = [f"{manifest.name} is missing or is not JSON"]
    records: list[Record] = []
    if changes and durable.whole_lines(path):
        print(f"{path} was made with another model or other settings and is replaced: {'; '.join(changes)}")
    elif not changes:
        try:
            records = durable.read_json_lines(path)
            _ = [record["index"] for record in records]
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(f"{path} has a line that is not a record ({error}); move the file away") from None
    durable.write_json_lines(path, records)
    durable.write_json(manifest, made_with)
    return records
