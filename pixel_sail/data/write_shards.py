"""Draws a mixture into a folder of shards; pixel_sail/data/shards.py has the format and reads it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
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
from pixel_sail.data.files import read_json
from pixel_sail.data.mixture import Mixture, exclusion_lines, open_mixture
from pixel_sail.data.shards import (
    INDEX,
    UNFINISHED,
    VERSION,
    Shard,
    encode_sample,
    with_bytes,
)
from pixel_sail.durable import differences, replaced_file, write_json
from pixel_sail.types import BadSample, NoPixels, Sample


class StoredFeatures(Protocol):
    """The cached features of experts, which go into the shards; see pixel_sail/experts/features.py."""

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Expert -> the settings with which its features were made."""
        ...

    def cached(self, sample: Sample) -> dict[str, np.ndarray]:
        """Expert -> the features (C, h, w) float16 of the sample's image. Raises BadSample."""
        ...


@dataclass(frozen=True)
class ShardJob:
    """What every worker needs to know to write any of the shards."""

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
class FinishedShard:
    """A shard whose tar and index are on disk."""

    shard: Shard
    counts: list[int]  # samples of each source of the mixture
    problems: list[str]  # one line for each sample that was left out
    no_pixels: list[str]  # likewise, of samples whose objects have no pixel; not counted against the limit


def make_shards(
    config: Config,
    out: Path,
    samples: int,
    samples_per_shard: int = 1000,
    workers: int = 1,
    progress: bool = False,
    features: StoredFeatures | None = None,
    held_out: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Writes positions 0 .. samples - 1 of the config's mixture to `out`; returns the contents of shards.json.

    The same config gives the same bytes for any number of workers. Shards that an interrupted call finished are kept.
    Unusable samples are left out and listed. `features`: needed if experts of the config have a cache. `held_out`:
    needed with data.exclude, see `open_mixture`. Raises ConfigError if `out` holds anything else, DatasetError for
    sources that cannot be read and for more than data.max_bad_samples unusable samples.
    """
    if samples < 1 or samples_per_shard < 1 or workers < 1:
        raise ConfigError(
            f"samples {samples}, samples per shard {samples_per_shard}, workers {workers}: each must be >= 1"
        )
    if features is None and any(expert.cache is not None for expert in config.experts):
        raise ValueError("the config has experts with a cache: pass features=cached_features(config)")
    job = ShardJob(open_mixture(config, held_out), out, samples, samples_per_shard, features)
    request = request_of(config, job)
    _claim(out, request)
    numbers = range(-(-samples // samples_per_shard))
    finished = {number: shard for number in numbers if (shard := _read_finished(out, number)) is not None}
    bar = tqdm(total=len(numbers), initial=len(finished), unit="shard", desc=str(out), disable=not progress)
    missing = [number for number in numbers if number not in finished]
    with bar, closing(_write_shards(job, missing, workers)) as written:
        for number, shard in written:
            finished[number] = shard
            bar.update()
            _refuse_too_many(finished.values(), config.data.max_bad_samples)
    return _write_index(job, request, [finished[number] for number in numbers], exclusion_lines(config, job.mixture))


def request_of(config: Config, job: ShardJob) -> dict[str, Any]:
    """Everything that determines the bytes of the shards. Folders are not part of it: data may move."""
    mixture = [entry.model_dump(mode="json", exclude={"root"}) for entry in config.data.mixture]
    baked = ("expressions_per_image", "questions", "answers", "hide")
    excluded = {"exclude": sorted(config.data.exclude)} if config.data.exclude else {}  # older shards do not have it
    return {
        "seed": config.run.seed,
        "samples": job.samples,
        "samples_per_shard": job.samples_per_shard,
        "mixture": mixture,
        "data": {name: getattr(config.data, name) for name in baked} | excluded,
        "sources": job.mixture.fingerprint(),
        "experts": {} if job.features is None else job.features.manifests(),
    }


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Makes `out` the folder of this request. Raises ConfigError if it holds another request, or anything else."""
    for name in (INDEX, UNFINISHED):
        if (out / name).is_file():
            if changes := differences(read_json(out / name)["request"], request):
                raise ConfigError(f"{out} holds shards of another request: {'; '.join(changes)}. Use another folder")
            return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not a folder of shards; use another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / UNFINISHED, {"version": VERSION, "request": request})


def _read_finished(out: Path, number: int) -> FinishedShard | None:
    """A shard on disk; None if it is missing or incomplete. Its index was written after its tar."""
    try:
        data = (out / _index_name(number)).read_bytes()
        index = json.loads(data)
        if (out / index["file"]).stat().st_size != index["bytes"]:
            return None
    except (OSError, ValueError):
        return None
    of_index = (_index_name(number), len(data), hashlib.sha256(data).hexdigest())
    shard = Shard(index["file"], len(index["samples"]), index["bytes"], index["sha256"], *of_index)
    return FinishedShard(shard, index["counts"], index["problems"], index.get("no_pixels", []))


def _write_shards(job: ShardJob, numbers: list[int], workers: int) -> Iterator[tuple[int, FinishedShard]]:
    """(number, shard) in the order in which they are finished."""
    if workers == 1:
        yield from ((number, write_shard(job, number)) for number in numbers)
        return
    fork = multiprocessing.get_context("fork")  # workers share the annotations in memory
    with ProcessPoolExecutor(workers, fork, initializer=_start_worker, initargs=(job,)) as pool:
        running = {pool.submit(_write_in_worker, number): number for number in numbers}
        try:
            for future in as_completed(running):
                yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_job: ShardJob | None = None  # set in a worker process


def _start_worker(job: ShardJob) -> None:
    global _job
    _job = job
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed, so that it does not write while the command is repeated."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_in_worker(number: int) -> FinishedShard:
    return write_shard(_job, number)


def write_shard(job: ShardJob, number: int) -> FinishedShard:
    """Writes a tar and then its index; each is complete or absent."""
    entries: list[dict[str, Any]] = []
    problems: list[str] = []
    no_pixels: list[str] = []
    counts: Counter[int] = Counter()
    path = job.out / f"{number:06d}.tar"
    with replaced_file(path, "wb+") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in job.positions(number):
                try:
                    sample = with_bytes(job.mixture.annotated(position))
                    features = _features(job, sample)
                except BadSample as error:
                    (no_pixels if isinstance(error, NoPixels) else problems).append(str(error))
                    continue
                name, members = f"{position:09d}", encode_sample(replace(sample, features=features))
                entries.append({"key": sample.key, "name": name, "members": _add(tar, file, name, members)})
                counts[job.mixture.locate(position)[0]] += 1
        size = file.tell()
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    values = {
        "file": path.name,
        "bytes": size,
        "sha256": sha256,
        "counts": [counts[source] for source in range(len(job.mixture.sources))],
        "problems": problems,
        **({"no_pixels": no_pixels} if no_pixels else {}),
        "samples": entries,
    }
    write_json(job.out / _index_name(number), values, indent=None)
    return _read_finished(job.out, number)


def _features(job: ShardJob, sample: Sample) -> dict[str, np.ndarray]:
    return {} if sample.image is None or job.features is None else job.features.cached(sample)


def _add(tar: tarfile.TarFile, file: BinaryIO, name: str, members: dict[str, bytes]) -> dict[str, list[int]]:
    """Appends the members of one sample: suffix -> [offset, bytes, CRC-32]. Headers depend on names and sizes only."""
    written = {}
    for suffix, content in members.items():
        header = tarfile.TarInfo(f"{name}.{suffix}")  # owner 0, time 0
        header.size, header.mode = len(content), 0o444
        written[suffix] = [file.tell() + tarfile.BLOCKSIZE, len(content), zlib.crc32(content)]
        tar.addfile(header, BytesIO(content))
    return written


def _write_index(
    job: ShardJob, request: dict[str, Any], finished: list[FinishedShard], excluded: list[str]
) -> dict[str, Any]:
    """Writes shards.json, which makes the folder complete. `excluded`: what data.exclude left out, in words."""
    on_reading = [problem for source in job.mixture.sources for problem in source.problems]
    counts = [sum(column) for column in zip(*(shard.counts for shard in finished), strict=True)]
    index = {
        "version": VERSION,
        "request": request,
        "samples": sum(counts),
        "samples_per_source": counts,  # in the order of request.mixture
        "problems": on_reading + [problem for shard in finished for problem in (*shard.problems, *shard.no_pixels)],
        "shards": [asdict(shard.shard) for shard in finished],
    }
    if excluded:
        index["excluded"] = excluded
    write_json(job.out / INDEX, index)
    (job.out / UNFINISHED).unlink(missing_ok=True)
    return index


def _refuse_too_many(finished: Iterable[FinishedShard], limit: int) -> None:
    problems = [f"  {problem}" for shard in finished for problem in shard.problems]
    if len(problems) > limit:
        raise DatasetError(
            f"{len(problems)} unusable samples, more than data.max_bad_samples={limit}:\n" + "\n".join(problems)
        )


def _index_name(number: int) -> str:
    return f"{number:06d}.index.json"
