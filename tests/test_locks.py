"""Locks: one owner, named; gone with its process; nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixel_sail.locks import Busy, lock_beside, locked

HOLD = """
import sys, time
from pathlib import Path
from pixel_sail.locks import locked
with locked(Path(sys.argv[1]), "the run a"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen:
    """A process that holds the lock."""
    owner = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    return owner


def test_the_second_process_is_refused_and_the_owner_named(tmp_path: Path) -> None:
    owner = hold(tmp_path / ".lock")
    try:
        with pytest.raises(Busy, match=f"the run a is in use by process {owner.pid} on"), \
                locked(tmp_path / ".lock", "the run a"):  # fmt: skip
            pass
    finally:
        owner.kill()
        owner.wait()


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    owner = hold(tmp_path / ".lock")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / ".lock").exists()  # what the killed process left
    with locked(tmp_path / ".lock", "the run a"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_process_is_refused_too_and_keeps_its_lock(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "the run a"):
        with pytest.raises(Busy), locked(tmp_path / ".lock", "the run a"):
            pass
        assert (tmp_path / ".lock").exists()


def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    code = HOLD.replace("time.sleep(60)", "import os\n    if os.fork(): os._exit(0)\n    time.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", code, tmp_path / ".lock"], stdout=subprocess.PIPE, text=True,
                             start_new_session=True)  # fmt: skip
    assert owner.stdout.readline() == "held\n"
    assert owner.wait() == 0
    with locked(tmp_path / ".lock", "the run a"):
        pass
    os.killpg(owner.pid, signal.SIGKILL)


def test_beside_a_folder(tmp_path: Path) -> None:
    assert lock_beside(tmp_path / "scenes") == tmp_path / ".scenes.lock"
