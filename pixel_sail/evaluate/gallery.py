"""A page of images beside the numbers: what was asked, ground truth and prediction, right and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, unite
from pixel_sail.data.sources.cases import Case
from pixel_sail.data.sources.perbench import PerbenchCase
from pixel_sail.evaluate.benchmark import Benchmark, Line, identity
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.evaluate.region import AboutRegions
from pixel_sail.serve.visualize import Card, SheetRow, cards, contact_sheet, mark_regions, paint
from pixel_sail.types import RLE


def write_page(benchmark: Benchmark, out: Path, count: int) -> Path:
    """`<out>/gallery/<benchmark>.png`: `count` cases, evenly spread and so not chosen by how good they are."""
    lines = {identity(line, benchmark): line for line in _predicted(benchmark, out)}
    step = max(1, len(benchmark.cases) // count)
    chosen = [(case, lines[identity(case, benchmark)]) for case in benchmark.cases[::step][:count]]
    path = out / "gallery" / f"{benchmark.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with_masks = "segmentation" in benchmark.answer_fields or isinstance(benchmark, PixBenchmark)
    page = contact_sheet([_row(*one) for one in chosen]) if with_masks else cards([_card(*one) for one in chosen])
    page.save(path)
    return path


def _predicted(benchmark: Benchmark, out: Path) -> list[Line]:
    return read_lines(out / "predictions" / f"{benchmark.name}.jsonl", benchmark)


def _row(case: Case | PerbenchCase | PixObject, line: Line) -> SheetRow:
    image = load_image(case.image)
    if isinstance(case, PixObject):
        title = f"{case.expression}; {case.question} {'; '.join(line['answers'][:1])}"
        return SheetRow(image, title, _mask(case.mask_rle), _mask(next(iter(line["segmentations"]), None)))
    if isinstance(case, PerbenchCase):
        truth: RLE | None = unite(case.reference, case.size_hw)
        image, title = _prompted(image, case.prompts), case.question
    else:
        truth, title = case.mask, case.sentence
    return SheetRow(image, title, _mask(truth), _mask(line["segmentation"]))


def _card(case: AboutRegions, line: Line) -> Card:
    """The prompted image, with the masks of the answer, beside question, answer and what is right."""
    image = _prompted(load_image(case.image), case.prompts)
    image = paint(image, [decode_mask(rle) for rle in line.get("segmentations", ())])
    return Card(image, (case.question, f"model: {line['text']}", f"right: {case.reply}"))


def _prompted(image: Image.Image, prompts: Mapping[int, RLE]) -> Image.Image:
    return mark_regions(image, {k: decode_mask(rle) for k, rle in prompts.items()})


def _mask(rle: RLE | None) -> np.ndarray | None:
    return None if rle is None else decode_mask(rle)
