"""Features of a frozen expert on disk, looked up by the content of the image file. Written by tools/cache_expert.py:

    <cache>/
      manifest.json               what the features were made with; their statistics once every image is stored
      00000-of-00002.features     float16 (C, h, w) of one image after another, written by process 0 of 2
      00000-of-00002.index        one RECORD per image: its sha256 and where its features are

Features are written and synced before their records, so that whatever an index names is complete. An image that many
samples share is stored once. A changed image has another digest and is not found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pixel_sail.architecture import Architecture
from pixel_sail.config import ConfigError, ExpertConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import check_regular, read_bytes, read_json
from pixel_sail.data.image import seen_size
from pixel_sail.durable import PARTIAL, differences, file_sha256, replaced_file, sync_descriptor
from pixel_sail.locks import Busy, locked
from pixel_sail.types import BadSample
from pixel_sail.writable import writing_into

MANIFEST = "manifest.json"
VERSION = 1
FLUSH_EVERY = 64  # images whose features a kill may lose
MAX_FEATURE_BYTES = 2**50
MAX_WIDTH, MAX_SIDE = 2**16, 2**16  # channels, and cells of a side, of the features of an image
RECORD = np.dtype([("image", "S64"), ("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc32", "<u4")])


def image_digest(image: Path | bytes) -> str:
    """sha256 (hex) of the encoded image. Raises BadSample for a file that cannot be read."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    try:
        return file_sha256(image)
    except OSError as error:
        raise BadSample(f"cannot read the image file {image}: {error.strerror}") from None


def student_grid(size_wh: tuple[int, int], expert: ExpertConfig, architecture: Architecture) -> tuple[int, int]:
    """(h, w) of the student's features that are compared with the expert's, for an image of `size_wh` pixels."""
    width, height = seen_size(size_wh, architecture)
    cell_px = architecture.mask_stride if expert.at == "mask_features" else architecture.patch_size
    return height // cell_px, width // cell_px


def made_with(expert: ExpertConfig, architecture: Architecture) -> dict[str, Any]:
    """The settings, apart from the expert's weights, that determine the stored features of an image."""
    resize_by = architecture.resize_by  # older caches have no such key
    other_rule = {} if resize_by == "longer_side" else {"resize_by": resize_by}
    return other_rule | {
        "kind": expert.kind,
        "at": expert.at,
        "size_px": expert.size_px,
        "fit": expert.fit,
        "patch_size": architecture.patch_size,
        "max_side_px": architecture.max_side_px,
        "mask_stride": architecture.mask_stride if expert.at == "mask_features" else None,
    }


def check_made_with(
    manifest: dict[str, Any], where: str, expert: ExpertConfig, architecture: Architecture, fingerprint: str
) -> None:
    """Raise ConfigError if features were made with other settings than a run needs; it names each difference.

    `where` says in the message which features these are; `fingerprint` is that of the run's expert.
    """
    if changes := differences(manifest["made_with"], made_with(expert, architecture) | {"fingerprint": fingerprint}):
        raise ConfigError(
            f"expert {expert.name!r}: {where} holds other features: {'; '.join(changes)}. Make them again in another "
            "folder, or set the config back"
        )


class FeatureCache:
    """A finished cache, memory-mapped; forked workers share it.

    Raises DatasetError for a folder that is not a cache, is not finished or has a truncated file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder)
        if "statistics" not in self.manifest:
            raise DatasetError(f"{folder} is not finished: repeat the tools/cache_expert.py command, it continues")
        self.width: int = self.manifest["width"]
        parts = [_open_part(path, self.width) for path in sorted(folder.glob("*.index"))]
        self._features = [features for _, features in parts]
        records = np.concatenate([np.empty(0, RECORD), *(records for records, _ in parts)])
        images, stored = self.manifest["statistics"]["images"], len(np.unique(records["image"]))
        if stored < images:
            raise DatasetError(
                f"{folder} has the features of {stored} images, and {MANIFEST} speaks of {images}: a file is missing "
                "or cut. Copy the folder again, or repeat the tools/cache_expert.py command, it makes what is missing"
            )
        part = np.repeat(np.arange(len(parts)), [len(records) for records, _ in parts])
        order = np.argsort(records["image"], kind="stable")
        self._records, self._part = records[order], part[order]

    def find(self, digest: str) -> np.ndarray | None:
        """Features (C, h, w) float16 of the image with this `image_digest`, or None. Raises BadSample if damaged."""
        key = np.array(digest, dtype="S64")
        row = int(np.searchsorted(self._records["image"], key))
        if row == len(self._records) or self._records["image"][row] != key:
            return None
        record = self._records[row]
        data = _data_of(record, self._features[self._part[row]], self.width)
        if zlib.crc32(data) != record["crc32"]:
            raise BadSample(f"the features of image {digest[:16]} in {self.folder} are damaged (CRC-32)")
        return np.frombuffer(data, dtype=np.float16).reshape(self.width, record["height"], record["width"])

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel, (C,) float32 each. Every image has the same weight."""
        statistics = self.manifest["statistics"]
        return np.array(statistics["mean"], dtype=np.float32), np.array(statistics["std"], dtype=np.float32)


class CacheWriter:
    """Appends features to one part of a cache: `process` of `processes`. A context manager.

    Half-written data of an earlier, killed process are dropped. Raises ConfigError for a folder whose features were
    made with other settings, DatasetError for damaged files, Busy if another process is writing the same part.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], process: int = 0, processes: int = 1):
        self.folder = folder
        self.width: int = manifest["width"]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{process:05d}-of-{processes:05d}.index"
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked_part(path))
            _write_or_compare_manifest(folder, manifest, path.stem)
            self._index = stack.enter_context(path.open("a+b"))
            self._features = stack.enter_context(path.with_suffix(".features").open("a+b"))
            records = whole_records(path, self.width)
            self._index.truncate(records.nbytes)
            self._offset = _end(records, self.width)
            self._features.truncate(self._offset)
            self._unflushed: list[np.ndarray] = []
            self._open = stack.pop_all()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with writing_into(self.folder), self._open:
            self.flush()

    def add(self, digest: str, features: np.ndarray) -> None:
        """`features`: (C, h, w) float16. Raises ConfigError if they overflowed."""
        if not np.isfinite(features).all():
            raise ConfigError(
                f"the features of image {digest[:16]} are not finite in float16, whose largest value is 65,504: the "
                "weights of the expert are damaged, or it cannot be distilled from at this place (`at`)"
            )
        data = np.ascontiguousarray(features, dtype=np.float16).tobytes()
        record = np.array([(digest, self._offset, *features.shape[1:], zlib.crc32(data))], dtype=RECORD)
        self._features.write(data)
        self._offset += len(data)
        self._unflushed.append(record)
        if len(self._unflushed) == FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Sync everything that was added to the disk."""
        if not self._unflushed:
            return
        _sync(self._features)
        self._index.write(np.concatenate(self._unflushed).tobytes())
        _sync(self._index)
        self._unflushed = []


def stored_digests(folder: Path, width: int) -> set[str]:
    """Digests of all images whose features are in the folder, in any part."""
    return {image.decode() for path in folder.glob("*.index") for image in whole_records(path, width)["image"].tolist()}


def finish(folder: Path, progress: bool) -> dict[str, Any]:
    """Read and check every feature once, write the statistics into the manifest and return them.

    Raises DatasetError for damaged features and for an empty folder, Busy while a process stores features.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder / "finish.lock", f"the cache {folder}"))
        for path in sorted(folder.glob("*.index")):
            stack.enter_context(_locked_part(path))
        statistics = _finish(folder, progress)
        for path in folder.glob(f"{MANIFEST}.*{PARTIAL}"):  # of killed processes
            path.unlink()
    return statistics


def _finish(folder: Path, progress: bool) -> dict[str, Any]:
    manifest = read_manifest(folder)
    width = manifest["width"]
    if manifest.get("statistics", {}).get("images") == len(stored_digests(folder, width)):
        return manifest["statistics"]  # nothing was added since
    images, stored_bytes = 0, 0
    total, squares = np.zeros(width), np.zeros(width)
    for data in tqdm(_unique(folder, width), desc="statistics", unit="image", disable=None if progress else True):
        values = np.frombuffer(data, dtype=np.float16).reshape(width, -1).astype(np.float64)
        total += values.mean(1)
        squares += np.square(values).mean(1)
        images += 1
        stored_bytes += len(data)
    if not images:
        raise DatasetError(f"there are no features in {folder}")
    mean = total / images
    std = np.sqrt(np.maximum(squares / images - mean**2, 0))
    statistics = {"images": images, "bytes": stored_bytes, "mean": mean.tolist(), "std": std.tolist()}
    write_manifest(folder, manifest | {"statistics": statistics}, "finish")
    return statistics


@contextlib.contextmanager
def _locked_part(index: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(index.with_suffix(".lock"), str(index)))
        except Busy as error:
            raise Busy(f"{error}. Give every process its own --shard") from None
        yield


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache. Raises DatasetError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise DatasetError(
            f"no features of an expert at {folder} ({MANIFEST} is missing); make them: "
            "tools/cache_expert.py CONFIG --expert NAME"
        )
    manifest = read_json(path)
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        raise DatasetError(f"{path} has version {version}, this code reads {VERSION}: make a new cache")
    if wrong := _wrong_in(manifest):
        raise DatasetError(f"{path} is damaged ({wrong}): copy it again, or make a new cache")
    return manifest


def _wrong_in(manifest: dict[str, Any]) -> str | None:
    """What no manifest has, in words."""
    made_with, width, statistics = (manifest.get(key) for key in ("made_with", "width", "statistics"))
    if not isinstance(made_with, dict) or not isinstance(made_with.get("fingerprint"), str):
        return "made_with"
    if not isinstance(manifest.get("path"), str):
        return "path"
    if type(width) is not int or not 1 <= width <= MAX_WIDTH:
        return f"width, which must be 1 to {MAX_WIDTH:,}"
    if "statistics" not in manifest:
        return None
    if not isinstance(statistics, dict) or any(type(statistics.get(key)) is not int for key in ("images", "bytes")):
        return "statistics"
    for key in ("mean", "std"):
        values = statistics.get(key)
        if not isinstance(values, list) or len(values) != width:
            return f"statistics.{key}, which must have {width} numbers"
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            return f"statistics.{key}: not all are finite numbers"
    return None


def write_manifest(folder: Path, manifest: dict[str, Any], writer: str) -> None:
    """Replace the manifest at once. `writer`: a name that no other process has at the same time."""
    with replaced_file(folder / MANIFEST, partial=folder / f"{MANIFEST}.{writer}{PARTIAL}") as file:
        json.dump(manifest, file, indent=1)


def whole_records(path: Path, width: int) -> np.ndarray:
    """The complete records of an index file: without a torn last one, and without any whose features are missing.

    Raises DatasetError for a record that no writer has written.
    """
    records, size = _records(path, width), _size(path.with_suffix(".features"))
    ends = records["offset"] + _bytes(records, width)
    return records[: int(np.searchsorted(ends, size, side="right"))]


def _records(path: Path, width: int) -> np.ndarray:
    """The records of an index file, each looked at. Raises DatasetError."""
    data = read_bytes(path)
    records = np.frombuffer(data, dtype=RECORD, count=len(data) // RECORD.itemsize)
    empty = records == np.zeros((), RECORD)
    while len(records) and empty[len(records) - 1]:  # a power cut may leave the size of a file without its bytes
        records = records[:-1]
    sides = [records["height"], records["width"]]
    good = np.logical_and.reduce([(side >= 1) & (side <= MAX_SIDE) for side in sides])
    ends = np.cumsum(_bytes(records, width))  # each image's features follow those of the one before
    good &= records["offset"] == np.concatenate([np.zeros(1, np.uint64), ends])[:-1]
    digests = np.ascontiguousarray(records["image"]).view(np.uint8).reshape(-1, 64)
    good &= np.isin(digests, np.frombuffer(b"0123456789abcdef", np.uint8)).all(1)
    if not good.all():
        raise DatasetError(
            f"{path} is damaged at record {int(np.argmin(good))}: copy it again, or delete it and "
            f"{path.with_suffix('.features').name} and repeat the tools/cache_expert.py command"
        )
    return records


def _size(features: Path) -> int:
    return check_regular(features, max_bytes=MAX_FEATURE_BYTES) if os.path.lexists(features) else 0


def _unique(folder: Path, width: int) -> Iterator[bytes]:
    """The features of every image once, checked against their CRC-32."""
    seen: set[bytes] = set()
    for path in sorted(folder.glob("*.index")):
        records, features = _open_part(path, width)
        for record in records:
            if record["image"] in seen:
                continue
            seen.add(record["image"])
            data = _data_of(record, features, width)
            if zlib.crc32(data) != record["crc32"]:
                raise DatasetError(
                    f"{path.with_suffix('.features')} is damaged at byte {record['offset']} (CRC-32): delete this file "
                    f"and {path.name} and repeat the command"
                )
            yield data


def _open_part(path: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Records and memory-mapped features. Raises DatasetError if the features end before the records do."""
    records, features = _records(path, width), path.with_suffix(".features")
    size = _size(features)
    needed = _end(records, width)
    if size < needed:
        raise DatasetError(
            f"{features} has {size} bytes instead of {needed}: copy it again, or delete it and {path.name} and repeat "
            "the tools/cache_expert.py command"
        )
    return records, np.memmap(features, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)


def _data_of(record: np.void, features: np.ndarray, width: int) -> bytes:
    start = int(record["offset"])
    return features[start : start + int(_bytes(record, width))].tobytes()


def _bytes(records: np.ndarray | np.void, width: int) -> np.ndarray:
    return np.uint64(2 * width) * records["height"].astype(np.uint64) * records["width"].astype(np.uint64)


def _end(records: np.ndarray, width: int) -> int:
    return int(records[-1]["offset"]) + int(_bytes(records[-1], width)) if len(records) else 0


def _write_or_compare_manifest(folder: Path, manifest: dict[str, Any], writer: str) -> None:
    """Write the manifest into a new folder. Raise ConfigError if the folder has one with other settings."""
    if not (folder / MANIFEST).exists():
        write_manifest(folder, {"version": VERSION} | manifest, writer)
    elif changes := differences(read_manifest(folder)["made_with"], manifest["made_with"]):
        raise ConfigError(
            f"{folder} holds other features: {'; '.join(changes)}. Name another folder as the cache, or delete this one"
        )


def _sync(file: Any) -> None:
    file.flush()
    sync_descriptor(file.fileno())
