"""What `tools/prepare_data.py check` and `tools/inspect_data.py` print, and the records of the sources in the docs."""

import json
import re
import runpy
import sys
from types import ModuleType

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from source_fixtures import box_polygon, box_rle, draw_sample, write_images, write_json

from pixel_sail import scenes
from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data import check, source_table, sources
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources import RECORDS
from pixel_sail.data.sources.record import ExpectedFile


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("check") / "data"
    scenes.generate(out, 15, 0, 96, workers=1)
    return out


def _tool(monkeypatch, name, *args):
    """Runs a tool in this process: starting Python anew takes longer than all it does."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")


def test_every_source_has_one_record_and_is_checked():
    names = [record.name for record in RECORDS]
    assert len(set(names)) == len(names) and set(check.CHECKED) == set(names) - {
        "shards",
        "hf",
    }  # no part of a data root
    for record in RECORDS:
        assert record.sample and record.turn and record.splits
        assert record.splits == ("train",) or not record.train_only
        assert all(record.files_of(split) for split in record.splits) == bool(record.files)


def test_a_file_is_the_first_of_its_places_that_exists(tmp_path):
    file = ExpectedFile("a/{split}.json", other_places=("b/{split}.json",))
    with pytest.raises(DatasetError, match=f"^no file {tmp_path}/a/val.json or {tmp_path}/b/val.json$"):
        file.find(tmp_path, "val")
    for folder in ("b", "a"):
        write_json(tmp_path / folder / "val.json", [])
        assert file.find(tmp_path, "val") == tmp_path / folder / "val.json" == file.path(tmp_path, "val")


def test_each_dataset_is_found_counted_and_decoded(drawn):
    findings = {(finding.source, finding.split): finding for finding in check.check_root(drawn, 2)}
    missing = {key for key, finding in findings.items() if finding.missing}
    plus = {("refcoco+", split) for split in ("train", "val", "testA", "testB")}
    elsewhere = ("reason_seg_explained", "refcocog_mdetr_captions", "llava_mix665k", "ade20k", "coco_stuff")
    elsewhere += ("mapillary", "paco_lvis", "pascal_part", "jsonl")  # formats that `scenes` does not draw
    elsewhere += ("image_text", "text")  # or only when it is asked to
    undrawn = {(name, split) for name in elsewhere for split in sources.source_record(name).splits}
    assert missing == plus | {("refcoco+_captions", "train"), ("llava", "val")} | undrawn
    # one of the few held-out images may have nothing of a kind
    broken = {key for key, finding in findings.items() if finding.errors}
    assert broken <= {("muse", "test_many"), ("reason_seg", "val"), ("reason_seg", "test")}
    for key, finding in findings.items():
        if key not in missing | broken:
            assert finding.samples > 0 and finding.decoded == min(2, finding.samples), key
    assert findings["refcoco", "train"].samples == 12 and findings["muse", "train"].samples == 12


def test_missing_misshapen_and_undecodable(tmp_path, monkeypatch, capsys):
    root = tmp_path
    write_images(root / "images/train2017", "0.jpg", "1.jpg")
    finding = check.check_source(root, "muse", "train", 3)
    assert finding.missing
    places = f"{root}/muse/MUSE_train.json or {root}/muse/muse_train.json"
    assert check.report(finding, 3) == [f"missing  {'muse:train':34} expected {places}"]
    write_json(root / "muse/MUSE_train.json", {})
    finding = check.check_source(root, "muse", "train", 3)
    (line,) = check.report(finding, 3)
    assert not finding.missing and "BROKEN" in line and "holds a dict" in line

    entry = {"height": 30, "width": 40, "ann_list": [], "questions": ["a"], "text_answers": ["{seg}"]}
    good = entry | {"file_name": "0.jpg", "answers": [[{"segmentation": box_rle(0, 0)}]]}
    torn = entry | {"file_name": "1.jpg", "answers": [[{"segmentation": box_polygon(0, 0)}]]}
    gone = good | {"file_name": "2.jpg"}
    write_json(root / "muse/MUSE_train.json", [good, torn, gone])
    (root / "images/train2017/1.jpg").write_bytes(b"no image")
    finding = check.check_source(root, "muse", "train", 3)
    assert (finding.samples, finding.decoded, len(finding.errors), len(finding.left_out)) == (2, 1, 1, 1)
    lines = "\n".join(check.report(finding, 3))
    assert "2 samples, 1 decoded, 1 problems" in lines and "cannot be used: muse/train/1: cannot decode" in lines
    Image.new("RGB", (7, 7)).save(root / "images/train2017/1.jpg")
    (error,) = check.check_source(root, "muse", "train", 3).errors
    assert error == "muse/train/1: a mask of [30, 40] on an image of [7, 7]"
    with pytest.raises(SystemExit, match="error: 1 of them cannot be used"):
        _tool(monkeypatch, "prepare_data.py", "check", "--root", root, "--source", "muse")
    printed = capsys.readouterr().out
    assert "missing  muse:test_many" in printed and "BROKEN   muse:train" in printed


def test_all_files_and_all_places_of_a_missing_dataset_are_named(tmp_path):
    (line,) = check.report(check.check_source(tmp_path, "refcocog", "val", 3), 3)
    folder = tmp_path / "refcocog"
    places = " or ".join(f"{folder}/refs({by}).p" for by in ("unc", "umd", "google"))
    assert line.endswith(f"expected {folder}/instances.json and {places}")


def test_a_file_without_a_split_is_no_error(dataset):
    finding = check.check_source(dataset, "refcoco", "testA", 3)
    assert finding.missing and "has no split 'testA'" in check.report(finding, 3)[0]
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
        REPOSITORY / "configs/scratch.yaml",
        "data.mixture=[{source: refcoco}, {source: perbench_mcq}, {source: llava}]",
    )
    _tool(monkeypatch, "inspect_data.py", config, f"data.root={drawn}", mixture, "--out", tmp_path, "--count", 12)
    text = (tmp_path / "scratch.txt").read_text()
    assert text.count(" tokens, patches (") == 12 and "perbench_train/mcq" in text and "<Prompt0>" in text


def test_the_tables_of_the_page_are_what_the_records_say(tmp_path):
    page = REPOSITORY / "data/README.md"
    text = page.read_text(encoding="utf-8")
    assert text == source_table.with_tables(text), "run: python -m pixel_sail.data.source_table data/README.md"
    assert all(f"`{record.name}`" in text for record in RECORDS)

    copy = tmp_path / "README.md"
    before, start, after = text.partition(source_table.START)
    copy.write_text(before + start + "old rows" + after[after.index(source_table.STOP) :], encoding="utf-8")
    source_table.rewrite(copy)
    assert copy.read_text(encoding="utf-8") == text
    with pytest.raises(DatasetError, match="the page needs the lines"):
        source_table.with_tables("no markers")


def test_the_example_of_the_docs_works(tmp_path, monkeypatch):
    """It is one file and one name in the tuple: opening, checking and the tables then know the source."""
    page = (REPOSITORY / "docs/add_a_dataset.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) < 60  # its record included
    module = ModuleType("meters")
    monkeypatch.setitem(sys.modules, "meters", module)
    exec(compile(code, "meters.py", "exec"), vars(module))
    write_images(tmp_path / "images/meters", "0001.jpg")
    write_json(tmp_path / "meters/train.json", [json.loads(entry), {"image": "0001.jpg"}])
    mixture = [MixtureEntry(source="meters")]
    data = DataConfig(root=tmp_path, mixture=mixture, expressions_per_image=5)
    with pytest.raises(ConfigError, match="unknown source 'meters'"):
        sources.open_source(mixture[0], data)

    for reader in (sources, source_table):
        monkeypatch.setattr(reader, "RECORDS", (*RECORDS, *module.RECORDS))
    source = sources.open_source(mixture[0], data)
    assert source.problems == ["meters/train/1: it has no 'height'"]
    sample = draw_sample(source)
    assert [turn.answer for turn in sample.turns if "[SEG]" in turn.answer]
    assert len(sample.masks) == 1 and len(sample.prompts) == 1
    finding = check.check_source(tmp_path, "meters", "train", 3)
    assert (finding.samples, finding.decoded, finding.errors) == (1, 1, ())
    assert check.check_source(tmp_path, "meters", "val", 3).missing
    assert "| `meters` | `meters/{split}.json` |" in source_table.source_tables()
