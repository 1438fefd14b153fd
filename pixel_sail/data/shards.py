"""Samples in webdataset tar files, read at any position. `tools/make_shards.py` makes such a folder:

    <root>/
      shards.json          what was drawn; file, samples, bytes and sha256 of every shard, in order
      000000.tar ...       <position>.json, <position>.<jpg|png|bin> and <position>.<expert>.npy of each sample
      000000.index.json    of each sample its key, and the offset, bytes and CRC-32 of its members in the tar

The order of the samples is a function of seed and epoch (`ShardOrder`), not a state: a run resumes at any position, and
any number of ranks and workers read the same samples. See docs/shards.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import reprlib
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pixel_sail.config import ConfigError, DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import check_regular, exists, read_bytes, read_json
from pixel_sail.data.image import opened_image
from pixel_sail.data.masks import check_rle
from pixel_sail.data.text import printable
from pixel_sail.durable import fingerprint
from pixel_sail.files import parse_json, parse_npy
from pixel_sail.types import RLE, BadSample, Sample, Turn

NAME = "shards"
INDEX = "shards.json"
UNFINISHED = "shards.unfinished.json"  # the request, until INDEX is written
VERSION = 1
GROUP = 8  # shards whose samples are shuffled together: those being read at any time
MAX_BYTES = 2**40  # of a tar
HEAD_BYTES = 2**14  # of an image: its size stands there, unless an EXIF thumbnail comes first
_FILE = re.compile(r"\d{6,12}\.tar")
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}  # all others are .bin; decoders look at the bytes


@dataclass(frozen=True)
class Shard:
    """A line of shards.json."""

    file: str  # 000000.tar
    samples: int
    bytes: int
    sha256: str
    index: str  # 000000.index.json
    index_bytes: int
    index_sha256: str


@runtime_checkable
class Sharded(Protocol):
    """A Source whose samples are in large files, of which it reads a few at a time."""

    def image_head(self, index: int) -> bytes | None:
        """The first bytes of the image of a sample, which tell its size; None without an image. Raises BadSample."""
        ...

    def order(self, seed: tuple[int, ...]) -> ShardOrder:
        """The order of one epoch."""
        ...

    def digest(self) -> str:
        """Of what must be the same when a run resumes."""
        ...


class ShardSource:
    """The samples of a folder of shards (see `pixel_sail.data.sources.Source`)."""

    def __init__(self, root: Path, index: dict[str, Any]) -> None:
        """`index`: the contents of shards.json, from `read_index`."""
        self.problems: list[str] = index["problems"]
        self.experts: dict[str, dict[str, Any]] = index["request"]["experts"]  # features: made_with, path, width
        self.root = root
        self.shards = listed_shards(index, root)
        self._ends = np.cumsum([shard.samples for shard in self.shards])  # one past the last sample of each shard
        # Per instance. Two groups, because one may end and the next begin within a step.
        self._members = lru_cache(maxsize=2 * GROUP)(self._read_members)
        self._file = lru_cache(maxsize=2 * GROUP)(self._open_file)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def key(self, index: int) -> str:
        """The key of a sample. Raises DatasetError if the shard's index.json is missing or damaged."""
        number, place = self._find(index)
        return self._members(number)[place]["key"]

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The stored sample, its image as bytes; `rng` is not used. Raises BadSample for damaged members."""
        number, place = self._find(index)
        entry = self._members(number)[place]
        where = f"{self.root / self.shards[number].file}: {entry['name']}"
        return decode_sample(self._read(number, entry["name"], entry["members"]), where)

    def image_head(self, index: int) -> bytes | None:
        """The first bytes of the image of a sample, which tell its size; None without an image. Raises BadSample."""
        number, place = self._find(index)
        entry = self._members(number)[place]
        spans = [s for suffix, s in entry["members"].items() if suffix != "json" and not suffix.endswith(".npy")]
        if not spans:
            return None
        start, size, _ = spans[0]
        return self._read_bytes(number, entry["name"], start, min(size, HEAD_BYTES))

    def order(self, seed: tuple[int, ...]) -> ShardOrder:
        """The order of one epoch."""
        return ShardOrder([shard.samples for shard in self.shards], seed)

    def digest(self) -> str:
        """Of the contents of all shards."""
        return fingerprint(shard.sha256.encode() for shard in self.shards)

    def _find(self, index: int) -> tuple[int, int]:
        """(number of the shard, place in it) of a sample."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self.shards[number].samples

    def _read_members(self, number: int) -> list[dict[str, Any]]:
        return read_members(self.root, self.shards[number])

    def _open_file(self, number: int) -> OpenFile:
        return OpenFile.at(self.root / self.shards[number].file)

    def _read(self, number: int, name: str, members: dict[str, list[int]]) -> dict[str, bytes]:
        """The members of one sample, which are adjacent: one read."""
        spans = list(members.values())
        start, stop = spans[0][0], spans[-1][0] + spans[-1][1]
        data = self._read_bytes(number, name, start, stop - start)
        return check_members(data, start, members, f"{self.root / self.shards[number].file}: {name}")

    def _read_bytes(self, number: int, name: str, start: int, size: int) -> bytes:
        try:
            return os.pread(self._file(number).descriptor, size, start)
        except (OSError, DatasetError) as error:
            path = self.root / self.shards[number].file
            raise BadSample(f"{path}: cannot read sample {name}: {error}") from None


class ShardOrder:
    """A permutation of all samples of some shards that reads few shards at a time.

    The shards are permuted; then the samples of each `GROUP` consecutive ones are permuted together. `order[place]` is
    the sample that comes at `place`. Only the group being read is in memory.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: tuple[int, ...]) -> None:
        self._seed = seed
        sizes = np.asarray(samples_per_shard)
        self._firsts, self._sizes = np.cumsum(sizes) - sizes, sizes
        shards = np.random.default_rng(seed).permutation(len(sizes))
        self._groups = [shards[i : i + GROUP] for i in range(0, len(shards), GROUP)]
        self._ends = np.cumsum([sizes[group].sum() for group in self._groups])
        self._group = lru_cache(maxsize=2)(self._make_group)

    def __getitem__(self, place: int) -> int:
        group = int(np.searchsorted(self._ends, place, side="right"))
        return int(self._group(group)[place - int(self._ends[group])])  # counted from the end of the group

    def _make_group(self, group: int) -> np.ndarray:
        members = [self._firsts[shard] + np.arange(self._sizes[shard]) for shard in self._groups[group]]
        return np.random.default_rng((*self._seed, group)).permutation(np.concatenate(members))


class OpenFile:
    """An open file, closed when nothing refers to it. Forked workers may share it: pread does not move a position."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def at(cls, path: Path) -> OpenFile:
        """Raises DatasetError for what is no file, and cannot be read."""
        check_regular(path)
        try:
            return cls(os.open(path, os.O_RDONLY))
        except OSError as error:
            raise DatasetError(f"cannot read {path}: {error.strerror}") from None


def open_shards(root: Path, data: DataConfig) -> ShardSource:
    """Opens a folder of shards. The size of every file is checked; `verify_shards` checks the contents.

    Raises DatasetError for a folder that is not complete, and ConfigError for one that does not fit the config.
    """
    index = read_index(root)
    source = ShardSource(root, index)
    if problems := [problem for shard in source.shards for problem in wrong_sizes(root, shard)]:
        raise DatasetError(
            f"{root} differs from its {INDEX}: {'; '.join(problems)}. "
            "Copy it again, or repeat the tools/make_shards.py command that made it: it makes only the missing shards"
        )
    if not len(source):
        raise DatasetError(f"{root / INDEX} lists no sample")
    made_with = index["request"]["data"]["hide"]
    if (made_with == "text") != (data.hide == "text"):
        raise ConfigError(
            f"{root} was made with data.hide={made_with} and the config says data.hide={data.hide}: the texts are "
            "stored in the shards. Make new shards with this setting"
        )
    excluded = index["request"]["data"].get("exclude", [])
    if set(excluded) != set(data.exclude):
        raise ConfigError(
            f"{root} was made with data.exclude={_listed(excluded)} and the config says "
            f"data.exclude={_listed(data.exclude)}: which images are in the shards is fixed. Make new shards with this "
            "setting, or give the setting of the shards"
        )
    return source


def read_index(root: Path) -> dict[str, Any]:
    """The contents of shards.json. Raises DatasetError if it is missing, broken or of another version."""
    path = root / INDEX
    if not exists(path):
        unfinished = exists(root / UNFINISHED)
        advice = (
            "some shards are not made yet: repeat the command" if unfinished else "make it with tools/make_shards.py"
        )
        raise DatasetError(f"no file {path}; {advice}")
    index = read_json(path)
    version = index.get("version") if isinstance(index, dict) else None
    if version != VERSION:
        raise DatasetError(f"{path} has version {reprlib.repr(version)}, not {VERSION}: make the shards again")
    problem = next(_faults(index), None)
    if problem:
        raise DatasetError(f"{path} has been changed: {problem}. Copy it again, or make the shards again")
    return index


def listed_shards(index: dict[str, Any], root: Path) -> list[Shard]:
    """The shards of a folder, from its `index`. Raises DatasetError for what tools/make_shards.py never writes."""
    shards = []
    for number, line in enumerate(index["shards"]):
        kinds = {field.name: int if field.type == "int" else str for field in fields(Shard)}
        wrong = not isinstance(line, dict) or set(line) != set(kinds)
        if wrong or any(type(line[name]) is not kind for name, kind in kinds.items()):
            raise DatasetError(
                f"{root / INDEX}: line {number} of 'shards' is {reprlib.repr(line)}; make the shards again"
            )
        shard = Shard(**line)
        if not _FILE.fullmatch(shard.file) or shard.index != shard.file.replace(".tar", ".index.json"):
            raise DatasetError(f"{root / INDEX}: {reprlib.repr(shard.file)}, {reprlib.repr(shard.index)} name no shard")
        if min(shard.samples, shard.bytes, shard.index_bytes) < 0 or shard.bytes > MAX_BYTES:
            raise DatasetError(
                f"{root / INDEX}: {shard.file} cannot have {shard.samples} samples and {shard.bytes} bytes"
            )
        shards.append(shard)
    if len({shard.file for shard in shards}) < len(shards):
        raise DatasetError(f"{root / INDEX} lists a shard twice")
    return shards


def _faults(index: dict[str, Any]) -> Iterator[str]:
    """What is not as tools/make_shards.py writes it, in words."""
    request = index.get("request")
    if not isinstance(index.get("shards"), list):
        yield "it has no list 'shards'"
    elif not isinstance(index.get("problems"), list) or not all(isinstance(line, str) for line in index["problems"]):
        yield "its 'problems' are no list of texts"
    elif not isinstance(request, dict) or not isinstance(request.get("data"), dict):
        yield "it has no 'request' with 'data'"
    elif not isinstance(request["data"].get("hide"), str):
        yield "its request has no 'data.hide'"
    elif not isinstance(excluded := request["data"].get("exclude", []), list) or not all(
        isinstance(name, str) for name in excluded
    ):
        yield "the 'data.exclude' of its request is no list of names"
    elif not isinstance(request.get("experts"), dict) or not all(map(_is_manifest, request["experts"].values())):
        yield "the 'experts' of its request are no descriptions of features"


def _is_manifest(manifest: Any) -> bool:
    return isinstance(manifest, dict) and isinstance(manifest.get("made_with"), dict)


def _listed(names: Sequence[str]) -> str:
    return f"[{', '.join(sorted(names))}]"


def wrong_sizes(root: Path, shard: Shard) -> list[str]:
    """One line for each file of a shard that is missing or whose size differs from shards.json."""
    problems = []
    for name, size in ((shard.file, shard.bytes), (shard.index, shard.index_bytes)):
        try:
            present = check_regular(root / name)
        except DatasetError as error:
            problems.append(f"{name} is missing" if not exists(root / name) else str(error))
            continue
        if present != size:
            problems.append(f"{name} has {present} bytes instead of {size}")
    return problems


def read_members(root: Path, shard: Shard) -> list[dict[str, Any]]:
    """{"key", "name", "members": {suffix: [offset, bytes, CRC-32]}} of each sample of a shard. Raises DatasetError."""
    path = root / shard.index
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DatasetError(f"{path} has changed since it was written (sha256); delete it and make the shards again")
    try:
        values = parse_json(data)
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from None
    samples = values.get("samples") if isinstance(values, dict) else None
    if not isinstance(samples, list) or len(samples) != shard.samples:
        raise DatasetError(f"{path} does not list the {shard.samples} samples that {INDEX} says; make the shards again")
    stop = 0
    for number, entry in enumerate(samples):
        stop = _end_of_entry(entry, stop, shard.bytes)
        if stop < 0:
            raise DatasetError(f"{path}: sample {number} is {reprlib.repr(entry)}, no place in {shard.file}")
    return samples


def _end_of_entry(entry: Any, start: int, tar_bytes: int) -> int:
    """Where the members of a sample end that begin after byte `start`; -1 for an entry that cannot be."""
    members = entry.get("members") if isinstance(entry, dict) else None
    if not isinstance(members, dict) or "json" not in members:
        return -1
    if not all(isinstance(entry.get(name), str) and printable(entry[name]) == entry[name] for name in ("key", "name")):
        return -1
    for span in members.values():
        if not isinstance(span, list) or len(span) != 3 or not all(type(value) is int and value >= 0 for value in span):
            return -1
        if span[0] < start or span[0] + span[1] > tar_bytes:
            return -1
        start = span[0] + span[1]
    return start


def check_members(data: bytes, start: int, members: dict[str, list[int]], where: str) -> dict[str, bytes]:
    """Suffix -> contents of the members of one sample in `data`, which begins at byte `start` of the tar.

    Raises BadSample, beginning with `where`, for a member that is cut short or damaged.
    """
    contents = {}
    for suffix, (offset, size, crc) in members.items():
        content = data[offset - start : offset - start + size]
        if len(content) != size:
            raise BadSample(f"{where}.{suffix} is cut short: {len(content)} of {size} bytes")
        if zlib.crc32(content) != crc:
            raise BadSample(f"{where}.{suffix} is damaged: its bytes have changed since it was written (CRC-32)")
        contents[suffix] = content
    return contents


def with_bytes(sample: Sample) -> Sample:
    """The sample with its images in memory. Raises BadSample if a file cannot be read, or is no image."""
    first, *more = (_bytes_of(image, sample.key) for image in sample.images or (None,))
    return replace(sample, image=first, more_images=tuple(more))


def _bytes_of(image: Path | bytes | None, key: str) -> bytes | None:
    if not isinstance(image, Path):
        return image
    try:
        with opened_image(image):
            pass  # whatever a name or a link leads to: only images go into shards
        return read_bytes(image)
    except (BadSample, DatasetError) as error:
        raise BadSample(f"{key}: cannot read the image {image}: {error}") from None


def encode_sample(sample: Sample) -> dict[str, bytes]:
    """Suffix -> contents of the members of a sample whose images are in memory."""
    suffix = None if sample.image is None else _suffix(sample.image)
    more = {f"image{n}.{_suffix(image)}": image for n, image in enumerate(sample.more_images, 1)}
    several = {"more_images": list(more), "mask_images": sample.mask_images, "prompt_images": sample.prompt_images}
    values = {
        "key": sample.key,
        "image": suffix,
        "turns": [{"question": turn.question, "answer": turn.answer} for turn in sample.turns],
        "masks": sample.masks,
        "prompts": sample.prompts,
        **({"text": sample.text} if sample.text else {}),
        **({"dropped_turns": sample.dropped_turns} if sample.dropped_turns else {}),
        **(several if more else {}),
    }
    members = {"json": json.dumps(values).encode()}
    if suffix is not None:
        members[suffix] = sample.image
    members |= more
    for name, features in sorted(sample.features.items()):
        file = io.BytesIO()
        np.save(file, features, allow_pickle=False)
        members[f"{name}.npy"] = file.getvalue()
    return members


def _suffix(image: bytes) -> str:
    return next((name for magic, name in _MAGIC.items() if image.startswith(magic)), "bin")


def decode_sample(members: dict[str, bytes], where: str = "a stored sample") -> Sample:
    """The inverse of `encode_sample`; the image comes back as bytes.

    Raises BadSample, beginning with `where`, for contents that `encode_sample` never writes.
    """
    try:
        values = parse_json(members["json"])
        features = {
            suffix.removesuffix(".npy"): parse_npy(content)
            for suffix, content in members.items()
            if suffix.endswith(".npy")
        }
        return Sample(
            key=_text(values["key"]),
            image=None if values["image"] is None else members[values["image"]],
            turns=tuple(Turn(_text(turn["question"]), _text(turn["answer"])) for turn in values["turns"]),
            masks=tuple(_stored_rle(rle, where) for rle in values["masks"]),
            prompts={int(k): _stored_rle(rle, where) for k, rle in values["prompts"].items()},
            text=_text(values.get("text", "")),
            dropped_turns=int(values.get("dropped_turns", 0)),
            features=features,
            more_images=tuple(members[name] for name in values.get("more_images", ())),
            mask_images=tuple(int(number) for number in values.get("mask_images", ())),
            prompt_images={int(k): int(number) for k, number in values.get("prompt_images", {}).items()},
        )
    except BadSample:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise BadSample(f"{where}: it is no stored sample ({type(error).__name__}: {error!s:.200})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{reprlib.repr(value)} is no text")
    return value


def _stored_rle(rle: Any, where: str) -> RLE:
    """Raises BadSample for an RLE that does not fill the size that it states."""
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise BadSample(f"{where}: {reprlib.repr(rle)} is no RLE")
    return check_rle(rle, (size[0], size[1]), where)
