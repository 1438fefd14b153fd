"""Scoring during training loses nothing that was trained: it is checked before, comes after a save, and may fail."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import write_refer_dataset
from tiny_run import log_lines, run_cli, tiny_config, write_config

from pixel_sail.config import ConfigError
from pixel_sail.durable import read_json_lines
from pixel_sail.evaluate import perbench
from pixel_sail.evaluate.referring import ReferringBenchmark
from pixel_sail.interrupts import Stopped
from pixel_sail.train import loop, validate
from pixel_sail.train.build import build_model
from pixel_sail.train.loop import train

VALIDATED = ("evaluate.benchmarks=[refcoco:val, grefcoco:val]", "evaluate.every=2", "evaluate.max_images=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_refer_dataset(tmp_path / "root")


@pytest.mark.parametrize(
    "name, message",
    [
        ("refcoco:nosplit", "nosplit"),
        ("recoco:val", "unknown benchmark 'recoco:val'"),
        ("perbench", "perbench"),
        ("region_caption:refcocog", "refcocog"),
    ],
)
def test_a_benchmark_that_cannot_be_opened_is_found_before_the_model_is_built(
    tmp_path: Path, root: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixel_sail.train.setup.build_model", lambda *_: pytest.fail("too late"))
    with pytest.raises(ConfigError, match="evaluate.benchmarks: ") as caught:
        train(tiny_config(tmp_path, root, f"evaluate.benchmarks=[{name}]"))
    assert message in str(caught.value)
    assert not (tmp_path / "run/log.jsonl").exists()


def test_a_name_stands_for_its_tasks_and_their_overall_score(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(validate, "open_benchmark", lambda name, *_: opened.append(name))
    benchmarks = validate.open_benchmarks(tiny_config(tmp_path, root, "evaluate.benchmarks=[perbench, perbench:mcq]"))
    assert opened == list(benchmarks) == list(perbench.TASKS)
    scores = dict.fromkeys(perbench.TASKS, dict.fromkeys(("meteor", "accuracy", "ciou", "giou", "meteor_coco"), 30.0))
    scores = {
        name: values | {"accuracy_option": 1.0, "ciou_union": 1.0, "giou_union": 1.0} for name, values in scores.items()
    }
    monkeypatch.setattr(validate, "run_benchmark", lambda predictor, benchmark, *_: scores[benchmark])
    monkeypatch.setattr(validate, "_predictor", lambda *_: None)
    monkeypatch.setattr(validate, "_gallery", lambda *_: {})
    config = tiny_config(tmp_path, root)
    result, errors, _ = validate.validate(_Engine(), None, config, {name: name for name in perbench.TASKS}, 4)
    assert result[perbench.KIND]["overall"] == pytest.approx(30.0) and errors == {}


@pytest.mark.parametrize(
    "device, precision, stage, autocast",
    [
        ("cuda", "bf16", 0, True),
        ("cuda", "fp32", 0, False),
        ("cuda", "bf16", 2, False),  # the weights are bf16
        ("cpu", "bf16", 0, False),  # as tools/test.py on a CPU
    ],
)
def test_scores_are_those_of_the_precision_of_the_tools(
    tmp_path: Path, root: Path, device: str, precision: str, stage: int, autocast: bool
) -> None:
    config = tiny_config(tmp_path, root, f"train.precision={precision}", f"train.zero_stage={stage}")
    model, tokenizer = build_model(config)
    engine = SimpleNamespace(model=model, device=torch.device(device), stage=stage)
    assert validate._predictor(engine, tokenizer, config).autocast == autocast


class _Engine:
    class model:  # noqa: N801
        eval = train = staticmethod(lambda: None)


def test_a_failure_of_scoring_is_reported_and_training_goes_on(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def score(self: ReferringBenchmark, lines: list) -> dict[str, Any]:
        if self.name == "refcoco:val":
            raise errors.pop(0)
        return scored(self, lines)

    errors = [OSError(28, "No space left on device", "/tmp/x"), ZeroDivisionError("a bug")]
    messages = ["/tmp/x: No space left on device", "ZeroDivisionError: a bug"]
    scored = ReferringBenchmark.score
    monkeypatch.setattr(ReferringBenchmark, "score", score)
    train(tiny_config(tmp_path, root, *VALIDATED))
    lines = read_json_lines(tmp_path / "run/validation.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    printed = capsys.readouterr()
    for line, message in zip(lines, messages, strict=True):
        assert list(line["benchmarks"]) == ["grefcoco:val"] and message in line["errors"]["refcoco:val"]
        assert f"step {line['step']}/4  refcoco:val  not scored: {message}" in printed.out
    assert f"refcoco:val was not scored at the end: {messages[1]}" in printed.out
    assert printed.err.count("Traceback") == 1  # of the bug
    assert (tmp_path / "run/export/config.json").exists()


def test_what_one_rank_cannot_predict_stops_no_rank(tmp_path: Path, root: Path) -> None:
    """The second of two validation images is cut short: only rank 1 meets it."""
    images = sorted((root / "images/train2014").iterdir())
    images[4].write_bytes(images[4].read_bytes()[:150])
    status, output = run_cli(write_config(tmp_path, root), *VALIDATED, processes=2)
    assert status == 0 and "Traceback" not in output, output
    lines = read_json_lines(tmp_path / "run/validation.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert set(line["errors"]) == {"refcoco:val", "grefcoco:val"}
        assert all(m.startswith("rank 1: ") and images[4].name in m for m in line["errors"].values())


def interrupted(step: int, first: Callable[[], None]) -> Callable[..., Any]:
    """`validate` that a signal interrupts after `step` steps."""

    def run(*arguments: Any) -> Any:
        if arguments[-1] == step:
            first()
            raise Stopped(signal.SIGTERM)
        return original(*arguments)

    original = loop.validate
    return run


@pytest.mark.parametrize("step", [2, 4])
def test_an_interrupted_validation_is_made_up_for(
    tmp_path: Path, root: Path, step: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It comes after the save, and at the end after the export too. The lines of a run without a stop are the same."""
    config = tiny_config(tmp_path, root, *VALIDATED)

    def already_safe() -> None:
        assert (tmp_path / f"run/checkpoints/step_{step:08d}/state.json").exists()
        assert (tmp_path / "run/export/config.json").exists() == (step == 4)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "validate", interrupted(step, already_safe))
        with pytest.raises(Stopped, match=f"stopped at step {step}; the same command goes on"):
            train(config)
    assert len(log_lines(tmp_path / "run")) == step
    train(config)
    assert [line["step"] for line in read_json_lines(tmp_path / "run/validation.jsonl")] == [2, 4]
    capsys.readouterr()
    before = (tmp_path / "run/validation.jsonl").stat().st_mtime_ns
    train(config)
    assert "is finished: 4 steps" in capsys.readouterr().out
    assert (tmp_path / "run/validation.jsonl").stat().st_mtime_ns == before
    (tmp_path / "straight").mkdir()
    train(tiny_config(tmp_path / "straight", root, *VALIDATED))
    assert log_lines(tmp_path / "straight/run") == log_lines(tmp_path / "run")
    lines = [read_json_lines(folder / "run/validation.jsonl") for folder in (tmp_path / "straight", tmp_path)]
    assert lines[0] == lines[1]
