"""What ranks tell each other at the start of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import packed
import pytest
from tiny_run import tiny_config

from pixel_sail.data.loader import StepData
from pixel_sail.train import distributed
from pixel_sail.train.log import console_line
from pixel_sail.train.step import StepTotals, TrainingStopped, gather_totals

BATCH = packed.pack([packed.only_text(0, 4)])


def share(passes: int, dealt_by: int = 7, unsized: tuple[str, ...] = ()) -> StepData:
    return StepData(4, (BATCH,) * passes, BATCH, passes, (), dealt_by, unsized)


def totals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shares: list[StepData]) -> StepTotals:
    """What rank 0 makes of the shares of all ranks."""
    config, sent = tiny_config(tmp_path, tmp_path), []
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "all_gather_numbers", lambda values: sent.append(values) or [values])
        for one in shares:
            gather_totals(one, config)
        patch.setattr(distributed, "all_gather_numbers", lambda values: sent)
        patch.setattr(distributed, "all_gather_objects", lambda value: [one.unsized for one in shares])
        return gather_totals(shares[0], config)


def test_filler_passes_are_counted(monkeypatch, tmp_path: Path) -> None:
    counted = totals(monkeypatch, tmp_path, [share(3), share(1), share(0), share(2)])
    assert (counted.micro_batches, counted.filler_passes, counted.samples) == (3, 6, 6)
    assert totals(monkeypatch, tmp_path, [share(2), share(2)]).filler_passes == 0
    nothing = totals(monkeypatch, tmp_path, [share(0), share(0)])
    assert (nothing.micro_batches, nothing.filler_passes) == (1, 0)


def test_fillers_are_on_the_console_where_there_are_any() -> None:
    values = {"step": 1, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "bad_samples": 0, "filler_passes": 0}
    clock = {"data_ms": 1.0, "step_ms": 1.0, "tokens_per_s": 1.0, "memory_gib": 1.0}
    assert "filler" not in console_line(values, clock, 2)
    assert "  fillers 3  " in console_line(values | {"filler_passes": 3}, clock, 2)


def test_ranks_that_see_other_images_stop_together(monkeypatch, tmp_path: Path) -> None:
    """Each would leave samples to the other, or both would take them."""
    lost = replace(share(1, dealt_by=8), unsized=("refcoco/image=11: cannot decode the image /data/11.jpg",))
    with pytest.raises(TrainingStopped, match=r"ranks 0 to 2 do not see the same data in step 5.*rank 1: .*11\.jpg"):
        totals(monkeypatch, tmp_path, [share(1), lost, share(1)])
    with pytest.raises(TrainingStopped, match="ranks 8 to 9 .*every image"):
        totals(monkeypatch, tmp_path, [share(1)] * 9 + [share(1, dealt_by=8)])
    groups = [share(1)] * 8 + [share(1, dealt_by=8)] * 2  # of two machines, with samples of their own
    assert totals(monkeypatch, tmp_path, groups).samples == 10
