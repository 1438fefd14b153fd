"""Signals stop a run after the step in hand, which is saved; the same command goes on. What is killed ends the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, write_refer_dataset
from tiny_run import assert_same_bits, run_cli, write_config
from warm import Started, start_tool

LONG = ("train.steps=100000", "train.save_every=100000", "run.log_every=1")
WAIT_S = 60


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    return write_config(folder, write_refer_dataset(folder / "root"))


def wait_until(moment: Callable[[], bool], run: Started | None = None) -> None:
    deadline = time.monotonic() + WAIT_S
    while not moment():
        alive = run is None or all(process.is_alive() for process in run.ranks)
        assert alive and time.monotonic() < deadline, run.finish() if run is not None else "nothing happened"
        time.sleep(0.01)


def training(config: Path, run_dir: Path, *overrides: str, processes: int = 1) -> Started:
    """A run that has logged a step or more."""
    run = start_tool("tools/train.py", config, f"run.dir={run_dir}", *LONG, *overrides, processes=processes)
    wait_until(lambda: (run_dir / "log.jsonl").exists() and (run_dir / "log.jsonl").stat().st_size > 0, run)
    return run


def statuses(run: Started) -> tuple[list[int], str]:
    _, output = run.finish()
    return [process.exitcode for process in run.ranks], output


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)], ids=lambda x: str(int(x))
)
def test_a_signal_to_one_rank_stops_all_after_a_saved_step(
    tmp_path: Path, config: Path, number: signal.Signals, status: int
) -> None:
    run = training(config, tmp_path / "run", "data.workers=1", processes=2)
    children = psutil.Process(run.ranks[1].pid).children()
    assert len(children) == 1
    for process in (children[0].pid, run.ranks[1].pid):  # a terminal and Slurm signal the workers too
        os.kill(process, number)
    ends, output = statuses(run)
    assert ends == [status, status], output
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))
    assert output.count(f"stopped at step {step}; the same command goes on") == 1, output
    assert "Traceback" not in output and "ignored" not in output
    assert not children[0].is_running()
    assert not (tmp_path / "run/.lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_another_is_stopped_at_once(config: Path, number: signal.Signals) -> None:
    run = start_tool("tools/train.py", config, processes=2)
    run.ranks[0].kill()  # before they meet
    time.sleep(2.5)
    os.kill(run.ranks[1].pid, number)
    stopped = time.monotonic()
    ends, output = statuses(run)
    assert time.monotonic() - stopped < 30 and ends[1] in (-number, 1, 128 + number), (ends, output)
    assert "Traceback (most" not in output


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, config: Path) -> None:
    overrides = ("train.steps=12", "train.save_every=100", "train.lr=1e-3")
    run = start_tool("tools/train.py", config, f"run.dir={tmp_path / 'cut'}", *overrides)
    wait_until(lambda: (tmp_path / "cut/log.jsonl").exists(), run)
    run.ranks[0].terminate()
    status, output = run.finish()
    assert status == 143, output
    status, output = run_cli(config, f"run.dir={tmp_path / 'cut'}", *overrides)
    assert status == 0 and "going on from step_" in output, output
    run_cli(config, f"run.dir={tmp_path / 'straight'}", *overrides)
    assert_same_bits(tmp_path / "cut", tmp_path / "straight")


def test_a_killed_run_leaves_no_workers(tmp_path: Path, config: Path) -> None:
    run = training(config, tmp_path / "run", "data.workers=2")
    workers = psutil.Process(run.ranks[0].pid).children()
    assert len(workers) == 2
    run.kill()
    gone, alive = psutil.wait_procs(workers, timeout=4)
    run.finish()
    assert len(gone) == 2, alive


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_worker_is_one_message(tmp_path: Path, config: Path, processes: int) -> None:
    run = training(config, tmp_path / "run", "data.workers=2", processes=processes)
    psutil.Process(run.ranks[-1].pid).children()[0].kill()
    ends, output = statuses(run)
    assert ends == [1] * processes
    assert output.count("was killed: SIGKILL. Most often memory is used up") == 1 and "/dev/shm" in output, output
    assert "Traceback" not in output and ("error: rank 1: a data worker" in output) == (processes == 2), output


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_other(tmp_path: Path, config: Path, lost: int) -> None:
    run = training(config, tmp_path / "run", processes=2)
    killed = time.monotonic()
    run.ranks[lost].kill()
    ends, output = statuses(run)
    assert time.monotonic() - killed < 60
    assert ends[1 - lost] == 1 and ends[lost] == -signal.SIGKILL
    assert output.count(f"error: rank {lost} is gone") == 1 and "Traceback" not in output, output


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, config: Path, processes: int) -> None:
    run = training(config, tmp_path / "run")
    before = (tmp_path / "run/config.yaml").stat().st_mtime_ns
    status, output = run_cli(config, f"run.dir={tmp_path / 'run'}", processes=processes)
    assert status == 1 and output.count("error: ") == 1, output
    assert f"the run {tmp_path / 'run'} is in use by process {run.ranks[0].pid} on" in output
    assert (tmp_path / "run/config.yaml").stat().st_mtime_ns == before
    run.ranks[0].terminate()
    assert run.finish()[0] == 143


# As `deepspeed` starts a process that starts the ranks; the middle one is recognized by its command.
LAUNCHER = """
import subprocess, sys
middle = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", middle, sys.argv[1], "-m", "deepspeed.launcher.launch"])
"""
RANK = f"""
import os, signal, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from pixel_sail.train import launcher
launcher.CHECK_S = 0.05
def stop(number, frame):
    print("stopped", flush=True)
    os._exit(143)
signal.signal(signal.SIGTERM, stop)
launcher.watch_launcher()
print(os.getpid(), os.getppid(), flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("which", ["outer", "middle"])
def test_a_rank_whose_launcher_is_gone_stops(which: str) -> None:
    """SIGTERM to `deepspeed` ends only its first process: the second one never hears of the signal."""
    outer = subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK], stdout=subprocess.PIPE, text=True)
    rank, middle = map(int, outer.stdout.readline().split())
    os.kill(outer.pid if which == "outer" else middle, signal.SIGTERM)
    try:
        assert outer.stdout.readline() == "stopped\n"
    finally:
        if psutil.pid_exists(rank):
            os.kill(rank, signal.SIGKILL)
        outer.wait()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "override, message",
    [
        ("data.root=/nowhere", "/nowhere"),
        ("train.init_from=/nowhere", "/nowhere"),
        ("train.batchsize=2", "unknown key"),
        ("run.dir=/dev/null/run", "/dev/null"),
        ("model.scratch=null model.base=/nowhere", "/nowhere"),
        ("evaluate.benchmarks=[refcoco:test]", "evaluate.benchmarks: "),
    ],
)
def test_an_error_before_the_first_step_is_one_message(
    tmp_path: Path, config: Path, override: str, message: str, processes: int
) -> None:
    overrides = (f"run.dir={tmp_path / 'run'}", *override.split())
    status, output = run_cli(config, *overrides, processes=processes)
    assert status == 1
    assert output.count("error: ") == 1 and message in output and "Traceback" not in output, output
    assert not (tmp_path / "run/log.jsonl").exists()
