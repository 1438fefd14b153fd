"""Adapter folders: what a LoRA run exports merged, PEFT's own loading and ours give from base and adapter alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from conftest import write_refer_dataset
from safetensors.torch import load_file, save_file
from tiny_run import tiny_config

from pixel_sail.errors import WeightsError
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.loop import train
from pixel_sail.weights.adapter import write_adapter


@pytest.fixture(scope="module", params=[0, 2], ids=["stage0", "stage2"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(a base, a LoRA run from it, the adapter of that run)."""
    folder = tmp_path_factory.mktemp("adapter")
    root = write_refer_dataset(folder / "root")
    for name in ("base", "tuned"):
        (folder / name).mkdir()
    train(tiny_config(folder / "base", root, "train.steps=1"))
    start = f"train.init_from={folder / 'base/run/export'}"
    lora = ["train.lora={rank: 4, alpha: 16}", "model.scratch=null", "train.steps=2", "train.lr=1e-2"]
    config = tiny_config(folder / "tuned", root, start, *lora, f"train.zero_stage={request.param}")
    train(config)
    write_adapter(folder / "tuned/run", folder / "adapter")
    return folder / "base/run/export", folder / "tuned/run", folder / "adapter"


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-6)


def test_base_and_adapter_are_the_merged_export(runs: tuple[Path, Path, Path]) -> None:
    base, run, adapter = runs
    merged = PixelSail.from_pretrained(run).state_dict()
    plain = PixelSail.from_pretrained(base).state_dict()
    assert sum(not torch.equal(plain[name], merged[name]) for name in plain) > 20
    assert_close(PixelSail.from_pretrained(base, adapter=adapter).state_dict(), merged)
    assert_close(PixelSail.from_pretrained(adapter).state_dict(), merged)  # it names its base
    sizes = [(folder / name).stat().st_size for folder, name in
             ((adapter, "adapter_model.safetensors"), (run / "export", "model.safetensors"))]  # fmt: skip
    assert sizes[0] < sizes[1]
    texts = [Predictor.from_pretrained(folder, "cpu").chat(None, "What?")[0].text for folder in (adapter, run)]
    assert texts[0] == texts[1]


def test_peft_reads_the_folder(runs: tuple[Path, Path, Path]) -> None:
    base, run, adapter = runs
    settings = peft.LoraConfig.from_pretrained(adapter)
    assert sorted(settings.modules_to_save) == ["fusion", "mask_head"] and settings.r == 4
    assert len(settings.target_modules) == 14 and settings.base_model_name_or_path == str(base)
    model = peft.PeftModel.from_pretrained(PixelSail.from_pretrained(base), adapter)
    assert_close(model.merge_and_unload().state_dict(), PixelSail.from_pretrained(run).state_dict())


def test_what_is_no_adapter_of_the_model(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, run, adapter = runs

    def message(change: dict, tensors: dict | None = None) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(adapter, folder)
        (folder / "checksums.json").unlink()
        path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        save_file(load_file(weights) | (tensors or {}), weights)
        with pytest.raises(WeightsError) as error:
            PixelSail.from_pretrained(folder)
        return str(error.value)

    first = "base_model.model.mask_head.extra.weight"
    assert "peft_type is 'IA3'; LORA is read" in message({"peft_type": "IA3"})
    assert "use_dora is set, which is not computed" in message({"use_dora": True})
    assert "r is 0 and lora_alpha 16" in message({"r": 0})
    assert "base_model_name_or_path is None; give" in message({"base_model_name_or_path": None})
    assert "and no model is there" in message({"base_model_name_or_path": str(tmp_path / "nowhere")})
    assert f"unexpected {first}" in message({}, {first: torch.zeros(2)})
    rows = "base_model.model.language_model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert "does not fit language_model.model.embed_tokens.weight" in message({}, {rows: torch.zeros(3, 5)})
    with pytest.raises(WeightsError, match="is an adapter itself"):
        PixelSail.from_pretrained(adapter, adapter=adapter)
    with pytest.raises(WeightsError, match="has no adapters: its run trained the weights themselves"):
        write_adapter(base.parent, tmp_path / "out")
    with pytest.raises(WeightsError, match="an export has no adapters: they are merged into it"):
        write_adapter(base, tmp_path / "out")
