"""A page of pictures beside the numbers: expression, ground truth and prediction, right and wrong ones."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.sources.cases import Benchmark
from pixel_sail.evaluate.predictions import identity, read_lines
from pixel_sail.serve.visualize import SheetRow, contact_sheet


def write_page(benchmark: Benchmark, out: Path, count: int) -> Path:
    """`<out>/pictures/<benchmark>.png`: `count` cases, evenly spread and so not chosen by how good they are."""
    lines = {identity(line): line for line in read_lines(out / "predictions" / f"{benchmark.name}.jsonl")}
    step = max(1, len(benchmark.cases) // count)
    rows = []
    for case in benchmark.cases[::step][:count]:
        found = lines[identity(case)]["segmentation"]
        rows.append(
            SheetRow(
                image=load_image(case.image),
                title=case.sentence,
                truth=None if case.mask is None else decode_mask(case.mask),
                prediction=None if found is None else decode_mask(found),
            )
        )
    path = out / "pictures" / f"{benchmark.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(path)
    return path
