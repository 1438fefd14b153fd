"""Whether files are in folders, without asking the file system for each of a hundred thousand."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pixel_sail.data.inside import is_file

ASKED_ONE_BY_ONE = 200  # files of a folder that are asked for one by one; then the whole folder is listed
_CHANGED = -1  # the state of a folder that changed while it was read; no file system has it
_NAME_BYTES = 255  # of a file system; it refuses to look for a longer one


@dataclass
class _Folder:
    state: int | None  # before anything was asked
    is_there: bool
    asked: int = 0
    files: frozenset[str] | None = None  # regular files; None: not listed
    others: frozenset[str] = frozenset()  # links, folders, ...: what a link leads to is asked for each time


@dataclass
class Folders:
    """The folders of one dataset while its annotations are read."""

    _folders: dict[str, _Folder] = field(default_factory=dict)

    def has_file(self, path: Path, where: str) -> bool:
        """Whether a regular file is there. Raises BadSample, beginning with `where`, where that cannot be found out."""
        parent, name = os.path.split(path)
        folder = self._folders.get(parent)
        if folder is None:
            folder = self._add(parent)
        if not folder.is_there:
            return False
        folder.asked += 1
        if folder.asked == ASKED_ONE_BY_ONE:
            _list(folder, parent)
        if folder.files is None or name in folder.others or len(os.fsencode(name)) > _NAME_BYTES:
            return is_file(path, where)
        return name in folder.files

    def watch(self, folder: Path) -> None:
        """Adds a folder to `states`, of which no single file is asked for."""
        self._add(str(folder))

    def states(self) -> list[tuple[str, int | None]]:
        """Each folder that was asked for, and its `folder_state` before anything was asked."""
        return [(path, folder.state) for path, folder in self._folders.items()]

    def add_states(self, states: list[tuple[str, int | None]]) -> None:
        """The `states` of another process. A folder that has changed meanwhile will differ from every later state."""
        for path, state in states:
            folder = self._folders.get(path) or self._add(path)
            folder.state = state if folder.state == state else _CHANGED

    def _add(self, path: str) -> _Folder:
        folder = self._folders[path] = _Folder(folder_state(path), _is_there(path))
        return folder


def folder_state(folder: str) -> int | None:
    """When a name in a folder last came or went (ns). None if it is not there, or cannot be read."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _is_there(folder: str) -> bool:
    """Also where that cannot be found out: whoever asks for a file of it is told why."""
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def _list(folder: _Folder, path: str) -> None:
    """Lists a folder, unless it cannot be: its files are asked for one by one then."""
    try:
        with os.scandir(path) as listed:
            plain = {entry.name: entry.is_file(follow_symlinks=False) for entry in listed}
    except OSError:
        return
    folder.files = frozenset(name for name, is_regular in plain.items() if is_regular)
    folder.others = frozenset(name for name, is_regular in plain.items() if not is_regular)
