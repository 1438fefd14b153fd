"""Draws a mixture into a folder of shards; pixel_sail/data/shards.py has the format and reads it."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from pixel_sail.config import Config, ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_bytes, read_json
from pixel_sail.data.mixture import Mixture, exclusion_lines, open_mixture
from pixel_sail.data.shards import (
    INDEX,
    UNFINISHED,
    VERSION,
    Shard,
    encode_sample,
    with_bytes,
)
from pixel_sail.durable import PARTIAL, differences, remove_leftovers, replaced_file, write_json
from pixel_sail.files import parse_json
from pixel_sail.interrupts import how_far
from pixel_sail.locks import locked
from pixel_sail.types import BadSample, NoPixels, Sample
from pixel_sail.workers import MAX_WORKERS, in_order
from pixel_sail.writable import check_writable, writing_into

LOCK = ".lock"
MAX_SHARDS, MAX_SAMPLES = 10**6, 10**9  # their names have six and nine digits
WEIGHED_SAMPLES = 32  # whose sizes say how much room all samples need


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
    sources that cannot be read and for more than data.max_bad_samples unusable samples, FileError if `out` cannot be
    written or is too small, Busy if another process is writing it.
    """
    _check_numbers(samples, samples_per_shard, workers)
    if features is None and any(expert.cache is not None for expert in config.experts):
        raise ValueError("the config has experts with a cache: pass features=cached_features(config)")
    job = ShardJob(open_mixture(config, held_out), out, samples, samples_per_shard, features)
    _refuse_other_contents(out)
    check_writable(out)
    with locked(out / LOCK, f"the folder {out}"), writing_into(out):
        return _make(config, job, workers, progress)


def _check_numbers(samples: int, samples_per_shard: int, workers: int) -> None:
    if samples < 1 or samples_per_shard < 1 or workers < 1:
        raise ConfigError(
            f"samples {samples}, samples per shard {samples_per_shard}, workers {workers}: each must be >= 1"
        )
    if samples > MAX_SAMPLES or -(-samples // samples_per_shard) > MAX_SHARDS or workers > MAX_WORKERS:
        raise ConfigError(
            f"samples {samples}, samples per shard {samples_per_shard}, workers {workers}: at most {MAX_SAMPLES:,} "
            f"samples, {MAX_SHARDS:,} shards and {MAX_WORKERS} workers"
        )


def _make(config: Config, job: ShardJob, workers: int, progress: bool) -> dict[str, Any]:
    request, out = request_of(config, job), job.out
    listed = _claim(out, request)
    remove_leftovers(out)
    numbers = range(-(-job.samples // job.samples_per_shard))
    finished = {number: shard for number in numbers if (shard := _read_finished(out, number, listed)) is not None}
    missing = [number for number in numbers if number not in finished]
    check_writable(out, _needed_bytes(job, missing))
    bar = tqdm(
        total=len(numbers), initial=len(finished), unit="shard", desc=str(out), disable=None if progress else True
    )
    done = how_far(lambda: f"{len(finished)} of {len(numbers)} shards are made; the same command makes the others")
    try:
        with done, bar, closing(in_order(partial(write_shard, job), missing, workers if workers > 1 else 0)) as written:
            for number, shard in zip(missing, written, strict=True):
                finished[number] = shard
                bar.update()
                _refuse_too_many(finished.values(), config.data.max_bad_samples)
    finally:
        remove_leftovers(out)  # of workers that were ended
    return _write_index(job, request, [finished[number] for number in numbers], exclusion_lines(config, job.mixture))


def _needed_bytes(job: ShardJob, numbers: Sequence[int]) -> int:
    """About the bytes of these shards, from the sizes of some of their samples."""
    positions = [job.positions(number) for number in numbers]
    total = sum(map(len, positions))
    sizes = []
    for shard in positions[:: -(-len(positions) // WEIGHED_SAMPLES) or 1]:
        try:
            members = encode_sample(_with_all(job, shard[len(shard) // 2]))
        except BadSample:
            continue
        sizes.append(sum(tarfile.BLOCKSIZE + len(content) for content in members.values()))
    return total * sum(sizes) // max(1, len(sizes))


def _with_all(job: ShardJob, position: int) -> Sample:
    """The sample with its image in memory and its features. Raises BadSample."""
    sample = with_bytes(job.mixture.annotated(position))
    return replace(sample, features=_features(job, sample))


def request_of(config: Config, job: ShardJob) -> dict[str, Any]:
    """Everything that determines the bytes of the shards. Folders are not part of it: data may move."""
    mixture = [
        entry.model_dump(mode="json", exclude={"root", "sizes"}, exclude_none=True) for entry in config.data.mixture
    ]
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


def _refuse_other_contents(out: Path) -> None:
    """Raises ConfigError if `out` is no folder of shards, not even one that was just begun."""
    if not out.exists() or (out.is_dir() and any((out / name).exists() for name in (INDEX, UNFINISHED))):
        return
    if not out.is_dir() or any(path.name != LOCK and not path.name.endswith(PARTIAL) for path in out.iterdir()):
        raise ConfigError(f"{out} exists and is not a folder of shards; use another folder")


def _claim(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Makes `out` the folder of this request. Returns the contents of its shards.json, None if it has none.

    Raises ConfigError if it holds another request.
    """
    for name in (INDEX, UNFINISHED):
        if (out / name).exists():
            stored = _stored_request(out / name)
            if changes := differences(stored["request"], request):
                raise ConfigError(f"{out} holds shards of another request: {'; '.join(changes)}. Use another folder")
            return stored if name == INDEX else None
    write_json(out / UNFINISHED, {"version": VERSION, "request": request})
    return None


def _stored_request(path: Path) -> dict[str, Any]:
    """The contents of shards.json, or of the claim of unfinished shards. Raises DatasetError if it is damaged."""
    advice = "Copy it again, or make the shards in another folder"
    try:
        stored = read_json(path)
    except DatasetError as error:
        raise DatasetError(f"{error}. {advice}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("request"), dict):
        raise DatasetError(f"{path} is damaged: it does not say what was drawn. {advice}")
    return stored


def _read_finished(out: Path, number: int, listed: dict[str, Any] | None = None) -> FinishedShard | None:
    """A shard on disk; None if it is missing or incomplete. Its index was written after its tar.

    `listed`: the contents of shards.json, if there is one. A shard that differs from its line there is not whole.
    """
    try:
        data = read_bytes(out / _index_name(number))
        index = parse_json(data)
        if (out / _tar_name(number)).stat().st_size != index["bytes"] or index["file"] != _tar_name(number):
            return None
        of_index = (_index_name(number), len(data), hashlib.sha256(data).hexdigest())
        shard = Shard(index["file"], len(index["samples"]), index["bytes"], index["sha256"], *of_index)
        finished = FinishedShard(shard, index["counts"], index["problems"], index.get("no_pixels", []))
        whole = _is_index(finished) and (listed is None or listed["shards"][number] == asdict(shard))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return finished if whole else None


def _is_index(finished: FinishedShard) -> bool:
    """Whether the values of an index file are of the kind that `write_shard` writes."""
    texts = [*finished.problems, *finished.no_pixels]
    return (
        all(isinstance(count, int) for count in finished.counts)
        and sum(finished.counts) == finished.shard.samples
        and all(isinstance(text, str) for text in texts)
        and re.fullmatch("[0-9a-f]{64}", finished.shard.sha256) is not None
    )


def write_shard(job: ShardJob, number: int) -> FinishedShard:
    """Writes a tar and then its index; each is complete or absent."""
    entries: list[dict[str, Any]] = []
    problems: list[str] = []
    no_pixels: list[str] = []
    counts: Counter[int] = Counter()
    path = job.out / _tar_name(number)
    with replaced_file(path, "wb+") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in job.positions(number):
                try:
                    sample = _with_all(job, position)
                except BadSample as error:
                    (no_pixels if isinstance(error, NoPixels) else problems).append(str(error))
                    continue
                name, members = f"{position:09d}", encode_sample(sample)
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


def _tar_name(number: int) -> str:
    return f"{number:06d}.tar"


def _index_name(number: int) -> str:
    return f"{number:06d}.index.json"
