"""Attend-and-segment over a benchmark: phrases.jsonl image by image, then its two predictions files and scores.

In `<out>/`:
    phrases.manifest.json        what the phrases were made with; those made with anything else are not continued
    phrases.jsonl                one line an image: index, image, prompt, output, tokens, phrases (see `describe`);
                                 answers: the replies to the question's wordings; automatic: the chosen mask or null;
                                 undecided: whether the chooser could not tell, so that the words decided
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

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import write_json_lines as write_lines
from pixel_sail.evaluate.benchmark import Line
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.templates import NO_EXPRESSION, vqa_prompts
from pixel_sail.evaluate.predictions import in_case_order
from pixel_sail.evaluate.referring import open_image
from pixel_sail.studies.attend_segment import select
from pixel_sail.studies.attend_segment.generate import Adapter
from pixel_sail.studies.attend_segment.phrase_masks import Record, describe
from pixel_sail.studies.attend_segment.phrases import Chunker
from pixel_sail.studies.attend_segment.segmenters import Segmenter

PROMPT = "Describe {expression} in detail."
FIELDS = ("{expression}", "{question}", "{options}")  # what a prompt may have in it
_MAX_ANSWER_TOKENS = 64
CHOICES = ("oracle", "automatic")


@dataclass(frozen=True)
class Baseline:
    """All that turns a row of a benchmark into a line of phrases.jsonl."""

    adapter: Adapter
    segmenter: Segmenter
    chunker: Chunker
    choose: select.Choose
    prompt: str = PROMPT  # with FIELDS in it
    max_new_tokens: int = 256

    def record(self, one: PixObject) -> Record:
        """Raises BadSample for an image that cannot be read or has another size."""
        image = open_image(one.image, one.size_hw)
        prompt = filled(self.prompt, one)
        found = describe(self.adapter, self.segmenter, self.chunker, image, prompt, self.max_new_tokens)
        answers = [self.adapter.answer(image, asked, _MAX_ANSWER_TOKENS).text for asked in vqa_prompts(one)]
        mask, undecided = select.automatic(found, image, one.expression, self.choose)
        record = {"index": one.index, "image": str(one.image), **found}
        return record | {"answers": answers, "automatic": mask, "undecided": undecided}


def filled(prompt: str, one: PixObject) -> str:
    """The prompt about one object. Braces in an expression are left alone."""
    options = " ".join(f"({letter}) {text}" for letter, text in zip("abcdefgh", one.options, strict=False))
    for field, value in zip(FIELDS, (one.expression or NO_EXPRESSION, one.question, options), strict=True):
        prompt = prompt.replace(field, value)
    return prompt.strip()


def collect(cases: Sequence[PixObject], baseline: Baseline, out: Path, made_with: dict[str, Any]) -> list[Record]:
    """The records of the cases, in their order; images that are in phrases.jsonl already are not done again.

    `made_with` (plain JSON values) decides whether what lies in `out` is continued. Raises BadSample, DatasetError.
    """
    path = out / "phrases.jsonl"
    records = {record["index"]: record for record in _continued(path, made_with)}
    with path.open("a", encoding="utf-8") as file:
        for one in tqdm([one for one in cases if one.index not in records], desc="attend", unit="image"):
            records[one.index] = baseline.record(one)
            file.write(json.dumps(records[one.index]) + "\n")
            file.flush()
    return [records[one.index] for one in cases]


def score(benchmark: PixBenchmark, records: Sequence[Record], out: Path) -> dict[str, dict[str, Any]]:
    """Writes both predictions files; {"oracle": scores, "automatic": scores}, as the benchmark scores them."""
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    masks = {
        "oracle": [select.oracle(r, one) for r, one in zip(records, benchmark.cases, strict=True)],
        "automatic": [record["automatic"] for record in records],
    }
    results = {}
    for name, chosen in masks.items():
        path = out / "predictions" / f"{name}.jsonl"
        lines = [
            Line(index=record["index"], answers=record["answers"], segmentations=[mask])
            for record, mask in zip(records, chosen, strict=True)
        ]
        write_lines(path, lines)
        results[name] = benchmark.score(in_case_order(benchmark, lines, str(path)))
    results["automatic"]["undecided_choices"] = sum(record["undecided"] for record in records)
    return results


def _continued(path: Path, made_with: dict[str, Any]) -> list[Record]:
    """What an earlier run has finished; the file then holds these lines, whole, and the manifest says `made_with`."""
    manifest = path.with_name("phrases.manifest.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []  # without a torn end
    try:
        same = json.loads(manifest.read_text()) == json.loads(json.dumps(made_with))
    except (FileNotFoundError, ValueError):
        same = False
    if rows and not same:
        print(f"{path} was made with another model or other settings; it is replaced")
        rows = []
    try:
        records = [json.loads(row) for row in rows]
        _ = [record["index"] for record in records]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path} has a line that is no record ({error}); move the file away") from None
    write_lines(path, records)
    manifest.write_text(json.dumps(made_with, indent=1) + "\n")
    return records
