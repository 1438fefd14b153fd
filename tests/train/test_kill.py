"""kill -9 at any moment loses nothing that was saved, and the resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from conftest import write_refer_dataset
from tiny_run import assert_same_bits, run_cli, write_config
from warm import start_tool

OVERRIDES = ("train.steps=18", "train.save_every=3", "data.workers=2", "train.keep_checkpoints=2")
TIMEOUT_S = 60


def kill_when(config: Path, overrides: tuple[str, ...], moment: Callable[[], bool]) -> None:
    """Starts a run and kills it with SIGKILL as soon as `moment()` is true. Fails when the run ends before."""
    run = start_tool("tools/train.py", config, *overrides)
    (process,) = run.ranks
    deadline = time.monotonic() + TIMEOUT_S
    while not moment() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    run.kill()
    status, output = run.finish()
    assert status == -signal.SIGKILL, f"the run ended by itself:\n{output}"


def test_killed_runs_equal_an_uninterrupted_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, write_refer_dataset(tmp_path / "root"))
    status, output = run_cli(config, f"run.dir={tmp_path / 'straight'}", *OVERRIDES)
    assert status == 0, output

    run = tmp_path / "killed"
    overrides = (f"run.dir={run}", *OVERRIDES)
    lines = random.Random().randint(1, 6)

    def logged_enough() -> bool:
        return (run / "log.jsonl").exists() and len((run / "log.jsonl").read_bytes().splitlines()) >= lines

    def saving_later() -> bool:
        return any(path.parent.name >= "step_00000009" for path in (run / "checkpoints").glob("*.partial/engine"))

    def exporting_or_late() -> bool:
        return (run / "export.partial").exists() or (run / "checkpoints" / "step_00000015").exists()

    for moment in (logged_enough, saving_later, exporting_or_late):
        kill_when(config, overrides, moment)
        assert not (run / "export").exists()
    status, output = run_cli(config, *overrides)
    assert status == 0 and "going on from step_" in output, output
    assert_same_bits(tmp_path / "straight", run)
    assert list(run.rglob("*.partial")) == []
