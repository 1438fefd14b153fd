"""Resident memory over a long training and over many predictions: growth after the warm-up, of all processes."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from attack import process
from attack.trees import Workshop, write_config
from conftest import write_refer_dataset

STEPS = 3000
PREDICTIONS = 300
MAX_GROWTH_MIB = 64.0
SAMPLE_S = 0.2
_WARM_UP, _WINDOW = 0.3, 0.1  # of all samples
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Memory:
    """Resident memory in MiB: after the warm-up, at the end; the largest growth of a worker."""

    what: str
    seconds: float
    start_mib: float
    end_mib: float
    workers: int
    worker_growth_mib: float

    @property
    def growth_mib(self) -> float:
        return self.end_mib - self.start_mib

    @property
    def ok(self) -> bool:
        return max(self.growth_mib, self.worker_growth_mib) <= MAX_GROWTH_MIB


def measure_training(folder: Path) -> Memory:
    with tempfile.TemporaryDirectory(dir=folder, prefix="memory_") as place:
        tree = Path(place)
        write_refer_dataset(tree / "root", train=12)
        train = {"steps": STEPS, "save_every": 500, "batch_size": 2, "keep_checkpoints": 1}
        write_config(tree / "tiny.yaml", train=train, data={"workers": 2}, run={"log_every": 50})
        return _watch(f"{STEPS:,} training steps", ("tools/train.py", "tiny.yaml"), tree)


def measure_predictions(folder: Path) -> Memory:
    with tempfile.TemporaryDirectory(dir=folder, prefix="memory_") as place:
        tree = Workshop(folder / "trees").copy("finished_run", Path(place) / "tree")
        write_refer_dataset(tree / "many", val=PREDICTIONS // 6)  # six expressions an image
        command = ("tools/test.py", "run/export", "--benchmark", "refcoco:val", "--data-root", "many", "--out", "made",
                   "--device", "cpu")  # fmt: skip
        return _watch(f"{PREDICTIONS} predictions", command, tree)


def _watch(what: str, command: tuple[object, ...], tree: Path) -> Memory:
    running = process.start(command, tree, limited=False)
    running.wait_until_ready()
    (rank,) = running.ranks
    own: list[float] = []
    workers: dict[int, list[float]] = {}
    deadline = time.monotonic() + _TIMEOUT_S
    while rank.is_alive() and time.monotonic() < deadline:
        own.append(_resident_mib(rank.pid))
        for child in _children(rank.pid):
            workers.setdefault(child, []).append(_resident_mib(child))
        time.sleep(SAMPLE_S)
    done = running.finish()
    assert done.status == 0, f"{what}: ended with {done.status}\n{done.output}"
    start, end = _ends([mib for mib in own if mib])
    lasting = [mibs for mibs in ([m for m in mibs if m] for mibs in workers.values()) if len(mibs) >= 20]
    growth = max((last - first for first, last in map(_ends, lasting)), default=0.0)
    return Memory(what, done.seconds, start, end, len(lasting), growth)


def _ends(mibs: list[float]) -> tuple[float, float]:
    """The medians of a window after the warm-up and of one at the end (before the last tenth, where a run is saved)."""
    size = max(1, round(len(mibs) * _WINDOW))
    begin = round(len(mibs) * _WARM_UP)
    return statistics.median(mibs[begin : begin + size]), statistics.median(mibs[-2 * size : -size] or mibs)


def _resident_mib(pid: int | None) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 2**20


def _children(pid: int | None) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory_table(measured: list[Memory]) -> str:
    """Markdown."""
    rows = ["| | time | after the warm-up, MiB | at the end, MiB | growth, MiB | workers | their largest growth, MiB |"]
    rows.append("| --- " * 7 + "|")
    rows += [
        f"| {m.what} | {m.seconds:.0f} s | {m.start_mib:.0f} | {m.end_mib:.0f} | {m.growth_mib:.1f} | {m.workers} | "
        f"{m.worker_growth_mib:.1f} |"
        for m in measured
    ]
    return "\n".join(rows) + "\n"
