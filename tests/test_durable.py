"""Whatever is killed, whenever: a final name means whole, written lines are read, and runs are compared."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixel_sail.durable import (
    append_json_line,
    differences,
    discard_folder,
    fingerprint,
    publish_folder,
    read_json_lines,
    remove_leftovers,
    replaced_file,
    replaced_folder,
    rust_errors,
    whole_lines,
    write_json,
    write_json_lines,
    write_text,
)
from pixel_sail.errors import FileError

STEPS = ("fsync", "rename", "replace", "rmtree", "unlink", "rmdir")  # what changes the disk, beside writing


def killed(action: Callable[[], object], step: int) -> bool:
    """Whether a process doing `action` ended before its change number `step` of the disk, by a kill."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(step)
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def _die_at(step: int) -> None:
    calls = 0

    def watch(function: Callable) -> Callable:
        def watched(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > step:
                os.kill(os.getpid(), 9)
            return function(*arguments, **options)

        return watched

    for owner in (os, shutil):
        for name in STEPS:
            if hasattr(owner, name):
                setattr(owner, name, watch(getattr(owner, name)))


def until_it_survives(prepare: Callable[[], None], action: Callable[[], object], check: Callable[[], None]) -> int:
    """Kills `action` at each of its steps in turn and checks what it left; the number of kills."""
    for step in range(60):
        prepare()
        died = killed(action, step)
        check()
        if not died:
            return step
    raise AssertionError("it never came to an end")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that order writing on the disk."""
    calls: list[str] = []
    for name in ("fsync", "replace", "rename"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (calls.append(name), function(*a))[1])
    return calls


def test_contents_reach_the_disk_before_the_name(tmp_path: Path, events: list[str]) -> None:
    write_text(tmp_path / "file", "old")
    os.link(tmp_path / "file", tmp_path / "link")
    write_text(tmp_path / "file", "new")
    assert events == ["fsync", "replace", "fsync"] * 2
    assert (tmp_path / "link").read_text() == "old"  # replaced, and not written over
    del events[:]
    write_parts(tmp_path / "folder", "new")
    assert events == ["fsync"] * 5 + ["rename", "fsync"]  # three files and two folders; at last the new name


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_without_fsync_is_no_error(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network and FUSE file systems refuse it, of folders or of everything."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: failing_fsync(code))
    write_text(tmp_path / "file", "new")
    write_parts(tmp_path / "folder", "new")
    assert (tmp_path / "file").read_text() == "new" and contents(tmp_path / "folder") == {"new"}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_an_error(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")
    write_parts(tmp_path / "folder", "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: failing_fsync(code))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_text(tmp_path / "file", "new")
    assert caught.value.errno == code
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_parts(tmp_path / "folder", "new")
    assert str(tmp_path / "folder") in str(caught.value.filename)
    assert (tmp_path / "file").read_text() == "old" and contents(tmp_path / "folder") == {"old"}
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def failing_fsync(code: int) -> None:
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("size", [10, 100_000])  # fails when the file is closed, or before
def test_a_full_disk_names_the_file(size: int, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_large(folder: Path) -> None:
        with replaced_folder(folder) as partial, (partial / "file").open("w") as file:
            file.write("x" * size)

    actions = {
        "a.json": lambda path: write_json(path, "x" * size),
        "b.jsonl": lambda path: append_json_line(path, "x" * size),
        "c": write_large,
        "d": lambda path: save_in(path, size),
    }
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        for name, action in actions.items():
            with pytest.raises(OSError, match="File too large") as caught:
                action(tmp_path / name)
            assert caught.value.errno == errno.EFBIG
            assert str(tmp_path / name) in str(caught.value.filename)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(os.listdir(tmp_path)) <= {"b.jsonl"}


def save_in(folder: Path, size: int) -> None:
    with replaced_folder(folder) as partial, rust_errors(partial):
        save_file({"a": torch.zeros(size)}, partial / "model.safetensors")


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_of_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    """safetensors, like every writer that goes through a temporary file, makes files that only their owner can read."""
    before = os.umask(umask)
    try:
        with replaced_folder(tmp_path / "folder") as partial:
            (partial / "sub").mkdir()
            save_file({"a": torch.zeros(1)}, partial / "sub" / "model.safetensors")
            (partial / "script").touch(0o700)
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {"model.safetensors": mode, "script": mode | 0o100, "file": mode}


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyError), replaced_file(path, mode) as file:
        file.write("ha" if mode == "w" else b"ha")
        file.flush()
        assert path.read_text() == "old"
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with replaced_file(path, mode) as file:
        file.write("größer" if mode == "w" else "größer".encode())
    assert path.read_bytes() == "größer".encode() and os.listdir(tmp_path) == ["file"]


def test_a_file_of_another_process_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replaced_file(path, partial=tmp_path / "mine.partial") as mine:
        with replaced_file(path, partial=tmp_path / "theirs.partial") as theirs:
            mine.write("mine")
            theirs.write("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_a_kill_while_a_file_is_replaced(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", []

    def check() -> None:
        texts.append(path.read_text())
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == ["file"]

    kills = until_it_survives(lambda: write_text(path, "old"), lambda: write_json(path, "new"), check)
    assert kills >= 3 and sorted(set(texts), key=texts.index) == ["old", '"new"\n']


def write_parts(folder: Path, text: str) -> None:
    with replaced_folder(folder) as partial:
        for name in ("a", "b", "sub/c"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text)


def contents(folder: Path) -> set[str]:
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["a", "b", "sub", "sub/c"]
    return {path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_kill_while_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    """Before the kill is repaired a folder of that name is whole, too."""
    folder, texts, gone = tmp_path / "folder", [], 0

    def check() -> None:
        nonlocal gone
        gone += not folder.exists()
        assert not folder.exists() or len(contents(folder)) == 1
        remove_leftovers(tmp_path)
        (text,) = contents(folder)
        texts.append(text)
        assert os.listdir(tmp_path) == ["folder"]

    kills = until_it_survives(lambda: write_parts(folder, "old"), lambda: write_parts(folder, "new"), check)
    assert kills > 10 and sorted(set(texts), key=texts.index) == ["old", "new"]
    assert gone <= 1  # between the two renames


def test_an_exception_leaves_the_older_folder(tmp_path: Path) -> None:
    write_parts(tmp_path / "folder", "old")
    with pytest.raises(KeyError), replaced_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("new")
        raise KeyError
    assert contents(tmp_path / "folder") == {"old"} and os.listdir(tmp_path) == ["folder"]


def test_a_writer_after_a_kill_between_the_renames_does_not_lose_the_older_folder(tmp_path: Path) -> None:
    write_parts(tmp_path / "folder.previous.partial", "old")
    with pytest.raises(KeyError), replaced_folder(tmp_path / "folder"):
        raise KeyError
    assert contents(tmp_path / "folder") == {"old"} and os.listdir(tmp_path) == ["folder"]


def test_a_new_folder_begins_empty(tmp_path: Path) -> None:
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial/torn").touch()
    write_parts(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder") == {"new"}


def test_a_folder_that_is_discarded_is_whole_or_without_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def check() -> None:
        assert not folder.exists() or contents(folder) == {"old"}
        remove_leftovers(tmp_path)
        assert folder.exists() or os.listdir(tmp_path) == []

    assert until_it_survives(lambda: write_parts(folder, "old"), lambda: discard_folder(folder), check) > 2
    assert os.listdir(tmp_path) == []


def test_a_folder_is_published_over_leftovers(tmp_path: Path) -> None:
    for name in ("export.previous.partial", "export.old.partial", "export", "export.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish_folder(tmp_path / "export.partial", tmp_path / "export")
    assert (tmp_path / "export/file").read_text() == "export.partial"
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["export"]


def test_leftovers_go_and_the_rest_stays(tmp_path: Path) -> None:
    for name in ("a.partial", "kept", "partial"):
        (tmp_path / name).write_text("x")
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial/file").touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["kept", "partial"]


@pytest.mark.parametrize("odd", ["file", "folder", "link", "loop", "dangling", "pipe"])
def test_whatever_has_the_name_of_a_partial_goes(odd: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")

    def leave(name: str) -> None:
        path = tmp_path / f"{name}.partial"
        if odd == "file":
            path.touch()
        elif odd == "folder":
            (path / "sub").mkdir(parents=True)
        elif odd == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"link": tmp_path / "kept", "loop": path, "dangling": tmp_path / "nowhere"}[odd])

    for name in ("written", "file", "left"):
        leave(name)
    write_parts(tmp_path / "written", "new")
    write_text(tmp_path / "file", "new")
    remove_leftovers(tmp_path)
    assert contents(tmp_path / "written") == {"new"} and (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "kept/file").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "kept", "written"]


def test_lines_survive_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert whole_lines(path) == [] == read_json_lines(path)
    for values in ({"step": 1}, ["größer", None]):
        append_json_line(path, values)
    whole = path.read_bytes()
    for torn in (b'{"step": 3, "lo', b"\xff\xfe", b"{}"):  # the last is JSON, but its newline is not there
        path.write_bytes(whole + torn)
        assert read_json_lines(path) == [{"step": 1}, ["größer", None]]
        append_json_line(path, {"step": 3})
        assert read_json_lines(path) == [{"step": 1}, ["größer", None], {"step": 3}]
    path.write_bytes(b"torn")
    append_json_line(path, 1)
    assert path.read_bytes() == b"1\n"
    write_json_lines(path, [{"a": 1}, 2])
    assert path.read_text() == '{"a": 1}\n2\n'


def test_a_whole_line_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'1\n"\xff"\n{"a"\n')
    assert whole_lines(path) == ["1", '"\ufffd"', '{"a"']  # bytes that are no UTF-8 are replaced, and the rest is read
    with pytest.raises(FileError, match=r"lines\.jsonl, line 3: not valid JSON"):
        read_json_lines(path)
    path.write_text("1\n" + "[" * 100_000 + "\n")
    with pytest.raises(FileError, match=r"lines\.jsonl, line 2: not valid JSON: its values are nested too deep"):
        read_json_lines(path)


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": "4"}', '{"step": true}', "4", "null"])
def test_a_line_without_its_number_is_an_error(line: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 3}\n' + line + "\n")
    with pytest.raises(FileError, match=r"lines\.jsonl, line 2: no object with a number 'step'"):
        read_json_lines(path, number="step")


def test_what_is_no_file_is_neither_read_nor_appended_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (("pipe", "is a named pipe"), ("folder", "is a folder"), ("loop", "cannot read")):
        with pytest.raises(FileError, match=message):
            whole_lines(tmp_path / name)
        with pytest.raises(FileError, match=message):
            append_json_line(tmp_path / name, 1)


def test_fingerprint_is_sha256_of_all_parts() -> None:
    whole = hashlib.sha256(b"one two").hexdigest()[:16]
    assert fingerprint([b"one two"]) == fingerprint(iter((b"one", b"", b" two"))) == whole
    assert fingerprint([b"one", b"two"]) != whole


def test_differences_in_words() -> None:
    before = {"train": {"lr": 0.1, "betas": (0.9, 0.95)}, "data": [{"source": "a"}, {"source": "b"}], "gone": 1}
    now = {"train": {"lr": 0.2, "betas": [0.9, 0.99]}, "data": [{"source": "a"}, {"source": "c"}], "new": {"x": None}}
    assert differences(before, now) == [
        "train.lr was 0.1, is 0.2",
        "train.betas.1 was 0.95, is 0.99",
        'data.1.source was "b", is "c"',
        "gone was 1, is null",
        'new was null, is {"x": null}',
    ]
    assert differences(before, before) == [] == differences(before, json.loads(json.dumps(before)))
    assert differences({"a": [1, 2], 3: 4}, {"a": (1, 2), "3": 4}) == []
    assert differences({"a": [1, 2]}, {"a": [1, 2, 3]}) == ["a was [1, 2], is [1, 2, 3]"]
    assert differences({"a": {"b": 1}}, {"a": 1}) == ['a was {"b": 1}, is 1']
    assert differences({"a": None}, {}) == []  # a key that came later, at its default
    assert differences(1, 2) == ["it was 1, is 2"]
    (sentence,) = differences({"a": "x" * 500}, {"a": "y"})
    assert sentence == f'a was "{"x" * 76}..., is "y"'


def test_free_keys_may_differ() -> None:
    asked = []

    def is_free(key: str) -> bool:
        asked.append(key)
        return key == "run.dir"

    before, now = {"run": {"dir": "a", "seed": 0}, "same": 1}, {"run": {"dir": "b", "seed": 1}, "same": 1}
    assert differences(before, now, is_free) == ["run.seed was 0, is 1"]
    assert asked == ["run.dir", "run.seed"]
