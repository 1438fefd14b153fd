"""Lists that are read in pieces, by several processes: the same entries, problems and messages as at once."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_fixtures import SIZE, box_polygon, messages, open_named, write_images

from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data import mixture, sources
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources import kept, pieces
from pixel_sail.data.sources.conversations import Conversation
from pixel_sail.data.sources.entries import member, read_entries
from pixel_sail.data.sources.folders import Folders, folder_state
from pixel_sail.types import Turn


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kept, "SMALLEST_BYTES", 0)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 600)
    monkeypatch.setattr(pieces, "_workers", lambda: 0)
    monkeypatch.setenv(kept.FOLDER_VARIABLE, "")


def _osprey(number: int) -> dict[str, Any]:
    region = box_polygon(0, 0) if number % 5 else [[1, 1, 1, 1, 1, 1]]  # without a pixel
    annotation = [{"segmentation": region}, {"segmentation": box_polygon(5 * (number % 6), 0)}]
    name = f"{number % 4}.jpg"  # 3.jpg is not there
    talk = messages("What is <region1>?", "A cup.", "And <region2>?", f'A lid }}, {{"id": {number}.')
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    return {"id": number, "file_name": name, **sizes, "annotation": annotation, "conversations": talk}


def _opened(root: Path, source: str) -> list[Any]:
    opened = open_named(root, source)
    rng = np.random.default_rng(0)
    return [opened.problems, *((opened.key(n), opened.image(n), opened.sample(n, rng)) for n in range(len(opened)))]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_source_and_problems(tmp_path, monkeypatch, workers):
    write_images(tmp_path / "images/train2017", "0.jpg", "1.jpg", "2.jpg")
    path = tmp_path / "osprey/osprey_conversation.json"
    path.parent.mkdir()
    path.write_text(json.dumps([_osprey(number) for number in range(60)]))
    with monkeypatch.context() as patch:
        patch.setattr(kept, "SMALLEST_BYTES", 2**30)
        expected = _opened(tmp_path, "osprey_conversation")
    assert len(expected[0]) > 20 and len(expected) == 46

    def refused(*arguments):
        raise AssertionError("read at once")

    monkeypatch.setattr(pieces, "read_entries", refused)
    monkeypatch.setattr(pieces, "_workers", lambda: workers)
    assert _opened(tmp_path, "osprey_conversation") == expected
    monkeypatch.setenv(kept.FOLDER_VARIABLE, str(tmp_path / "cache"))
    assert _opened(tmp_path, "osprey_conversation") == expected
    monkeypatch.setattr(pieces, "_in_pieces", refused)
    assert _opened(tmp_path, "osprey_conversation") == expected  # kept
    (tmp_path / "images/train2017/2.jpg").unlink()  # processes that looked for images have told in which folders
    with pytest.raises(AssertionError, match="read at once"):
        _opened(tmp_path, "osprey_conversation")


def _random_list(rng: np.random.Generator) -> list[Any]:
    def value(depth: int) -> Any:
        kind = rng.integers(6)
        if kind == 0 and depth:
            return [value(depth - 1) for _ in range(rng.integers(3))]
        if kind == 1 and depth:
            return {key: value(depth - 1) for key in rng.permutation(["a", *"bcdefghijk"])[: rng.integers(3)].tolist()}
        return ['}, {"a": ', "x" * int(rng.integers(40)), "é\\", 1.5, None, '"]}'][rng.integers(6)]

    def entry() -> dict[str, Any]:
        return {"a": "k", "b": value(2)} if rng.integers(60) else {"c": value(2), "a": "k"}  # another first key

    return [entry() for _ in range(rng.integers(1, 40))]


def _outcome(read) -> Any:
    problems: list[str] = []
    try:
        return [*read(problems)], problems
    except DatasetError as error:
        return str(error), problems


def test_any_list_and_any_damage_is_as_at_once(tmp_path, monkeypatch):
    rng, path, in_pieces = np.random.default_rng(0), tmp_path / "list.json", 0
    styles = ({}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False})

    def parse(entry: Any, key: str) -> Conversation:
        return Conversation(key, None, (Turn(member(entry, "a", str, key), "x"),), (entry,))

    def kept_ones(problems: list[str]) -> Any:
        return pieces.kept_list(path, "n", Conversation, parse, problems, Folders())

    whole = pieces._in_pieces
    for number in range(200):
        monkeypatch.setattr(pieces, "PIECE_BYTES", int(rng.choice([200, 500, 1500])))
        text = json.dumps(_random_list(rng), **styles[number % 4]).encode()
        if number % 3 == 0:  # a byte less, more or other
            at = int(rng.integers(len(text)))
            text = text[:at] + [b"", b",", b'"', b"}", b"]", b"\xff", b" ", b"\f"][rng.integers(8)] + text[at + 1 :]
        path.write_bytes(text)
        in_pieces += whole(path, "n", Conversation, parse, [], Folders()) is not None if number % 3 else 0
        assert _outcome(kept_ones) == _outcome(lambda problems: read_entries(path, "n", parse, problems)), text
    assert in_pieces > 50
    for text in ("[%s]\f", "\f[%s]", "[\f%s]", "[%s\f]", "%s", "[%s]]", "[%s,]", "[,%s]", "\ufeff[%s]"):
        for between in (", ", ",\f", "\f, ", ",, "):
            path.write_text(text % between.join(['{"a": "k"}'] * 40))
            assert _outcome(kept_ones) == _outcome(lambda problems: read_entries(path, "n", parse, problems)), text


def test_entries_that_json_cannot_hold_are_read_at_once(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"a": "x" * 50, "number": float("nan")}] * 40))

    def parse(entry: Any, key: str) -> Conversation:
        return Conversation(key, None, (), (entry,))

    entries = pieces.kept_list(path, "n", Conversation, parse, [], Folders())
    assert repr(entries[39]) == repr(Conversation("n/39", None, (), ({"a": "x" * 50, "number": float("nan")},)))


def test_a_folder_that_changes_while_it_is_read_has_no_state(tmp_path):
    folders, states = Folders(), []
    for _ in range(2):
        other = Folders()
        other.watch(tmp_path)
        states.append(other.states())
        os.utime(tmp_path, ns=(1, 1))
    folders.add_states(states[0])
    assert folders.states() != [(str(tmp_path), folder_state(str(tmp_path)))]  # it is as before the change, or none
    folders.add_states(states[1])
    assert folders.states() == [(str(tmp_path), -1)]


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_the_ranks_of_a_machine_begin_with_different_sources(monkeypatch, variable):
    order: list[str] = []
    monkeypatch.setattr(mixture, "open_source", lambda entry, data: order.append(entry.source) or entry.source)
    names = ["refcoco", "refcocog", "muse", "osprey_part_level"]
    data = DataConfig(root=Path("x"), mixture=[MixtureEntry(source=name) for name in names])
    monkeypatch.setenv(variable, "2")
    monkeypatch.setenv("WORLD_SIZE", "16")
    firsts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        order.clear()
        assert mixture._open_sources(data) == names
        firsts.append(order[0])
    assert firsts == ["refcoco", "muse"]


def test_a_line_says_what_is_opened_for_long(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sources, "SAY_EVERY_S", 0.02)
    record = replace(sources.source_record("muse"), open=lambda *arguments: time.sleep(0.1))
    monkeypatch.setattr(sources, "source_record", lambda name: record)
    entry = MixtureEntry(source="muse")
    sources.open_source(entry, DataConfig(root=tmp_path, mixture=[entry]))
    assert "note: still opening muse (train) after 0 s\n" in capsys.readouterr().err
