"""Draws a mixture into shards: the folder of `pixel_sail.data.shards`."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from pixel_sail.config import Config, ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.mixture import Mixture, open_mixture
from pixel_sail.data.shards import (
    INDEX,
    UNFINISHED,
    VERSION,
    Shard,
    encode_sample,
    with_bytes,
)
from pixel_sail.durable import differences, replaced_file, write_json
from pixel_sail.types import BadSample, Sample


class StoredFeatures(Protocol):
    """The caches of experts, whose features go into the shards; see pixel_sail/experts/features.py."""

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Expert -> what its features were made with."""
        ...

    def cached(self, sample: Sample) -> dict[str, np.ndarray]:
        """Expert -> the features (C, h, w) float16 of the sample's image. Raises BadSample."""
        ...


@dataclass(frozen=True)
class Plan:
    """What every worker knows."""

    mixture: Mixture
    out: Path
    samples: int
    samples_per_shard: int
    features: StoredFeatures | None

    def positions(self, number: int) -> range:
        """Stream positions of a shard."""
        first = number * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.samples))


@dataclass(frozen=True)
class Made:
    """A finished shard."""

    shard: Shard
    counts: list[int]  # samples of each source of the mixture
    problems: list[str]  # one line for each sample that was left out


def make_shards(
    config: Config,
    out: Path,
    samples: int,
    samples_per_shard: int = 1000,
    workers: int = 1,
    progress: bool = False,
    features: StoredFeatures | None = None,
) -> dict[str, Any]:
    """Writes positions 0 .. samples - 1 of the config's mixture to `out`; returns what `read_index` would.

    The same config gives the same bytes for any number of workers. Shards that a killed call finished are kept.
    Samples that cannot be used are left out and listed. Raises ConfigError when `out` is something else, DatasetError
    for sources that cannot be read and for more than data.max_bad_samples unusable samples.
    """
    if samples < 1 or samples_per_shard < 1 or workers < 1:
        raise ConfigError(f"samples {samples}, samples per shard {samples_per_shard}, workers {workers}: each >= 1")
    if features is None and any(expert.cache is not None for expert in config.experts):
        raise ValueError("the config has experts with a cache: give their features (experts.features.cached_features)")
    plan = Plan(open_mixture(config), out, samples, samples_per_shard, features)
    request = request_of(config, plan)
    _claim(out, request)
    numbers = range(-(-samples // samples_per_shard))
    done = {number: made for number in numbers if (made := _finished(out, number)) is not None}
    bar = tqdm(total=len(numbers), initial=len(done), unit="shard", desc=str(out), disable=not progress)
    with bar, closing(_make(plan, [number for number in numbers if number not in done], workers)) as running:
        for number, made in running:
            done[number] = made
            bar.update()
            _refuse_too_many(done, config.data.max_bad_samples)
    return _finish(plan, request, [done[number] for number in numbers])


def request_of(config: Config, plan: Plan) -> dict[str, Any]:
    """What determines the bytes of the shards. Folders are not part of it: data may move."""
    mixture = [entry.model_dump(mode="json", exclude={"root"}) for entry in config.data.mixture]
    baked = ("expressions_per_image", "questions", "answers", "hide")
    return {
        "seed": config.run.seed,
        "samples": plan.samples,
        "samples_per_shard": plan.samples_per_shard,
        "mixture": mixture,
        "data": {name: getattr(config.data, name) for name in baked},
        "sources": plan.mixture.fingerprint(),
        "experts": {} if plan.features is None else plan.features.manifests(),
    }


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Makes `out` the place of this request; ConfigError where it is that of another, or no folder of shards."""
    for name in (INDEX, UNFINISHED):
        if (out / name).is_file():
            stored = json.loads((out / name).read_bytes())["request"]
            if changes := differences(stored, request):
                raise ConfigError(f"{out} holds shards of another request: {'; '.join(changes)}. Give another folder")
            return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no folder of shards; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / UNFINISHED, {"version": VERSION, "request": request})


def _finished(out: Path, number: int) -> Made | None:
    """A shard that is whole; of its two files the index was written last."""
    try:
        data = (out / _index_name(number)).read_bytes()
        index = json.loads(data)
        if (out / index["file"]).stat().st_size != index["bytes"]:
            return None
    except (OSError, ValueError):
        return None
    of_index = (_index_name(number), len(data), hashlib.sha256(data).hexdigest())
    shard = Shard(index["file"], len(index["samples"]), index["bytes"], index["sha256"], *of_index)
    return Made(shard, index["counts"], index["problems"])


def _make(plan: Plan, numbers: list[int], workers: int) -> Iterator[tuple[int, Made]]:
    """(number, shard) as they are finished."""
    if workers == 1:
        yield from ((number, write_shard(plan, number)) for number in numbers)
        return
    fork = multiprocessing.get_context("fork")  # workers share the annotations in memory
    with ProcessPoolExecutor(workers, fork, initializer=_start_worker, initargs=(plan,)) as pool:
        running = {pool.submit(_write_planned, number): number for number in numbers}
        try:
            for future in as_completed(running):
                yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_plan: Plan | None = None  # of a worker process


def _start_worker(plan: Plan) -> None:
    global _plan
    _plan = plan
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed call leaves no worker behind that would still be writing when it is repeated."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_planned(number: int) -> Made:
    return write_shard(_plan, number)


def write_shard(plan: Plan, number: int) -> Made:
    """Writes one tar and then its index, each complete or absent."""
    entries: list[dict[str, Any]] = []
    problems: list[str] = []
    counts: Counter[int] = Counter()
    path = plan.out / f"{number:06d}.tar"
    with replaced_file(path, "wb+") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in plan.positions(number):
                try:
                    sample = with_bytes(plan.mixture.annotated(position))
                    features = _features(plan, sample)
                except BadSample as error:
                    problems.append(str(error))
                    continue
                name, members = f"{position:09d}", encode_sample(replace(sample, features=features))
                entries.append({"key": sample.key, "name": name, "members": _add(tar, file, name, members)})
                counts[plan.mixture.locate(position)[0]] += 1
        size = file.tell()
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    values = {
        "file": path.name,
        "bytes": size,
        "sha256": sha256,
        "counts": [counts[source] for source in range(len(plan.mixture.sources))],
        "problems": problems,
        "samples": entries,
    }
    write_json(plan.out / _index_name(number), values, indent=None)
    return _finished(plan.out, number)


def _features(plan: Plan, sample: Sample) -> dict[str, np.ndarray]:
    return {} if sample.image is None or plan.features is None else plan.features.cached(sample)


def _add(tar: tarfile.TarFile, file: BinaryIO, name: str, members: dict[str, bytes]) -> dict[str, list[int]]:
    """Appends the members of one sample; suffix -> [offset, bytes, CRC-32]. Headers depend on nothing but these."""
    written = {}
    for suffix, content in members.items():
        header = tarfile.TarInfo(f"{name}.{suffix}")  # owner 0, time 0
        header.size, header.mode = len(content), 0o444
        written[suffix] = [file.tell() + tarfile.BLOCKSIZE, len(content), zlib.crc32(content)]
        tar.addfile(header, BytesIO(content))
    return written


def _finish(plan: Plan, request: dict[str, Any], made: list[Made]) -> dict[str, Any]:
    """Writes shards.json: the folder is whole."""
    on_reading = [problem for source in plan.mixture.sources for problem in source.problems]
    counts = [sum(column) for column in zip(*(one.counts for one in made), strict=True)]
    index = {
        "version": VERSION,
        "request": request,
        "samples": sum(counts),
        "samples_per_source": counts,  # in the order of request.mixture
        "problems": on_reading + [problem for one in made for problem in one.problems],
        "shards": [asdict(one.shard) for one in made],
    }
    write_json(plan.out / INDEX, index)
    (plan.out / UNFINISHED).unlink(missing_ok=True)
    return index


def _refuse_too_many(done: dict[int, Made], limit: int) -> None:
    if sum(len(made.problems) for made in done.values()) > limit:
        listed = [f"  {problem}" for made in done.values() for problem in made.problems]
        raise DatasetError(
            f"{len(listed)} unusable samples, more than data.max_bad_samples={limit}:\n" + "\n".join(listed)
        )


def _index_name(number: int) -> str:
    return f"{number:06d}.index.json"
