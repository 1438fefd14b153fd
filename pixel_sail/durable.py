"""Files that a kill or a power cut cannot leave half written, and the question whether a folder belongs to this run.

* A file or folder is replaced all at once: written beside its place under a name that ends in `.partial`, synced to the
  disk, renamed. Whatever has its final name is whole.
* Lines of JSON are appended one by one; a last line without its newline is what a kill leaves, and is not read.
* Work goes on only where it was begun alike: `differences` compares what was recorded with what is asked for now.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from pixel_sail.errors import FileError
from pixel_sail.files import check_regular, parse_json, read_bytes
from pixel_sail.writable import writing_into

PARTIAL = ".partial"  # ends the name of what is not whole
PREVIOUS = f".previous{PARTIAL}"  # ends the name of a whole folder while another takes its place
SHOWN_CHARACTERS = 80  # of a value in a sentence about a difference
SHOWN_DIFFERENCES = 3  # in one line
SYNC_THREADS = 16
# What file systems answer that have no fsync of this kind (network, FUSE): there is nothing more to be done for them.
NO_FSYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)


def sync_descriptor(descriptor: int) -> None:
    """fsync, where the file system has one. Raises OSError where writing has failed (full disk, broken disk)."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def sync_path(path: Path) -> None:
    """fsync of a closed file, or of a folder: of the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync of every file and folder below `folder`, and of itself.

    Many at a time: a file system brings those that wait together to the disk together.
    """
    with ThreadPoolExecutor(SYNC_THREADS) as threads:
        for _ in threads.map(sync_path, (path for path in folder.rglob("*") if not path.is_symlink())):
            pass
    sync_path(folder)


def share_tree(folder: Path) -> None:
    """Gives every file below `folder` the mode that the umask allows, as if `open` had made it.

    safetensors and temporary files are 0600 otherwise, and nobody else could read what was written. `folder` must have
    been made by mkdir: its own mode shows the umask.
    """
    allowed = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        mode = path.stat().st_mode & 0o777
        shared = allowed & (mode | 0o666)
        if mode != shared:
            path.chmod(shared)


@contextlib.contextmanager
def rust_errors(path: Path) -> Iterator[None]:
    """Inside, safetensors and tokenizers may write: their errors of the disk become an OSError of `path`."""
    try:
        yield
    except Exception as error:  # of a class of their own, or plain Exception
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def partial_of(path: Path) -> Path:
    """Where `path` is written before it gets its name."""
    return path.with_name(path.name + PARTIAL)


@contextlib.contextmanager
def replaced_file(path: Path, mode: str = "w", partial: Path | None = None) -> Iterator[IO[Any]]:
    """An open file that becomes `path` when the block ends well; otherwise `path` stays as it was.

    `mode`: "w" (UTF-8 text), "wb" or "wb+". `partial`: another name to write under, where several processes may replace
    one file at the same time.
    """
    partial = partial or partial_of(path)
    clear(partial)  # what a kill left, or a link or pipe, which must not be written to
    try:
        with writing_into(path):
            with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                sync_descriptor(file.fileno())
            partial.replace(path)
            sync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces the file at once."""
    with replaced_file(path) as file:
        file.write(text)


def write_json(path: Path, values: Any, indent: int | None = 1) -> None:
    """Replaces the file at once."""
    write_text(path, json.dumps(values, indent=indent) + "\n")


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder that becomes `folder` when the block ends well; a folder of that name goes only then."""
    remove_leftovers_of(folder)
    partial = partial_of(folder)
    partial.mkdir(parents=True)
    try:
        with writing_into(folder):
            yield partial
            share_tree(partial)
            sync_tree(partial)
            publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, folder: Path) -> None:
    """Gives a synced folder its final name. What had that name before is deleted afterwards.

    A kill between the two renames leaves both folders whole under other names. `remove_leftovers` and the next
    `replaced_folder` give the older one its name back.
    """
    previous = folder.with_name(folder.name + PREVIOUS)
    if folder.exists():
        clear(previous)
        folder.rename(previous)
    partial.rename(folder)
    sync_path(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Deletes a folder. Renamed first: a kill while files are being deleted must not leave one that looks whole."""
    doomed = folder.with_name(f"{folder.name}.old{PARTIAL}")
    clear(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed writers left in `folder`; a folder that nothing has replaced yet gets its name back."""
    for path in folder.glob(f"*{PREVIOUS}"):
        _restore(path.with_name(path.name.removesuffix(PREVIOUS)))
    for path in folder.glob(f"*{PARTIAL}"):
        clear(path)


def clear(path: Path) -> None:
    """Deletes whatever has this name: a file, a link (not what it leads to), a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def leftovers_of(folder: Path) -> list[Path]:
    """What a killed `replaced_folder(folder)` left beside it, or a running one has there."""
    paths = (partial_of(folder), folder.with_name(folder.name + PREVIOUS))
    return [path for path in paths if os.path.lexists(path)]


def remove_leftovers_of(folder: Path) -> None:
    """Deletes what a killed `replaced_folder(folder)` left beside it; the older folder may get its name back."""
    _restore(folder)
    for path in leftovers_of(folder):
        clear(path)


def _restore(folder: Path) -> None:
    """Give a folder its name back if a kill came between the two renames of `publish_folder`."""
    previous = folder.with_name(folder.name + PREVIOUS)
    if previous.exists() and not folder.exists():
        previous.rename(folder)


def append_json_line(path: Path, values: Any) -> None:
    """Adds one line to the end of a file, or to a new file. A torn last line goes: it would spoil the new one.

    Raises FileError if there is something else than a file: to open a pipe would wait for ever.
    """
    if os.path.lexists(path):
        check_regular(path)
    with writing_into(path), path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(json.dumps(values).encode() + b"\n")


def _cut_torn_line(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that end in a newline, without it. No file: no lines.

    Raises FileError if there is something else than a file, or if it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    return read_bytes(path).decode("utf-8", errors="replace").split("\n")[:-1]


def read_json_lines(path: Path, number: str | None = None) -> list[Any]:
    """The values of the whole lines of a file. With `number`, each is an object with a number under that key.

    Raises FileError that names the file and the line.
    """
    values = []
    for row, line in enumerate(whole_lines(path), start=1):
        try:
            value = parse_json(line)
        except ValueError as error:
            raise FileError(f"{path}, line {row}: not valid JSON: {error}; mend or remove the line") from None
        if number is not None and not (isinstance(value, dict) and type(value.get(number)) in (int, float)):
            raise FileError(f"{path}, line {row}: no object with a number {number!r}; mend or remove the line")
        values.append(value)
    return values


def write_json_lines(path: Path, lines: Iterable[Any]) -> None:
    """Replaces the file at once."""
    with replaced_file(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def file_sha256(path: Path) -> str:
    """64 hex digits of the SHA-256 of a file, about 1 GB/s. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[bytes]) -> str:
    """16 hex digits of the SHA-256 of all parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def differences(before: Any, now: Any, is_free: Callable[[str], bool] = lambda key: False) -> list[str]:
    """A sentence for each value that differs: "train.lr was 0.1, is 0.2".

    Both are plain values, dicts nested as in a config. `is_free(dotted key)`: this value may differ.
    """
    return [
        f"{key} was {_shown(old)}, is {_shown(new)}"
        for key, old, new in _changed(_plain(before), _plain(now), "")
        if not is_free(key)
    ]


def few(changes: list[str]) -> str:
    """The first of some differences in one line, and "..." for the others."""
    return "; ".join([*changes[:SHOWN_DIFFERENCES], *(["..."] if len(changes) > SHOWN_DIFFERENCES else [])])


def _changed(before: Any, now: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(key, before.get(key), now.get(key)) for key in dict.fromkeys((*before, *now))]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [(prefix or "it", before, now)]
    return [change for key, a, b in pairs for change in _changed(a, b, f"{prefix}.{key}" if prefix else str(key))]


def _plain(values: Any) -> Any:
    """As it comes back from a JSON file: tuples are lists, keys are text."""
    return json.loads(json.dumps(values))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
