"""A rank that is gone ends the others within seconds, whatever they do meanwhile; one that has ended well does not."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

# A rank without torch: rank 0's object goes through a file, and rank 0 waits for ever like a collective does.
RANK = """
import os, pickle, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pixel_sail.train import peers
peers.GRACE_S = 0.3
peers.CHECK_S = 0.1
folder, rank, world = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": str(rank)}
def broadcast(value):
    box = folder / "box"
    if rank == 0:
        box.with_suffix(".new").write_bytes(pickle.dumps(value))
        box.with_suffix(".new").rename(box)
        return value
    while not box.exists():
        time.sleep(0.01)
    return pickle.loads(box.read_bytes())
mine = peers.connect(rank, world, broadcast)
print("connected", flush=True)
command = sys.stdin.readline().strip()
if command == "bye":
    mine.leave(failed=False)
elif command == "fail":
    mine.leave(failed=True)
    sys.exit("error: my own message")
elif command == "work":
    sum(i * i for i in range(10**12))
"""


def start_rank(folder: Path, rank: int, world: int) -> subprocess.Popen:
    """Takes one command when it is connected: bye, fail, or work for ever."""
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(REPOSITORY), str(folder), str(rank), str(world)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start(folder: Path, world: int) -> list[subprocess.Popen]:
    ranks = [start_rank(folder, rank, world) for rank in range(world)]
    assert [rank.stdout.readline() for rank in ranks] == ["connected\n"] * world
    return ranks


def tell(rank: subprocess.Popen, command: str) -> None:
    rank.stdin.write(command + "\n")
    rank.stdin.flush()


def end_of(rank: subprocess.Popen) -> tuple[int, str]:
    try:
        return rank.wait(10), rank.stderr.read()
    finally:
        rank.kill()


@pytest.mark.parametrize("lost", [0, 2])
def test_a_killed_rank_ends_those_that_compute(tmp_path: Path, lost: int) -> None:
    ranks = start(tmp_path, 3)
    for rank in ranks:
        tell(rank, "work")
    time.sleep(0.2)
    ranks[lost].kill()
    ends = [end_of(rank) for number, rank in enumerate(ranks) if number != lost]
    assert [status for status, _ in ends] == [1, 1]
    said = "".join(text for _, text in ends)
    assert said.count("error: ") == 1 and f"rank {lost} is gone (killed, out of memory" in said, said


def test_a_failed_rank_speaks_for_itself(tmp_path: Path) -> None:
    ranks = start(tmp_path, 3)
    tell(ranks[0], "work")
    tell(ranks[1], "work")
    tell(ranks[2], "fail")
    ends = [end_of(rank) for rank in ranks]
    assert [status for status, _ in ends] == [1, 1, 1]
    assert ends[2][1].strip() == "error: my own message" and "rank 2 has ended with an error" in ends[0][1]


def test_who_has_said_goodbye_may_go(tmp_path: Path) -> None:
    ranks = start(tmp_path, 3)
    for rank in (ranks[1], ranks[0]):
        tell(rank, "bye")
        assert end_of(rank) == (0, "")
    time.sleep(0.5)
    assert ranks[2].poll() is None
    tell(ranks[2], "bye")
    assert end_of(ranks[2]) == (0, "")


def test_a_stranger_at_the_port_is_no_rank(tmp_path: Path) -> None:
    """Somebody who scans ports connects, says anything, and goes."""
    ranks = [start_rank(tmp_path, 0, 2)]
    while not (tmp_path / "box").exists():
        time.sleep(0.01)
    port, _ = pickle.loads((tmp_path / "box").read_bytes())
    for text in (b"", b"GET / HTTP/1.1\r\n\r\n" * 3):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(text)
    ranks.append(start_rank(tmp_path, 1, 2))
    assert [rank.stdout.readline() for rank in ranks] == ["connected\n"] * 2
    ranks[1].kill()
    tell(ranks[0], "work")
    status, said = end_of(ranks[0])
    assert status == 1 and "rank 1 is gone" in said
