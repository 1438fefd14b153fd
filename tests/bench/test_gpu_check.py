"""tools/gpu_check.py without a GPU: its stages stood in for by short scripts, and the numbers that need no GPU."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import REPOSITORY
from forked import fork
from warm import run_tool

from pixel_sail import losses
from pixel_sail.bench.gpu import kernels, parity, runner, scratch, training
from pixel_sail.bench.gpu.checks import Check, Report, read_checks
from pixel_sail.bench.gpu.clock import idle_share
from pixel_sail.bench.gpu.page import WIDTH, page, table
from pixel_sail.bench.gpu.runner import STAGES, check_gpu, run_stages
from pixel_sail.bench.step import PRESETS
from pixel_sail.config import load_config

# What the stages do here: (before their line, after it).
FAKE = """
import json, os, signal, subprocess, sys, time
stage, folder, seconds = sys.argv[1:4]
line = {"stage": stage, "check": "a number", "value": 1.0, "unit": "", "bound": "", "result": "measured", "reason": ""}
with open(f"{folder}/checks.jsonl", "a") as file:
    file.write(json.dumps(line) + "\\n")
print("the last words")
sys.stdout.flush()
if stage == "kernels":
    os.kill(os.getpid(), signal.SIGKILL)
if stage == "parity":
    raise SystemExit(3)
if stage == "speed":
    child = subprocess.Popen(["sleep", "100"])
    open(f"{folder}/pids", "w").write(f"{os.getpid()} {child.pid}")
    time.sleep(100)
"""


@pytest.fixture
def child(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "fake.py").write_text(FAKE)
    return sys.executable, "-S", str(tmp_path / "fake.py")


def alive(folder: Path) -> list[str]:
    """The processes of the stage `speed` that still run."""
    states = [Path(f"/proc/{pid}/stat") for pid in (folder / "pids").read_text().split()]
    return [state.parent.name for state in states if state.exists() and state.read_text().split()[2] != "Z"]


def test_no_stage_stops_the_next_one(
    tmp_path: Path, child: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STAGES, "speed", 1.0)
    monkeypatch.setattr(runner, "LEAST_S", 0.1)
    out = tmp_path / "out"
    run_stages(out, ["machine", "kernels", "parity", "speed", "scenes"], 8, child)
    checks = read_checks(out)
    assert [(check.stage, check.check, check.result) for check in checks] == [
        (stage, check, result)
        for stage, ended in zip(
            ("machine", "kernels", "parity", "speed", "scenes"),
            ("measured", "fail", "fail", "fail", "measured"),
            strict=True,
        )
        for check, result in (("a number", "measured"), ("the stage", ended))
    ]
    reasons = [check.reason for check in checks if check.result == "fail"]
    assert "killed by SIGKILL" in reasons[0] and "exit status 3" in reasons[1] and "the last words" in reasons[1]
    assert "it took more than 1 s" in reasons[2]
    assert alive(out) == []
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Check(**line) for line in printed] == checks  # each line, once


def test_what_has_no_time_left_is_skipped(tmp_path: Path, child: tuple[str, ...]) -> None:
    run_stages(tmp_path / "out", ["machine", "scenes"], 0.0, child)
    assert [(check.check, check.result) for check in read_checks(tmp_path / "out")] == [("the stage", "skipped")] * 2
    assert "0 s are left of 0 minutes" in read_checks(tmp_path / "out")[0].reason


def test_a_signal_ends_the_stage_and_the_table_comes(tmp_path: Path, child: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    forked = fork(lambda: check_gpu(out, ["machine", "speed"], 8, child), tmp_path / "log")
    forked.wait_for(lambda: (out / "pids").exists() and (out / "pids").read_text().count(" "))
    forked.signal_all(signal.SIGTERM)
    status, printed = forked.finish()
    assert status == 143 and f"stopped: what was measured so far is in {out}" in printed
    assert alive(out) == []
    assert "3 checks: 3 measured" in printed  # two numbers, one stage that ended
    assert "| machine | a number | 1 |" in (out / "gpu.md").read_text()


def test_a_number_keeps_its_bounds_or_fails(tmp_path: Path) -> None:
    report = Report("machine", tmp_path, 10, rehearsed=False)
    report.number("fast enough", 701.23456, "TFLOP/s", least=700)
    report.number("too slow", 699, "TFLOP/s", least=700)
    report.number("between", 1.2, least=0.9, most=1.1)
    report.number("no number", float("nan"), most=1)
    with report.part("broken"):
        raise ValueError("first line\nsecond line")
    rehearsed = Report("machine", tmp_path, 10, rehearsed=True)
    rehearsed.number("too slow", 0, least=700)
    with rehearsed.part("broken"):
        raise ValueError("also here")
    checks = read_checks(tmp_path)
    assert [check.result for check in checks] == ["pass", "fail", "fail", "fail", "fail", "rehearsed", "fail"]
    assert (checks[0].value, checks[0].bound, checks[2].bound) == (701.23, ">= 700", ">= 0.9, <= 1.1")
    assert (checks[3].value, checks[4].reason) == ("nan", "ValueError: first line")


def test_the_table_fits_100_columns_and_the_page_has_every_check() -> None:
    checks = [
        Check("scratch", "cIoU of refcoco:val after 2000 steps on the GPU, long", 35.25, "", ">= -3, <= 3", "fail"),
        Check("speed", "8 x 1024 px, eager: kernel 1", "12 % void cutlass::Kernel<" + "x" * 99, "", "", "measured"),
        Check("speed", "tokens", 123456.0, "/s", "", "measured"),
        Check("parity", "the stage", None, "", "", "fail", "killed by SIGKILL; a | b " + "long reason " * 30),
    ]  # fmt: skip
    lines = table(checks).splitlines()
    assert max(map(len, lines)) <= WIDTH == 100
    assert lines[1].split()[:2] == ["scratch", "cIoU"] and "35.25" in lines[1] and "123456.0 /s" in lines[3]
    assert lines[-1] == "4 checks: 2 fail, 2 measured"
    text = page(checks, {"command": "`x`"})
    assert text.count("| parity |") == 1 and "a \\| b" in text and max(map(len, text.splitlines())) < 400


def test_without_a_gpu_the_tool_says_so() -> None:
    status, printed = run_tool("tools/gpu_check.py")
    assert status == 1 and printed.startswith("error: ") and len(printed.splitlines()) == 1


def checked(run: Callable[[Report], None], folder: Path) -> dict[str, Check]:
    run(Report("kernels", folder, 10, rehearsed=False))
    return {check.check: check for check in read_checks(folder)}


def test_bounds_of_the_kernels_let_right_ones_pass_and_see_wrong_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDPA on the CPU in place of a GPU's kernels."""
    spans = ((0, 3, 67, 90), (90, 90, 90, 130), (130, 130, 190, 200))
    for name, value in {"DEVICE": "cpu", "SPANS": spans, "VOCABULARY": 400, "LABELS": 50}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 4000)
    monkeypatch.setattr(kernels, "_kernels", lambda: [kernels.Kernel("SDPA", "sdpa")])
    monkeypatch.setattr(kernels, "_time", lambda *_: None)
    monkeypatch.setattr(kernels, "BLOCK_GRID", (1, 2, 3))
    monkeypatch.setattr(kernels, "measure_blocks", partial(kernels.measure_blocks, backend="eager"))
    checks = checked(kernels.run, tmp_path)
    blocks = {name: checks.pop(name).result for name in list(checks) if name.startswith("mask blocks")}
    assert sorted(blocks.values()) == ["measured"] * 6 + ["pass"] * 3
    assert {name: check.result for name, check in checks.items() if check.result != "pass"} == {}
    assert len(checks) == 4 + 4 + 2 * 6 and sum("control" in name for name in checks) == 6
    assert checks["SDPA, 14/2 heads: control, image 1 token short"].value > 3 * kernels.FORWARD_ERROR


def test_bounds_of_parity_let_right_models_pass_and_see_wrong_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = replace(PRESETS["tiny"], layers=4, hidden_size=128, patch_size=8)
    for name, value in {"DEVICE": "cpu", "PRESET": preset, "SIZES_PX": ((64, 64), (32, 64))}.items():
        monkeypatch.setattr(parity, name, value)
    monkeypatch.setattr(parity, "MODES", parity.MODES[:2])
    checks = checked(parity.run, tmp_path)
    assert {name: check.result for name, check in checks.items() if check.result not in ("pass", "measured")} == {}
    assert sum("control" in name for name in checks) == 2


def test_configs_of_the_stages_that_train(tmp_path: Path) -> None:
    report = Report("training", tmp_path, 10, rehearsed=False)
    assert [training.config_of(report, stage).train.zero_stage for stage in training.STAGES] == [0, 1, 2, 3]
    config = training.config_of(report, 0)
    assert config.train.muon is None and config.data.root == tmp_path / "images"
    whole = load_config(REPOSITORY / "configs" / "scratch.yaml", [])
    assert scratch.config_of(whole.run.dir, [], scratch.STEPS).train.steps == whole.train.steps


def test_idle_share() -> None:
    assert idle_share([(0, 10), (5, 8), (20, 30), (25, 40)]) == pytest.approx(10 / 40)
    assert idle_share([(3, 4)]) == 0
