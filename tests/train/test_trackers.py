"""What a run shows while it trains: a banner, curves, images of validation, TensorBoard."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import write_refer_dataset
from PIL import Image
from test_wandb import Wandb
from tiny_run import forget_second_half, log_lines, tiny_config

from pixel_sail.train.curves import CURVES, _scores, _smoothed, _training, draw_curves
from pixel_sail.train.loop import train


def test_a_run_says_what_it_is_before_its_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_refer_dataset(tmp_path / "root")
    train(tiny_config(tmp_path, root))
    printed = capsys.readouterr().out
    model, data, machine = (
        next(line for line in printed.splitlines() if line.startswith(f"{name}: "))
        for name in ("model", "data", "machine")
    )
    assert printed.index(model) < printed.index("step 1/")
    assert "million trained" in model and "masks at stride" in model
    assert re.search(r"\d samples of 2 sources; 4 steps of 6, in passes of up to 4,096 tokens", data)
    assert "1 process(es) (CPU" in machine and "fp32, attention by sdpa, ZeRO stage 0" in machine


def test_curves_are_those_of_the_log(tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    train(tiny_config(tmp_path, root, "train.steps=10", "evaluate.benchmarks=[refcoco:val]", "evaluate.every=5"))
    run = tmp_path / "run"
    with Image.open(run / CURVES) as image:
        assert image.format == "PNG" and image.width > 300
    curves, lines = _training(run / "log.jsonl"), log_lines(run)
    assert {"loss", "lm", "bce", "dice", "lr", "grad_norm"} <= set(curves) and "step_ms" not in curves
    assert curves["loss"] == [(line["step"], line["loss"]) for line in lines]
    assert [step for step, _ in _scores(run / "validation.jsonl")["refcoco:val: ciou"]] == [5, 10]
    assert (run / "validation" / "step_00000010" / "gallery" / "refcoco_val.png").is_file()


def test_a_run_killed_while_it_draws_has_its_curves_after_the_same_command(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, write_refer_dataset(tmp_path / "root"), "train.steps=10")
    train(config)
    drawn = tmp_path / "run" / CURVES
    whole, partial = drawn.read_bytes(), drawn.with_name(f"{CURVES}.partial")
    drawn.unlink()
    train(config)
    assert drawn.read_bytes() == whole
    partial.write_bytes(whole[:100])
    train(config)
    assert drawn.read_bytes() == whole and not partial.exists()
    drawn.write_bytes(b"of an earlier step")
    os.utime(drawn, (1, 1))
    train(config)
    assert drawn.read_bytes() == whole
    at = drawn.stat().st_mtime_ns
    train(config)
    assert drawn.stat().st_mtime_ns == at  # nothing to do


def test_no_curves_of_a_short_log_and_the_mean_of_neighbours(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {i}, "loss": 1.0}}\n' for i in range(9)))
    assert draw_curves(tmp_path) is None and not (tmp_path / CURVES).exists()
    assert _smoothed(tuple(range(20)))[4:16] == list(range(4, 16)) and _smoothed((1.0, 3.0)) == [2.0, 2.0]


def test_curves_of_files_that_somebody_has_edited(tmp_path: Path) -> None:
    lines = [f'{{"step": {i}, "loss": 1.0, "lr": "high", "dice": [1]}}\n' for i in range(12)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    values = ("", ', "benchmarks": 3', ', "benchmarks": {"refcoco:val": null}', ', "benchmarks": {"a": {"ciou": "x"}}')
    (tmp_path / "validation.jsonl").write_text("".join(f'{{"step": 1{value}}}\n' for value in values))
    assert draw_curves(tmp_path) is not None
    assert set(_training(tmp_path / "log.jsonl")) == {"loss"} and _scores(tmp_path / "validation.jsonl") == {}


def test_images_of_validation_reach_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    root = write_refer_dataset(tmp_path / "root")
    train(tiny_config(tmp_path, root, "run.wandb_project=mine", "evaluate.benchmarks=[refcoco:val]"))
    (images,) = [values for _, values in wandb.points if "refcoco:val" in values]
    assert Path(images["refcoco:val"]).name == "refcoco_val.png"
    assert any("refcoco:val/ciou" in values for _, values in wandb.points)


def test_tensorboard_has_the_points_of_the_log_over_a_resume(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("needs tensorboard (pip install tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = write_refer_dataset(tmp_path / "root")
    config = tiny_config(
        tmp_path,
        root,
        "run.tensorboard=true",
        "run.log_every=1",
        "train.save_every=2",
        "evaluate.benchmarks=[refcoco:val]",
    )
    train(config)
    forget_second_half(tmp_path / "run")
    train(config)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == [(line["step"], pytest.approx(line["loss"])) for line in log_lines(tmp_path / "run")]
    assert events.Tags()["images"] == ["refcoco:val"]


def test_a_missing_tensorboard_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tiny_config(tmp_path, write_refer_dataset(tmp_path / "root"), "run.tensorboard=true"))
    assert "TensorBoard has failed, and the run goes on without it" in capsys.readouterr().out
