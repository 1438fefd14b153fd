"""The checksums of a checkpoint: written with it, and compared before anything is made of it.

checksums.json has the size and the SHA-256 of each other file: "state.json": {"bytes": 2161, "sha256": "2c26..."}.
Older checkpoints have none; the zip files in them have a CRC of their own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pixel_sail.durable import file_sha256, write_json
from pixel_sail.files import check_regular, read_json
from pixel_sail.folders.torch_files import MAX_FILE_BYTES
from pixel_sail.weights.engine_files import check_crc, check_engine_files, present_files
from pixel_sail.weights.run_folder import ENGINE, STATE, DamagedCheckpoint, TrainState, read_state, saved_steps, step_of

CHECKSUMS = "checksums.json"
MAX_CHECKSUMS_BYTES = 2**26  # 64 MiB
KINDS = {"bytes": int, "sha256": str}
THREADS = 8  # hashing files at the same time

Checksum = dict[str, Any]  # {"bytes": int, "sha256": hex digits}


class HashedFile:
    """A new file that computes its checksum as it is written, in a thread beside the writing.

    Leaving it raises the OSError that stopped the writing, which torch.save turns into an error without a number.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._digest, self._bytes = hashlib.sha256(), 0
        self._thread = ThreadPoolExecutor(1)
        self._problem: OSError | None = None

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()
        try:
            self._file.close()  # writes the rest
        except OSError as error:
            self._problem = self._problem or error
        if self._problem is not None:
            raise self._problem from None

    def write(self, data: Any) -> int:
        if self._problem is not None:
            raise self._problem
        hashing = self._thread.submit(self._digest.update, data)
        try:
            self._file.write(data)
        except OSError as error:
            self._problem = error
            raise
        finally:
            hashing.result()
        size = memoryview(data).nbytes
        self._bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()

    def checksum(self) -> Checksum:
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def checksum_of(path: Path) -> Checksum:
    """Raises OSError if the file cannot be read."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def write_checksums(checkpoint: Path, known: dict[str, Checksum]) -> None:
    """Write checksums.json; `known`: of the files that were hashed as they were written. The others are read."""
    names = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
    write_json(checkpoint / CHECKSUMS, {name: known.get(name) or checksum_of(checkpoint / name) for name in names})


def check_whole(checkpoint: Path, share: tuple[int, int] = (0, 1)) -> TrainState:
    """Compare a checkpoint with what was saved; its state.json. Raises DamagedCheckpoint that names the file.

    `share` (i, n): of the large files, only every n-th from the i-th on; so n processes share the work.
    """
    state = read_state(checkpoint)
    present_files(checkpoint, state)
    if os.path.lexists(checkpoint / CHECKSUMS):
        recorded = _read_checksums(checkpoint)
        _in_threads(lambda name: _compare(checkpoint / name, recorded[name]), sorted(recorded)[share[0] :: share[1]])
    else:
        files = sorted((checkpoint / ENGINE).glob("*.pt"))
        _in_threads(check_crc, files[share[0] :: share[1]])
    check_engine_files(checkpoint, state, share)
    return state


def newest_whole_before(checkpoint: Path) -> Path | None:
    """The newest checkpoint of the run that is older than `checkpoint` and whole. Those that are not are read, too."""
    step = step_of(checkpoint)
    older = [path for path in saved_steps(checkpoint.parent) if step is not None and step_of(path) < step]
    return next((path for path in reversed(older) if problem_of(path) is None), None)


def problem_of(checkpoint: Path) -> str | None:
    """What is damaged in a checkpoint; None if it is whole."""
    try:
        check_whole(checkpoint)
    except DamagedCheckpoint as error:
        return str(error)
    return None


def _in_threads(check: Any, items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        for _ in threads.map(check, items):
            pass


def _compare(path: Path, recorded: Checksum) -> None:
    size = check_regular(path, MAX_FILE_BYTES, DamagedCheckpoint)
    if size != recorded["bytes"]:
        raise DamagedCheckpoint(f"{path} is damaged: it has {size:,} bytes, but {recorded['bytes']:,} were saved")
    try:
        actual = checksum_of(path)
    except OSError as error:
        raise DamagedCheckpoint(f"cannot read {path}: {error.strerror}") from None
    if actual != recorded:
        raise DamagedCheckpoint(f"{path} is damaged: its bytes have changed since they were saved (SHA-256)")


def _read_checksums(checkpoint: Path) -> dict[str, Checksum]:
    path = checkpoint / CHECKSUMS
    check_regular(path, MAX_CHECKSUMS_BYTES, DamagedCheckpoint)
    values = read_json(path, error=DamagedCheckpoint)
    if not isinstance(values, dict) or not values:
        raise DamagedCheckpoint(f"{path} is damaged: it holds no checksums")
    for name, value in values.items():
        inside = not os.path.isabs(name) and ".." not in Path(name).parts
        if not (inside and isinstance(value, dict) and {key: type(part) for key, part in value.items()} == KINDS):
            raise DamagedCheckpoint(f"{path} is damaged: {name!r:.100} has no checksum")
    if STATE not in values or not any(name.startswith(f"{ENGINE}/") for name in values):
        raise DamagedCheckpoint(f"{path} is damaged: it does not name the files of a checkpoint")
    return values
