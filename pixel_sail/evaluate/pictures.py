"""A page of pictures beside the numbers: what was asked, ground truth and prediction, right and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, unite
from pixel_sail.data.sources.cases import Case
from pixel_sail.data.sources.perbench import PerbenchCase
from pixel_sail.evaluate.benchmark import Benchmark, Line, identity
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.serve.visualize import Card, SheetRow, cards, contact_sheet, mark_regions
from pixel_sail.types import RLE


def write_page(benchmark: Benchmark, out: Path, count: int) -> Path:
    """`<out>/pictures/<benchmark>.png`: `count` cases, evenly spread and so not chosen by how good they are."""
    lines = {identity(line, benchmark): line for line in read_lines(out / "predictions" / f"{benchmark.name}.jsonl")}
    step = max(1, len(benchmark.cases) // count)
    chosen = [(case, lines[identity(case, benchmark)]) for case in benchmark.cases[::step][:count]]
    path = out / "pictures" / f"{benchmark.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with_masks = "segmentation" in benchmark.answer_fields
    page = contact_sheet([_row(*one) for one in chosen]) if with_masks else cards([_card(*one) for one in chosen])
    page.save(path)
    return path


def _row(case: Case | PerbenchCase, line: Line) -> SheetRow:
    image = load_image(case.image)
    if isinstance(case, PerbenchCase):
        truth: RLE | None = unite(case.reference, case.size_hw)
        image, title = _prompted(image, case.prompts), case.question
    else:
        truth, title = case.mask, case.sentence
    return SheetRow(image, title, _mask(truth), _mask(line["segmentation"]))


def _card(case: Any, line: Line) -> Card:
    """The prompted picture beside question, answer and what is right."""
    if isinstance(case, PerbenchCase):
        prompts, asked, right = case.prompts, case.question, case.reply
    else:
        prompts, asked, right = {0: case.region}, "", " / ".join(case.references)
    image = _prompted(load_image(case.image), prompts)
    return Card(image, tuple(text for text in (asked, f"model: {line['text']}", f"right: {right}") if text))


def _prompted(image: Image.Image, prompts: dict[int, RLE]) -> Image.Image:
    return mark_regions(image, {k: decode_mask(rle) for k, rle in prompts.items()})


def _mask(rle: RLE | None) -> np.ndarray | None:
    return None if rle is None else decode_mask(rle)
