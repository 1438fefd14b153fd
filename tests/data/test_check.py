"""What `tools/prepare_data.py check` and `tools/inspect_data.py` say, and the example of docs/add_a_dataset.md."""

import json
import re
import runpy
import sys
from types import ModuleType

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from test_region_sources import _images, _polygon, _rle, _sample, _write

from pixel_sail import scenes
from pixel_sail.data import check
from pixel_sail.data.sources import NAMES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("check") / "data"
    scenes.generate(out, 15, 0, 96, workers=1)
    return out


def _tool(monkeypatch, name, *args):
    """Runs a tool in this process: starting Python anew takes longer than all it does."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")


def test_every_source_is_looked_for():
    assert set(check.EXPECTED) == set(NAMES) - {"shards"}


def test_what_is_there_is_counted_and_decoded(drawn):
    found = {(one.source, one.split): one for one in check.check_root(drawn, 2)}
    missing = {key for key, one in found.items() if one.missing}
    plus = {("refcoco+", split) for split in ("train", "val", "testA", "testB")}
    assert missing == plus | {("refcoco+_captions", "train"), ("llava", "val")}
    # one of the few held-out images may have nothing of a kind
    broken = {key for key, one in found.items() if one.errors}
    assert broken <= {("muse", "test_many"), ("reason_seg", "val"), ("reason_seg", "test")}
    for key, one in found.items():
        if key not in missing | broken:
            assert one.samples > 0 and one.decoded == min(2, one.samples), key
    assert found["refcoco", "train"].samples == 12 and found["muse", "train"].samples == 12


def test_missing_misshapen_and_undecodable(tmp_path, monkeypatch, capsys):
    root = tmp_path
    _images(root / "images/train2017", "0.jpg", "1.jpg")
    one = check.check_source(root, "muse", "train", 3)
    assert one.missing and check.report(one, 3) == [f"missing  {'muse:train':34} expected {root}/muse/MUSE_train.json"]
    _write(root / "muse/MUSE_train.json", {})
    one = check.check_source(root, "muse", "train", 3)
    assert not one.missing and "BROKEN" in check.report(one, 3)[0] and "holds a dict" in check.report(one, 3)[0]

    entry = {"height": 30, "width": 40, "ann_list": [], "questions": ["a"], "text_answers": ["{seg}"]}
    good = entry | {"file_name": "0.jpg", "answers": [[{"segmentation": _rle(0, 0)}]]}
    torn = entry | {"file_name": "1.jpg", "answers": [[{"segmentation": _polygon(0, 0)}]]}
    gone = good | {"file_name": "2.jpg"}
    _write(root / "muse/MUSE_train.json", [good, torn, gone])
    (root / "images/train2017/1.jpg").write_bytes(b"no image")
    one = check.check_source(root, "muse", "train", 3)
    assert (one.samples, one.decoded, len(one.errors), len(one.left_out)) == (2, 1, 1, 1)
    lines = "\n".join(check.report(one, 3))
    assert "2 samples, 1 decoded, 1 problems" in lines and "not decoded: muse/train/1: cannot decode" in lines
    Image.new("RGB", (7, 7)).save(root / "images/train2017/1.jpg")
    (error,) = check.check_source(root, "muse", "train", 3).errors
    assert error == "muse/train/1: a mask of [30, 40] on an image of [7, 7]"
    with pytest.raises(SystemExit, match="error: 1 of them cannot be used"):
        _tool(monkeypatch, "prepare_data.py", "check", "--root", root, "--source", "muse")
    said = capsys.readouterr().out
    assert "missing  muse:test_many" in said and "BROKEN   muse:train" in said


def test_a_file_without_a_split_is_no_error(dataset):
    one = check.check_source(dataset, "refcoco", "testA", 3)
    assert one.missing and "has no split 'testA'" in check.report(one, 3)[0]
    assert check.check_source(dataset, "refcoco", "val", 3).decoded == 3


def test_a_source_is_drawn_back(drawn, tmp_path, monkeypatch):
    _tool(monkeypatch, "inspect_data.py", "--source", "open_psg", "--root", drawn, "--out", tmp_path, "--count", 3)
    text = (tmp_path / "open_psg_train.txt").read_text()
    entries = json.loads((drawn / "GranDf/annotations/train/OpenPsgGCG_train.json").read_text())
    assert len(entries) == 3 == text.count("<vision><vpatch></vision>")
    for entry in entries:
        phrases = set(re.findall(r"<p> (.*?) </p> \[SEG\]", text))
        assert set(entry["groundings"]) <= phrases
    assert text.count(">>") == text.count("<<") == 3
    with Image.open(tmp_path / "open_psg_train.png") as page:
        assert len(np.unique(np.asarray(page).reshape(-1, 3), axis=0)) > 1000
    with pytest.raises(SystemExit, match="^error: no images under"):
        _tool(monkeypatch, "inspect_data.py", "--source", "muse", "--root", tmp_path, "--out", tmp_path)


def test_a_config_is_drawn_back(drawn, tmp_path, monkeypatch):
    config, mixture = (
        REPOSITORY / "configs/quickstart.yaml",
        "data.mixture=[{source: refcoco}, {source: perbench_mcq}, {source: llava}]",
    )
    _tool(monkeypatch, "inspect_data.py", config, f"data.root={drawn}", mixture, "--out", tmp_path, "--count", 12)
    text = (tmp_path / "quickstart.txt").read_text()
    assert text.count(" tokens, patches (") == 12 and "perbench_train/mcq" in text and "<Prompt0>" in text


def test_the_example_of_the_docs_works(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs/add_a_dataset.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) < 55
    module = ModuleType("meters")
    monkeypatch.setitem(sys.modules, "meters", module)
    exec(compile(code, "meters.py", "exec"), vars(module))
    _images(tmp_path / "images/meters", "0001.jpg")
    _write(tmp_path / "meters/train.json", [json.loads(entry), {"image": "0001.jpg"}])
    source = module.open_meters(tmp_path, "train", 5)
    assert source.problems == ["meters/train/1: it has no 'height'"]
    sample = _sample(source)
    assert [turn.answer for turn in sample.turns if "[SEG]" in turn.answer]
    assert len(sample.masks) == 1 and len(sample.prompts) == 1
