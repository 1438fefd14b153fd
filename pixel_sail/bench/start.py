"""How long sources take to open, and how much memory their annotations hold in a rank and its workers."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.bench.annotations import write_annotations
from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.sources import Source, kept, open_source
from pixel_sail.types import BadSample

MIB = 2**20
SMALLER = 10  # times fewer entries in the second measurement
RANKS, WORKERS = 8, 8  # of the machine that is extrapolated to
FORK = multiprocessing.get_context("fork")


def measure_start(root: Path, scale: float, touched: int, workers: list[int]) -> dict[str, Any]:
    """Opens sources whose annotation files have `scale` times the published counts, made below `root` unless there.

    Each source in a process of its own, forked from this one, and then `again`, from its kept file: seconds, seconds to
    the first sample, and the memory that it added, at the peak (RSS) and afterwards (`own`: written pages; `mapped`:
    pages of files, which processes share). Then all in one process, of which `workers` are forked that touch the
    entries of every source once, in random order, and draw `touched` samples of each. That again with a tenth of the
    counts: the line through both gives the numbers at real counts, without what a process costs in any case.
    """
    roots = {share: root / f"scale_{share:g}" for share in (scale, scale / SMALLER)}
    settings = {share: DataConfig(root=path, mixture=write_annotations(path, share)) for share, path in roots.items()}
    with _kept_in(root / "kept", round(kept.SMALLEST_BYTES * scale / SMALLER)):
        opened = {share: _open_each(data) for share, data in settings.items()}
        again = _open_each(settings[scale])
        together = {share: _in_child(partial(_open_all, data, workers, touched)) for share, data in settings.items()}
    files = sum(path.stat().st_size for path in roots[scale].rglob("*") if path.suffix in (".json", ".p"))
    first_s = [source["first_sample_s"] / scale for source in opened[scale].values()]
    first = {"first_start_s": round(sum(first_s)), "longest_source_s": round(max(first_s))}
    return {
        "bench": "start",
        "scale": scale,
        "annotations_mib": round(files / MIB),
        "sources": {name: opened[scale][name] | {"again": again[name]} for name in again},
        "together": together,
        "real_counts": first | _extrapolated(*together.values(), scale),
    }


@contextlib.contextmanager
def _kept_in(folder: Path, smallest_bytes: int) -> Iterator[None]:
    """Inside, annotation files of `smallest_bytes` or more are kept in a new `folder`, not in that of the user."""
    shutil.rmtree(folder, ignore_errors=True)
    before, variable = kept.SMALLEST_BYTES, os.environ.get(kept.FOLDER_VARIABLE)
    kept.SMALLEST_BYTES, os.environ[kept.FOLDER_VARIABLE] = smallest_bytes, str(folder)
    try:
        yield
    finally:
        kept.SMALLEST_BYTES = before
        os.environ.pop(kept.FOLDER_VARIABLE)
        if variable is not None:
            os.environ[kept.FOLDER_VARIABLE] = variable
        shutil.rmtree(folder, ignore_errors=True)


def _open_each(data: DataConfig) -> dict[str, Any]:
    return {entry.source: _in_child(partial(_open_one, entry, data)) for entry in data.mixture}


def _open_one(entry: MixtureEntry, data: DataConfig) -> dict[str, Any]:
    before, start = _memory(), time.perf_counter()
    source = open_source(entry, data)
    opened_s = time.perf_counter() - start
    source.sample(0, np.random.default_rng(0))
    first_s = time.perf_counter() - start
    peak = _peak_mib()
    gc.collect()
    return {
        "entries": len(source),
        "open_s": round(opened_s, 2),
        "first_sample_s": round(first_s, 2),
        **_added(before, _memory()),
        "peak_mib": peak - before["rss"],
    }


def _open_all(data: DataConfig, workers: list[int], touched: int) -> dict[str, Any]:
    before, start = _memory(), time.perf_counter()
    sources = [open_source(entry, data) for entry in data.mixture]
    for source in sources:
        source.sample(0, np.random.default_rng(0))
    first_s, peak = time.perf_counter() - start, _peak_mib()
    gc.collect()
    after = _memory()
    result: dict[str, Any] = {"first_samples_s": round(first_s, 2), "peak_mib": peak - before["rss"]}
    result |= _added(before, after) | {"rss_mib": after["rss"]}
    result["workers"] = {}
    for count in workers:
        grown = _touch_in_workers(sources, count, touched)
        result["workers"][count] = {
            "pss_mib": grown,  # of this process and its workers together, beyond what this process had alone
            "each_mib": round(grown / count),
        }
    return result


def _added(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {f"{name}_mib": after[name] - before[name] for name in ("own", "mapped")}


def _extrapolated(large: dict[str, Any], small: dict[str, Any], scale: float) -> dict[str, Any]:
    """What the annotations of real counts take: linear in the counts, the ranks and the workers."""

    def real(value: Callable[[dict[str, Any]], float]) -> float:
        return (value(large) - value(small)) / (scale - scale / SMALLER)

    most = max(large["workers"])
    rank_mib = real(lambda m: m["own_mib"]) + WORKERS * real(lambda m: m["workers"][most]["each_mib"])
    mapped_mib = real(lambda m: m["mapped_mib"])  # by all processes together
    return {
        "first_samples_s": round(real(lambda m: m["first_samples_s"])),
        "rank_peak_gib": round(real(lambda m: m["peak_mib"]) / 1024, 1),
        "rank_with_workers_gib": round(rank_mib / 1024, 1),
        "mapped_gib": round(mapped_mib / 1024, 1),
        "machine_gib": round((RANKS * rank_mib + mapped_mib) / 1024, 1),
    }


def _touch_in_workers(sources: list[Source], count: int, touched: int) -> int:
    """MiB (PSS) by which this process and `count` workers grow together while all of them live."""
    before = _memory()["pss"]
    done, leave, sizes = FORK.Barrier(count + 1), FORK.Event(), FORK.Queue()

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for source in sources:
            for index in rng.permutation(len(source)):
                source.image(index)
            for index in rng.permutation(len(source))[:touched]:
                try:
                    source.sample(int(index), rng)
                except BadSample:
                    continue
        done.wait()  # all have touched, and all are there
        sizes.put(_memory()["pss"])
        leave.wait()

    children = [FORK.Process(target=work, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    done.wait()
    total = _memory()["pss"] + sum(sizes.get() for _ in children)
    leave.set()
    for child in children:
        child.join()
    return total - before


def _in_child(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `measure` in a forked process, so that its memory is freed and nothing is cached."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: sender.send(measure()))
    child.start()
    sender.close()
    result = receiver.recv()
    child.join()
    return result


def _memory() -> dict[str, int]:
    """MiB of this process: `rss`, `pss`, `own` (written, and shared with nobody), `mapped` (its share of files)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    names = {"rss": "Rss", "pss": "Pss", "own": "Private_Dirty", "mapped": "Pss_File"}
    return {name: kib[key] // 1024 for name, key in names.items()}


def _peak_mib() -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
