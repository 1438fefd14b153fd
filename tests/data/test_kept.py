"""Entries as bytes, kept files, and folders that are listed once: the same sources as without them."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_source import write_every_source
from source_fixtures import open_named, write_images

from pixel_sail.data.files import read_json
from pixel_sail.data.inside import is_file
from pixel_sail.data.sources import folders, kept
from pixel_sail.data.sources.columns import Entries
from pixel_sail.data.sources.conversations import Conversation
from pixel_sail.data.sources.folders import Folders
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.region_turns import RegionImage
from pixel_sail.types import BadSample, Turn

LARGE = ("coco_instance", "concepts", "refcoco", "refcocog_captions", "grefcoco")
LARGE += ("osprey_conversation", "llava_mix665k")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of kept files, also for the smallest annotation files."""
    monkeypatch.setattr(kept, "SMALLEST_BYTES", 0)
    monkeypatch.setenv(kept.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    write_every_source(tmp_path / "data")
    return tmp_path / "data"


def drawn(source) -> list[Any]:
    """All that can be seen of a source."""
    seen = [source.problems]
    for index in range(len(source)):
        seen += [source.key(index), source.image(index)]
        for seed in range(3):
            try:
                seen.append(source.sample(index, np.random.default_rng(seed)))
            except BadSample as error:
                seen.append(str(error))
    return seen


def test_every_source_is_the_same_from_a_kept_file(root, cache, monkeypatch):
    files = write_every_source(root.parent / "other")
    for name in files:
        source = name.split(",")[0]
        monkeypatch.setenv(kept.FOLDER_VARIABLE, "")
        plain = drawn(open_named(root, source, files[name][0]))
        monkeypatch.setenv(kept.FOLDER_VARIABLE, str(cache))
        assert drawn(open_named(root, source, files[name][0])) == plain
        assert drawn(open_named(root, source, files[name][0])) == plain
    assert {path.name.split("-")[0] for path in cache.glob("*.entries")} >= {
        *("coco_instance_train", "refcoco_train", "refcoco+_train", "refcocog_train", "grefcoco_train"),
        *("concepts_train", "osprey_conversation", "osprey_detail_description", "llava_train", "llava_mix665k"),
        *("muse_train", "sam_captions_train", "paco_lvis_train", "pascal_part_train", "refcocog_mdetr_captions_train"),
        *("grand_f_train", "grand_f_val", "open_psg_train", "refcocog_gcg_train", "flickr_gcg_train"),
        *("perbench_train_caption", "perbench_train_mcq", "perbench_train_vtres"),
        *("coco_panoptic_segments_train", "coco_semantic_train", "pix2cap_caption_train", "pix2cap_segment_train"),
    }


def test_images_in_a_new_folder_are_found(root, cache):
    entries = json.loads((root / "osprey/osprey_conversation.json").read_text())
    (root / "osprey/osprey_conversation.json").write_text(json.dumps([*entries, entries[0] | {"file_name": "new.jpg"}]))
    assert len(open_named(root, "osprey_conversation")) == len(entries)
    write_images(root / "val2017", "new.jpg")
    assert len(open_named(root, "osprey_conversation")) == len(entries) + 1


@pytest.mark.parametrize("source", LARGE)
def test_a_kept_file_replaces_reading(root, cache, monkeypatch, source):
    plain = drawn(open_named(root, source))

    def refused(*arguments):
        raise AssertionError("the annotations are read again")

    for place in ("coco_instance.read_json", "entries.read_json", "refer.load_plain_pickle", "grefer.read_json"):
        monkeypatch.setattr(f"pixel_sail.data.sources.{place}", refused)
    assert drawn(open_named(root, source)) == plain


@pytest.mark.parametrize("source", ["coco_instance", "refcoco", "llava_mix665k"])
def test_what_changed_is_read_again(root, cache, source):
    before = drawn(open_named(root, source))
    (kept_file,) = cache.glob("*.entries")
    first = kept_file.stat().st_mtime_ns
    for image in (root / "images").rglob("*.jpg"):
        if source != "refcoco":  # it looks for its images when they are drawn
            image.rename(image.with_suffix(".gone"))
    if source != "refcoco":
        with pytest.raises(Exception, match="nothing of .* can be used; first: .* no image"):
            open_named(root, source)
        for image in (root / "images").rglob("*.gone"):
            image.rename(image.with_suffix(".jpg"))
    for file in root.rglob("*.json"):
        os.utime(file)
    assert drawn(open_named(root, source)) == before
    assert kept_file.stat().st_mtime_ns > first


def test_other_code_reads_again(root, cache, monkeypatch):
    open_named(root, "llava_mix665k")
    (kept_file,) = cache.glob("*.entries")
    first = kept_file.stat().st_mtime_ns
    open_named(root, "llava_mix665k")
    assert kept_file.stat().st_mtime_ns == first
    monkeypatch.setattr(kept, "_code", lambda: "of tomorrow")
    open_named(root, "llava_mix665k")
    assert kept_file.stat().st_mtime_ns > first


def test_a_damaged_file_is_made_anew(root, cache, capsys):
    plain = drawn(open_named(root, "osprey_conversation"))
    (kept_file,) = cache.glob("*.entries")
    whole = kept_file.read_bytes()
    flipped = [bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in range(0, len(whole), 37)]
    cut = [whole[:length] for length in (0, 1, 20, 30, 60, len(whole) // 2, len(whole) - 1)]
    for damaged in (*flipped, *cut, whole + b"x", bytes(len(whole))):
        kept_file.write_bytes(damaged)
        assert drawn(open_named(root, "osprey_conversation")) == plain
        note = capsys.readouterr().err
        assert str(kept_file) in note and "damaged" in note and note.count("\n") == 1
        assert kept_file.read_bytes()[:-8] == whole[:-8]


def test_no_file_of_others(root, cache, tmp_path, capsys):
    plain = drawn(open_named(root, "llava_mix665k"))
    (kept_file,) = cache.glob("*.entries")
    kept_file.rename(tmp_path / "elsewhere")
    kept_file.symlink_to(tmp_path / "elsewhere")
    assert drawn(open_named(root, "llava_mix665k")) == plain
    assert not kept_file.is_symlink()  # replaced
    kept_file.unlink()
    os.mkfifo(kept_file)
    assert drawn(open_named(root, "llava_mix665k")) == plain
    cache.chmod(0o777)
    capsys.readouterr()
    assert drawn(open_named(root, "llava_mix665k")) == plain
    assert f"note: {cache} can be written to by others" in capsys.readouterr().err


def test_without_a_place_to_write(root, cache, monkeypatch, capsys):
    plain = drawn(open_named(root, "llava_mix665k"))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for path in cache.glob("*.entries"):
        path.unlink()
    monkeypatch.setattr(kept, "replaced_file", full)
    assert drawn(open_named(root, "llava_mix665k")) == plain
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    monkeypatch.setenv(kept.FOLDER_VARIABLE, str(root / "train.jsonl" / "cache"))  # a file is in the way
    assert drawn(open_named(root, "llava_mix665k")) == plain


@pytest.mark.parametrize("answer", ["a", "\ud83d", "é\0\x7f", ("a", "b"), float("nan"), {1: 2}, 2**70, True, b"b"])
def test_entries_come_back_as_they_were_or_are_not_kept(cache, tmp_path, answer):
    (tmp_path / "file").touch()
    entry = Conversation("k", None, (Turn("q", "a"),), ([1.0, 2, answer], {"size": [1, 2]}), (3, 4))
    for _ in range(2):
        entries = kept_entries("n", (tmp_path / "file",), Folders(), Conversation, [], lambda: [entry])
        assert repr(entries[0]) == repr(entry)
        assert entries.key(0) == "k" and entries.path(0) is None
    is_kept = not isinstance(answer, tuple | dict | bytes | float)
    assert bool(list(cache.glob("*.entries"))) == is_kept


def test_generic_entries(cache, tmp_path):
    @dataclass(frozen=True)
    class Thing:
        span: tuple[int, int] | None
        raw: Any

    globals()["Thing"] = Thing
    (tmp_path / "file").touch()
    entries = [RegionImage(f"k{n}", Path(f"a/{n}"), (Thing((n, 2), [n]), Thing(None, None))) for n in range(5)]
    for _ in range(2):
        kept_ones = kept_entries("n", (tmp_path / "file",), Folders(), RegionImage[Thing], [], lambda: entries)
        assert list(kept_ones) == entries
    assert kept_ones[-1] == entries[-1]
    for index in (5, -6):
        for ask in (kept_ones.__getitem__, kept_ones.key, kept_ones.path):
            with pytest.raises(IndexError):
                ask(index)


def test_one_process_reads_for_all(cache, tmp_path):
    (tmp_path / "file").touch()
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(3), fork.Queue()

    def work() -> None:
        start.wait()
        problems: list[str] = []

        def read():
            with (tmp_path / "read").open("a") as file:
                file.write("x")
            problems.append("p")
            return [Conversation(str(n), None, ()) for n in range(1000)]

        entries = kept_entries("n", (tmp_path / "file",), Folders(), Conversation, problems, read)
        results.put((len(entries), entries.key(999), problems))

    children = [fork.Process(target=work) for _ in range(3)]
    for child in children:
        child.start()
    assert [results.get(timeout=20) for _ in children] == [(1000, "999", ["p"])] * 3
    for child in children:
        child.join()
    assert (tmp_path / "read").read_text() == "x"


def test_packed_entries_take_no_object_each():
    entries = [Conversation(f"k\ud800{n}", Path(f"i{n}"), (Turn("q", "a"),)) for n in range(3)]
    packed = Entries.packed(entries)
    assert list(packed) == entries and packed[0] is not packed[0]
    assert [packed.key(n) for n in range(3)] == [entry.key for entry in entries]
    assert [packed.path(n) for n in range(3)] == [entry.path for entry in entries]


def test_folders_answer_as_the_file_system_does(tmp_path, monkeypatch):
    write_images(tmp_path / "a/b", "1.jpg", "é.jpg")
    (tmp_path / "a/b/folder").mkdir()
    (tmp_path / "a/b/link").symlink_to("1.jpg")
    (tmp_path / "a/b/broken").symlink_to("nothing")
    (tmp_path / "a/b/loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to("a/b")
    names = ("1.jpg", "é.jpg", "e.jpg", "1.JPG", "folder", "link", "broken", "loop", "x" * 300, ".", "1.jpg/x")
    parents = ("a/b", "linked", "a", "none", "none/x", "a/b/1.jpg", "y" * 300, "a/b/loop")

    def answer(ask, path):
        try:
            return ask(path, "here")
        except BadSample as error:
            return str(error)

    for limit in (1, 3, 1000):
        monkeypatch.setattr(folders, "ASKED_ONE_BY_ONE", limit)
        asked = Folders()
        for parent, name in itertools.product(parents, names):
            path = tmp_path / parent / name
            assert answer(asked.has_file, path) == answer(is_file, path), (limit, path)


def test_many_images_are_not_asked_for_one_by_one(root, monkeypatch):
    path = root / "llava/llava_v1_5_mix665k.json"
    (entry,) = read_json(path)
    names = [f"{number:012d}.jpg" for number in range(1000)]
    for name in names:
        (root / "images/train2017" / name).touch()
    path.write_text(json.dumps([entry | {"image": f"coco/train2017/{name}"} for name in names]))
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *arguments, **more: asked.append(arguments) or stat(*arguments, **more))
    assert len(open_named(root, "llava_mix665k")) == 1000
    monkeypatch.undo()
    assert len(asked) < 4 * folders.ASKED_ONE_BY_ONE  # three folders may have them; then these are listed
