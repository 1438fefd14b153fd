"""What a broken download leaves, or an edit: one message that names the file, before anything large is allocated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import call_main, load_tool
from tiny_base import save_base
from tiny_export import edit_json, edit_weights, save_export

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.errors import WeightsError
from pixel_sail.folders.load import load_config, load_tokenizer
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.language_model import from_language_model, plan_language_model

PARTS = Architecture(patch_size=8, mask_stride=4, mask_dim=16, max_side_px=64)
QUESTION = "Segment {expression}."
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (lambda path: path.write_text(LFS), "is a git-LFS pointer, not the file itself: run `git lfs pull`"),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "is a web page, not the file itself"),
    "empty": (lambda path: path.write_bytes(b""), "is empty: the download was broken off"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), "is not valid JSON|is damaged or not complete"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; a file is expected there"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is a named pipe; a file is expected there"),
    "lost link": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "no file |is missing|needs config.json"),
}
JSON_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "list": (lambda path: path.write_text("[1]"), r"must be a JSON object \{...\}, it is a list"),
    "deep": (lambda path: path.write_text('{"a":' * 9999 + "1" + "}" * 9999), "nested too deep"),
    "latin": (lambda path: path.write_bytes(b'{"a": "\xe9\xe8"}'), "the text is not UTF-8"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds export/ and base/."""
    root = tmp_path_factory.mktemp("whole")
    save_export(root / "export")
    save_base(root / "base")
    return root


@pytest.fixture
def export(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "export", tmp_path / "export"))


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "base", tmp_path / "base"))


def test_a_whole_folder_loads(export: Path) -> None:
    assert Predictor.from_pretrained(export, "cpu").chat(None, "What is it?")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_broken_downloads(export: Path, base: Path, name: str, damage: str) -> None:
    break_file, message = DAMAGES[damage]
    break_file(export / name)
    with pytest.raises(WeightsError, match=message) as refused:
        Predictor.from_pretrained(export, "cpu")
    assert name in str(refused.value)
    break_file(base / name)
    for load in (
        lambda: plan_language_model(base, PARTS, QUESTION),
        lambda: from_language_model(ModelSection(base=str(base)), PARTS, QUESTION),
    ):
        with pytest.raises(WeightsError, match=message) as refused:
            load()
        assert name in str(refused.value)


@pytest.mark.parametrize("damage", JSON_DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_what_is_no_settings_file(export: Path, name: str, damage: str) -> None:
    break_file, message = JSON_DAMAGES[damage]
    break_file(export / name)
    with pytest.raises(WeightsError, match=message) as refused:
        load_config(export), load_tokenizer(export)
    assert name in str(refused.value)


def test_an_empty_tokenizer_is_not_taken(export: Path, base: Path) -> None:
    """transformers silently makes a tokenizer without words from a folder that has tokenizer_config.json alone."""
    for folder in (export, base):
        (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer: it needs tokenizer.json"):
        load_tokenizer(export)
    for load in (
        lambda: plan_language_model(base, PARTS, QUESTION),
        lambda: from_language_model(ModelSection(base=str(base)), PARTS, QUESTION),
    ):
        with pytest.raises(WeightsError, match=r"has no tokenizer: it needs tokenizer.json"):
            load()


def test_a_tokenizer_that_knows_no_word(export: Path) -> None:
    edit_json(export / "tokenizer.json", lambda values: values["model"].update(vocab={}, merges=[]))
    with pytest.raises(WeightsError, match="the tokenizer in .* knows no word|cannot be loaded"):
        load_tokenizer(export)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../model.safetensors"}, r"index.json names '../model.safetensors': a file name .* without a folder"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd': a file name"),
        ({"a": "x.bin"}, "names 'x.bin': a file name that ends in .safetensors"),
        ({"a": 7}, "a file name that ends in .safetensors"),
        ({"a": "other.safetensors"}, "lacks other.safetensors, which .*index.json names: download them too"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
    ],
)
def test_an_index_that_leads_astray(export: Path, weight_map: object, message: str) -> None:
    (export / "model.safetensors").rename(export.parent / "model.safetensors")
    (export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=message):
        WeightFiles(export)


def test_absurd_headers(export: Path) -> None:
    file = export / "model.safetensors"
    file.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match="model.safetensors is damaged or not complete: .*; download it again"):
        Predictor.from_pretrained(export, "cpu")
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(WeightsError, match="model.safetensors is damaged or not complete"):
        Predictor.from_pretrained(export, "cpu")


def test_tables_that_are_tied_and_differ(export: Path) -> None:
    embed, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    edit_weights(export, lambda tensors: tensors.update({head: tensors[embed].clone()}))
    Predictor.from_pretrained(export, "cpu")  # some programs write a tied table twice
    edit_weights(export, lambda tensors: tensors.update({head: tensors[head] + 1}))
    with pytest.raises(WeightsError, match=r"lm_head.weight and .*embed_tokens.weight differ, but config.json ties"):
        Predictor.from_pretrained(export, "cpu")


def test_quantized_weights_are_named(export: Path) -> None:
    name = "language_model.model.norm.weight"
    edit_weights(export, lambda tensors: tensors.update({name: tensors[name].char()}))
    with pytest.raises(WeightsError, match=f"{name} is I8; give unquantized weights"):
        Predictor.from_pretrained(export, "cpu")


@pytest.mark.parametrize("tool", ["predict", "demo", "test", "export", "convert", "bench"])
def test_every_tool_says_it_in_a_line(tool: str, export: Path, tmp_path: Path, monkeypatch) -> None:
    (export / "model.safetensors").write_text(LFS)
    image, out = Path("docs/images/front.jpg").absolute(), tmp_path / "out"
    arguments = {
        "predict": [export, "--image", image, "--text", "cup", "--out", out],
        "demo": [export],
        "test": [export, "--benchmark", "refcoco:val", "--data-root", tmp_path, "--out", out],
        "export": [export, "--out", out],
        "convert": ["language-model", export, "--out", out],
        "bench": ["score", export, "--data-root", tmp_path],
    }[tool]
    module = load_tool(tool)
    if tool == "test":
        monkeypatch.setattr("pixel_sail.commands.work.test._open", lambda name, arguments, is_first: None)
    if tool == "demo":
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(SystemExit, match="^error: .*model.safetensors is a git-LFS pointer") as stopped:
        call_main(monkeypatch, module, *arguments)
    assert "\n" not in str(stopped.value.code) and not (out / "config.json").exists()


def test_a_tokenizer_whose_replacements_explode(export: Path) -> None:
    """21 rules turn a letter into two million; more end the process, which nothing can catch."""
    rules = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 21
    edit_json(
        export / "tokenizer.json", lambda values: values.update(normalizer={"type": "Sequence", "normalizers": rules})
    )
    with pytest.raises(WeightsError, match="replacements of its normalizer make a text more than 1000 times longer"):
        load_tokenizer(export)


def test_a_tokenizer_whose_pattern_does_not_end(export: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    edit_json(export / "tokenizer.json", lambda values: values.update(pre_tokenizer=split))
    with pytest.raises(WeightsError, match="the tokenizer in .* cannot be loaded: PanicException: .*retry-limit"):
        load_tokenizer(export)
