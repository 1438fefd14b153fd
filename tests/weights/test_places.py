"""Where a model is written to: looked at before the work, with the path in the message."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from in_process import call_main, load_tool
from safetensors import SafetensorError
from tiny_export import save_export

from pixel_sail.errors import FileError
from pixel_sail.weights import files
from pixel_sail.weights.files import check_new
from pixel_sail.writable import check_writable

TOOLS = {
    "convert": ["language-model", "nowhere", "--out"],
    "export": ["nowhere", "--out"],
    "predict": ["nowhere", "--image", "nowhere.jpg", "--text", "a", "--out"],
    "inspect_data": ["nowhere.yaml", "--out"],
}


@pytest.fixture
def read_only(monkeypatch) -> None:
    """Every folder is read-only. (Permissions do not stop root, who runs tests in containers.)"""

    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


@pytest.mark.parametrize("tool", TOOLS)
def test_no_permission_is_said_before_the_work(tool: str, tmp_path: Path, read_only, monkeypatch) -> None:
    """Nothing that the command reads exists: whatever was looked at first would be named."""
    with pytest.raises(SystemExit, match=f"^error: cannot write into {tmp_path}/a/b: Read-only file system"):
        call_main(monkeypatch, load_tool(tool), *TOOLS[tool], tmp_path / "a" / "b")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write into .*file/out: .*file is not a folder; give another place"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(FileError, match="file is not empty; give another --out"):
        check_new(tmp_path / "file")
    check_new(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("tool", ["export", "convert"])
def test_a_full_disk_is_said_before_the_work(tool: str, tmp_path: Path, monkeypatch) -> None:
    export = save_export(tmp_path / "export")
    if tool == "convert":
        from tiny_base import save_base

        export = save_base(tmp_path / "base")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    arguments = [export] if tool == "export" else ["language-model", export]
    with pytest.raises(SystemExit, match=r"^error: .*/out would need about 0.0 GB, and 0.0 GB are free on"):
        call_main(monkeypatch, load_tool(tool), *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_disk_that_fills_while_writing(tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    export = save_export(tmp_path / "export")
    monkeypatch.setattr(files, "save_file", refuse)
    with pytest.raises(SystemExit, match="^error: .*out.partial: No space left on device; free some space"):
        call_main(monkeypatch, load_tool("export"), export, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "much"])
def test_sizes_that_no_file_has(size: str, tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        call_main(monkeypatch, load_tool("export"), tmp_path, "--out", tmp_path / "out", "--shard-gb", size)
    assert "--shard-gb: invalid shard_gb value" in capsys.readouterr().err


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_others_can_read_what_the_umask_lets_them(tmp_path: Path, mask: int, monkeypatch) -> None:
    """safetensors writes files for their owner alone."""
    export, before = save_export(tmp_path / "export"), os.umask(mask)
    try:
        call_main(monkeypatch, load_tool("export"), export, "--out", tmp_path / "out", "--shard-gb", 0.0001)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask} and "checksums.json" in modes
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in modes), "names that every file system has"
