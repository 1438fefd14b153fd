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

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixel_sail import durable
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import check_rle
from pixel_sail.errors import FileError
from pixel_sail.evaluate.benchmark import Line
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.templates import NO_EXPRESSION, vqa_prompts
from pixel_sail.evaluate.predictions import in_case_order
from pixel_sail.evaluate.referring import open_image
from pixel_sail.files import read_json
from pixel_sail.interrupts import how_far
from pixel_sail.studies.attend_segment import select
from pixel_sail.studies.attend_segment.generate import Adapter
from pixel_sail.studies.attend_segment.phrase_masks import Record, attend_and_segment
from pixel_sail.studies.attend_segment.phrases import Chunker
from pixel_sail.studies.attend_segment.segmenters import Segmenter
from pixel_sail.writable import writing_into

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
    for target in cases:
        if target.index in records:
            _check_masks(records[target.index], target, f"{path}, image {target.index}")
    todo = [target for target in cases if target.index not in records]
    done = how_far(lambda: f"{len(records)} of {len(cases)} images are done; the same command goes on")
    with done, writing_into(out):
        for target in tqdm(todo, desc="attend", unit="image", disable=None):
            record = baseline.record(target)
            durable.append_json_line(path, record)  # torn by a signal, it is not read
            records[target.index] = record
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
    if os.path.lexists(manifest):
        changes = durable.differences(_read_manifest(manifest), made_with)
    else:
        changes = [f"{manifest.name} is missing"]
    records: list[Record] = []
    if changes and durable.whole_lines(path):
        print(f"{path} was made with another model or other settings and is replaced: {'; '.join(changes)}")
    elif not changes:
        records = _read_records(path)
    durable.write_json_lines(path, records)
    durable.write_json(manifest, made_with)
    return records


def _read_manifest(path: Path) -> Any:
    try:
        return read_json(path)
    except FileError as error:  # the records of days are not thrown away for it
        raise FileError(f"{error}. Copy it again, or move it away with phrases.jsonl to start anew") from None


def _read_records(path: Path) -> list[Record]:
    """The lines of phrases.jsonl, each image once. Raises DatasetError for what no call of ours has written."""
    try:
        records = durable.read_json_lines(path)
        indices = [record["index"] for record in records]
        problem = next((text for record in records if (text := _wrong_in(record))), None)
    except (ValueError, TypeError, KeyError) as error:
        problem, indices = str(error), []
    if problem is None and len(set(indices)) < len(indices):
        problem = "an image is in it twice"
    if problem:
        raise DatasetError(f"{path} has a line that is not a record ({problem}); move the file away")
    return records


def _check_masks(record: Record, target: PixObject, where: str) -> None:
    masks = [mask for phrase in record["phrases"] for mask in phrase["masks"]]
    for mask in [*masks, *([] if record["automatic"] is None else [record["automatic"]])]:
        check_rle(mask, target.size_hw, where)


def _wrong_in(record: Record) -> str | None:
    """What no record has, in words. `_check_masks` looks at the masks."""
    for phrase in record["phrases"]:
        masks, scores = phrase["masks"], phrase["scores"]
        if not isinstance(phrase["text"], str) or not all(isinstance(mask, dict) for mask in masks):
            return f"a phrase of image {record['index']}"
        if len(masks) != len(scores) or not all(math.isfinite(score) for score in scores):
            return f"the scores of image {record['index']}"
    answers, automatic = record["answers"], record["automatic"]
    if not isinstance(record["index"], int) or not all(isinstance(answer, str) for answer in answers):
        return f"the answers of image {record['index']}"
    if not isinstance(automatic, dict | None) or not isinstance(record["undecided"], bool):
        return f"the choice of image {record['index']}"
    return None
