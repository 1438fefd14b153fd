"""Tools called by tools: the signal once, in order; and an ablation that stops with their message."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import fork
from test_ablate import PLAIN, UPSAMPLING, write

from pixel_sail.commands.work.ablate import run_all
from pixel_sail.errors import FileError
from pixel_sail.studies.ablation import runs
from pixel_sail.studies.ablation.plan import load_plan
from pixel_sail.studies.ablation.runs import RunFailed, execute, finished_scores
from pixel_sail.studies.tool_process import run_tool

# Stops as our tools do, and counts its signals.
TOOL = """
import pathlib, signal, sys, time
here, stopped = pathlib.Path(sys.argv[0]).parent, []
def stop(number, frame):
    stopped.append(number)
    with open(here / "signals", "a") as file: print(number, file=file)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): signal.signal(number, stop)
(here / "started").touch()
while not stopped: time.sleep(0.01)
time.sleep(0.3)
sys.exit(print("stopped: at step 7 of 9; the same command goes on") or 143)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_ablation_stops_with_the_message_of_its_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """To the whole group, as Ctrl-C in a terminal, and twice, as a launcher does."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/train.py").write_text(TOOL)
    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    path = write(tmp_path, tmp_path / "root", seeds=[0])
    started = fork(lambda: run_all(load_plan(path), load_plan(path)), tmp_path / "log")
    started.wait_for((tmp_path / "tools/started").exists)
    started.signal_all(number)
    started.signal_all(number)
    status, printed = started.finish()
    assert status == (130 if number == signal.SIGINT else 143)
    *_, before, last = printed.splitlines()
    assert before.endswith(f"{signal.Signals(number).name}: finishing the tool in hand first")
    assert last == (
        "stopped: plain, seed 0, tools/train.py: at step 7 of 9; 0 of 2 runs are finished; the same command goes on"
    )
    assert (tmp_path / "tools/signals").read_text() == f"{number:d}\n"
    assert execute_lock_is_free(tmp_path / "out/plain/seed_0/lock")


def execute_lock_is_free(path: Path) -> bool:
    with runs._locked(path, wait=False) as lock:
        return lock is not None


def test_a_second_interrupt_kills_the_tool_and_its_processes(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import os, pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nos.fork()\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\ntime.sleep(60)\n"
    )
    started = fork(lambda: run_tool([sys.executable, str(script)]), tmp_path / "log")
    started.wait_for(lambda: len(list(tmp_path.glob("[0-9]*"))) == 2)
    started.signal_all(signal.SIGINT)
    time.sleep(1.2)
    started.signal_all(signal.SIGINT)
    assert started.finish()[0] == 130
    for path in tmp_path.glob("[0-9]*"):
        state = Path(f"/proc/{path.name}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


DAMAGED = ["", "<html>", "[]", "{}", '{"max_images": null, "benchmarks": {"refcoco:val": 3}}', "[" * 10**5]


@pytest.mark.parametrize("text", [*DAMAGED, '{"max_images": null, "benchmarks": {"refcoco:val": {"ciou": NaN}}}'])
def test_damaged_scores_are_named(tmp_path: Path, text: str) -> None:
    plan = load_plan(write(tmp_path, tmp_path / "root", seeds=[3], variants=[PLAIN]))
    (run,) = plan.runs
    run.folder.mkdir(parents=True)
    (run.folder / "scores.json").write_text(text)
    with pytest.raises(FileError, match=r"seed_3/scores\.json"):
        finished_scores(run, plan.config)
    (run.folder / "scores.json").unlink()
    os.symlink("/nowhere/at/all", run.folder / "scores.json")
    with pytest.raises(FileError, match=r"seed_3/scores\.json"):
        finished_scores(run, plan.config)


def test_a_tool_that_writes_no_scores_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan(write(tmp_path, tmp_path / "root", seeds=[3], variants=[PLAIN]))
    (run,) = plan.runs
    (run.config.run.dir / "export").mkdir(parents=True)
    (run.folder / "scores").mkdir()
    (run.folder / "scores/metrics.json").write_text('{"benchmarks": {}}')
    monkeypatch.setattr(runs, "run_tool", lambda *arguments: 0)
    with pytest.raises(RunFailed, match="metrics.json does not have all scores"):
        execute(run, plan.config, wait=False)


def test_damaged_environments_and_changed_data(tmp_path: Path) -> None:
    from test_ablation import finish

    from pixel_sail.studies.ablation.table import markdown, results_of

    plan = load_plan(
        write(tmp_path, tmp_path / "root", seeds=[0], variants=[PLAIN, UPSAMPLING], benchmarks=["refcoco:val"])
    )
    finish(plan, lambda variant, seed: 1.0)
    assert results_of(plan).other_data == ()
    for number, run in enumerate(plan.runs):
        checkpoint = run.config.run.dir / "checkpoints/step_00000002"
        checkpoint.mkdir(parents=True)
        state = {"step": 2, "bad_samples": 0, "world_size": 1, "data": [{"samples": number}]}
        state["config"] = {"train": {"zero_stage": 0}}
        (checkpoint / "state.json").write_text(json.dumps(state))
    assert results_of(plan).other_data == ("upsampling, seed 0",)
    assert "**The data changed before these runs:** upsampling, seed 0." in markdown(results_of(plan))
    path = plan.runs[0].config.run.dir / "environment.json"
    for content in (b"\xdb\x00", b"[]", b'{"commit": 3}'):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"environment\.json"):
            results_of(plan)
