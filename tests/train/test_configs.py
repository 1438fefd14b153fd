"""Every config that we ship can be read, gives DeepSpeed a config, and takes two real steps at reduced size."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run  # (chooses the CPU)
import torch
from tiny_base import save_base
from tiny_expert import expert_values, save_expert
from transformers import AutoTokenizer

from pixel_sail.architecture import Architecture
from pixel_sail.config import REPOSITORY, ModelSection, build_config, load_config, save_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens
from pixel_sail.train.engine import deepspeed_config
from pixel_sail.train.loop import train
from pixel_sail.train.optim import lr_at
from pixel_sail.weights.convert.language_model import from_language_model, read_base
from pixel_sail.weights.convert.new_parts import bare_config

OTHER_KINDS = {"ablation.yaml", "pixel_cost.yaml", "expert_scenes.yaml"}  # of other tools, read by the tests of these
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.name not in OTHER_KINDS)
WITHOUT_MASKS = {"words_scenes.yaml"}  # nothing in its data has a mask for an answer
TINY_SCRATCH = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_size": 64, "vocab_size": 400}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert lr_at(0, config.train.steps, config.train.lr, config.train.warmup_fraction) > 0
    assert deepspeed_config(config, world_size=1)["zero_optimization"]["stage"] == config.train.zero_stage
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small ones of what the configs name: root/ with every source, base/, export/, evev2/ and expert/."""
    folder = tmp_path_factory.mktemp("stand_ins")
    tool = [sys.executable, str(REPOSITORY / "tools" / "prepare_data.py"), "scenes", "--out", str(folder / "root")]
    subprocess.run([*tool, "--images", "30", "--seed", "0", "--long-side", "96"], check=True, capture_output=True)
    shutil.copytree(folder / "root" / "refcoco", folder / "root" / "refcoco+")  # which scenes do not have
    base = save_base(folder / "base", num_key_value_heads=4)
    model, tokenizer = from_language_model(ModelSection(base=str(base)), _parts("0p5b"), "Segment {expression}.")
    _save(model, folder / "export", base)
    _save(PixelSail(_twins(base)), folder / "evev2", base)
    save_expert(folder / "expert")
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_two_steps(path: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ZeRO-3 puts a linear of its own into torch: not into the tests that follow
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    config = build_config(_reduced(load_config(path).model_dump(mode="json", exclude_unset=True), stand_ins), str(path))
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": tmp_path / "run"})})
    train(config)
    lines = tiny_run.log_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    terms = {"lm", *(f"distill_{expert.name}" for expert in config.experts)}
    mask_terms = {"bce", "dice"}
    for line in lines:
        assert all(math.isfinite(line[term]) for term in terms | mask_terms) and line["grad_norm"] > 0
        assert all(line[term] > 0 for term in terms)
        assert {line[term] > 0 for term in mask_terms} == {path.name not in WITHOUT_MASKS}
    assert sum(line["samples"] for line in lines) + lines[-1]["bad_samples"] == 16
    assert lines[-1]["bad_samples"] <= 1  # a region may have no patch to itself in images this small
    exported = PixelSail.from_pretrained(tmp_path / "run" / "export")
    assert exported.config.architecture.patch_size == config.architecture.patch_size


def _reduced(values: dict[str, Any], stand_ins: Path) -> dict[str, Any]:
    """The config with everything that makes it large made small, and everything else as it is."""
    model, parts = values.get("model", {}), values.get("architecture", {})
    data, steps = values["data"], values["train"]
    small = {"max_side_px": 8 * parts.get("patch_size", 16), "mask_dim": 16} if parts else {}
    if model.get("base") is not None:
        model["base"] = str(stand_ins / "base")
    if model.get("scratch") is not None:
        model["scratch"] = TINY_SCRATCH
    if "init_from" in steps and "scratch" in model:  # what it says is what it starts from
        model, parts, small = {}, {}, {}
    if "init_from" in steps:
        twins = steps["init_from"].endswith("evev2")
        steps["init_from"] = str(stand_ins / ("evev2" if twins else "export"))
        small |= {"sub_patch_width": 20} if twins else {}
    data |= {"root": str(stand_ins / "root"), "workers": 0, "max_length": 1024, "expressions_per_image": 2}
    for entry in data["mixture"]:
        entry.pop("root", None)
    steps |= {"steps": 2, "batch_size": 8, "micro_batch_tokens": 2048, "save_every": 100}
    experts = [
        expert_values(stand_ins / "expert", name=expert["name"], at=expert["at"])
        for expert in values.get("experts", [])
    ]
    changed = {
        "model": model,
        "architecture": parts | small,
        "run": {"dir": "set by the test", "log_every": 1},
        "experts": experts,
    }
    return values | changed | {"loss": values.get("loss", {}) | {"points": 64}, "evaluate": {}}


def _parts(name: str) -> Architecture:
    """The architecture of a recipe, small."""
    parts = load_config(REPOSITORY / "configs" / f"pixel_sail_{name}.yaml").architecture
    return parts.model_copy(update={"mask_dim": 16, "sub_patch_width": 20, "max_side_px": 8 * parts.patch_size})


def _twins(base: Path) -> Any:
    """What tools/convert.py evev2 writes as config.json, small."""
    text_config, _ = read_base(str(base))
    text_config.vocab_size += 22
    return bare_config(text_config, _parts("7b_evev2").model_copy(update={"vision_experts": True}))


def _save(model: PixelSail, folder: Path, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    add_special_tokens(tokenizer)
    model.config.prompt_token_ids = list(SpecialTokens.of(tokenizer).prompts)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
