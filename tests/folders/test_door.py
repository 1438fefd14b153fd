"""The only door: nobody else calls transformers' `from_pretrained`, and no code and no pickle of a folder is run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY
from tiny_base import save_base
from tiny_export import edit_json, save_export

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.errors import WeightsError
from pixel_sail.evaluate.pixfoundation.judge import local_model
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.language_model import from_language_model

OURS = {"Predictor", "PixelSail"}  # whose from_pretrained go through the door themselves
# The last is what transformers calls itself, for a user who trusts remote code.
DOOR = {"pixel_sail/folders/load.py", "pixel_sail/folders/find.py", "pixel_sail/model/pixel_sail.py",
        "pixel_sail/serve/remote.py"}  # fmt: skip
PARTS = Architecture(patch_size=8, mask_stride=4, mask_dim=16, max_side_px=64)


def load_base(folder: Path) -> None:
    from_language_model(ModelSection(base=str(folder)), PARTS, "Segment {expression}.")


def test_nobody_else_loads() -> None:
    loading = {"from_pretrained", "snapshot_download", "hf_hub_download", "load_state_dict_from_path"}
    for path in [*(REPOSITORY / "pixel_sail").rglob("*.py"), *(REPOSITORY / "tools").glob("*.py")]:
        name = str(path.relative_to(REPOSITORY))
        if name in DOOR:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in loading:
                owner = node.value.id if isinstance(node.value, ast.Name) else ast.unparse(node.value)
                assert owner in OURS, f"{name}, line {node.lineno}: load it through pixel_sail/folders"
            assert not (isinstance(node, ast.keyword) and node.arg == "trust_remote_code"), f"{name}: in the door alone"


class Writes:
    """A pickle that makes a file when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch):
    """Put code and pickles that leave a mark into a folder; nothing may ask on the terminal."""

    def asked(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    marker = tmp_path / "marker"

    def plant(folder: Path) -> Path:
        code = f"import os\nos.mkdir({str(marker)!r})\n"
        (folder / "evil.py").write_text(code)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code)
        auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"}
        edit_json(folder / "config.json", lambda values: values.update(auto_map=auto_map))
        tokenizer_map = {"AutoTokenizer": ["evil.T", "evil.T"]}
        edit_json(folder / "tokenizer_config.json", lambda values: values.update(auto_map=tokenizer_map))
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
            (folder / name).write_bytes(pickle.dumps(Writes(marker)))
        return marker

    return plant


def test_code_of_a_folder_is_not_run(tmp_path: Path, hostile, capsys) -> None:
    base, export = save_base(tmp_path / "base"), save_export(tmp_path / "export")
    marker = hostile(base)
    load_base(base)
    assert "names code of its own (auto_map); it is not run" in capsys.readouterr().err
    local_model(base, "cpu")("Which option?")
    shutil.rmtree(export / "custom_generate", ignore_errors=True)
    hostile(export)
    Predictor.from_pretrained(export, "cpu")
    assert not marker.exists()
    edit_json(base / "config.json", lambda values: values.update(model_type="evil"))
    with pytest.raises(WeightsError, match=r"model_type is 'evil', .*the code that it names \(auto_map\) is not run"):
        load_base(base)
    edit_json(base / "config.json", lambda values: values.pop("model_type"))
    with pytest.raises(WeightsError, match="model_type is None"):
        load_base(base)
    assert not marker.exists()


def test_pickles_are_not_opened(tmp_path: Path, hostile) -> None:
    base = save_base(tmp_path / "base")
    marker = hostile(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"needs at least one \*.safetensors .*save it as safetensors"):
        load_base(base)
    assert not marker.exists()


def test_an_adapter_names_no_other_folder(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc", "peft_type": "LORA"}))
    with pytest.raises(WeightsError, match="this is an adapter, not a model"):
        load_base(base)
