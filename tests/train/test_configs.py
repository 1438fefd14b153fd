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
from transformers import AutoTokenizer, Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.bench.plan import plan
from pixel_sail.config import REPOSITORY, ConfigError, ModelSection, build_config, load_config, read_values, save_config
from pixel_sail.durable import read_json_lines
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens
from pixel_sail.train.engine import deepspeed_config
from pixel_sail.train.loop import train
from pixel_sail.train.optim import lr_at
from pixel_sail.weights.convert.evev2 import SIDE_PX, WAYS
from pixel_sail.weights.convert.language_model import from_language_model, read_base
from pixel_sail.weights.convert.new_parts import bare_config
from pixel_sail.weights.convert.scratch import train_tokenizer
from pixel_sail.weights.start import with_start

OTHER_KINDS = {
    "ablation.yaml",
    "base_study.yaml",
    "pixel_cost.yaml",
    "expert_scenes.yaml",
    "mask_reward.yaml",
}  # of other tools, read by the tests of these
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.name not in OTHER_KINDS)
WITHOUT_MASKS = {
    "words_scenes.yaml",
    "base_0p5b.yaml",
    "base_0p5b_2.yaml",
    "base_0p5b_3.yaml",
    "base_smollm2.yaml",
}
WITHOUT_MASKS |= {"base_scenes_text.yaml", "base_scenes.yaml"}  # nothing in its data has a mask for an answer
TINY_SCRATCH = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_size": 64, "vocab_size": 400}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert lr_at(0, config.train.steps, config.train.lr, config.train.warmup_fraction) > 0
    assert deepspeed_config(config, world_size=1)["zero_optimization"]["stage"] == config.train.zero_stage
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


# Thousands of samples of each source, and its passes in the final recipes of the authors.
SIZES = {
    "coco_panoptic_segments": 118,
    "coco_semantic": 118,
    "panoptic_category": 118,
    "open_psg": 30,
    "flickr_gcg": 144,
}
SIZES |= {"refcocog_gcg": 22, "grand_f": 1, "muse": 50, "pix2cap_segment": 20, "pix2cap_caption": 20, "refcoco": 17}
SIZES |= {"refcoco+": 17, "refcocog": 22, "grefcoco": 17, "llava_mix665k": 665, "osprey_detail_description": 30}
SIZES |= {"osprey_conversation": 30, "osprey_short_form": 45, "osprey_part_level": 35}
SIZES |= {"osprey_lvis_positive_negative": 27, "sam_captions": 77}
PASSES = {"grand_f": 10, "pix2cap_segment": 2, "refcoco": 4, "refcoco+": 4, "refcocog": 4, "grefcoco": 3}
PASSES |= {"pix2cap_caption": 10, "osprey_detail_description": 10}  # all others: 1
PASSES = dict.fromkeys(SIZES, 1) | PASSES


@pytest.mark.parametrize(
    ("name", "absent", "passes", "steps", "batch_size"),
    [
        ("0p5b", {"sam_captions"}, {}, 17_400, 128),
        ("3b", set(), {}, 9_000, 256),
        ("7b_evev2", {"sam_captions", "grefcoco", "panoptic_category"}, {"pix2cap_caption": 5}, 15_300, 128),
    ],
)
def test_the_mixture_of_the_paper(name: str, absent: set, passes: dict, steps: int, batch_size: int) -> None:
    config = load_config(REPOSITORY / "configs" / f"pixel_sail_{name}.yaml")
    expected = {source: SIZES[source] * (PASSES | passes)[source] for source in SIZES if source not in absent}
    assert {entry.source: entry.weight for entry in config.data.mixture} == expected
    assert (config.train.steps, config.train.batch_size) == (steps, batch_size)
    assert steps * batch_size == pytest.approx(1000 * sum(expected.values()), rel=1e-3)  # the passes come true
    assert config.architecture.mask_dim == (256 if name == "7b_evev2" else 512)
    drawn = config.data.prompts
    assert (drawn.mask, drawn.box, drawn.point, drawn.scribble, drawn.absent) == (0.4, 0.3, 0.3, 0, 0.05)
    assert (config.train.lr, config.data.expressions_per_image) == (4e-5, 5)
    assert config.data.max_length == (4096 if name == "7b_evev2" else 8192)
    assert [expert.weight for expert in config.experts] == ([] if name == "7b_evev2" else [0.5, 0.5])


def test_the_7b_starts_from_what_the_converter_writes(tmp_path: Path) -> None:
    """At another size: its `architecture` asks for EVEv2's ways, and refuses a base that was converted without them."""
    config = load_config(REPOSITORY / "configs" / "pixel_sail_7b_evev2.yaml")
    ways = {key: value for key, value in config.architecture.model_dump().items() if key in WAYS}
    assert ways == WAYS and config.architecture.max_side_px == SIDE_PX
    config = load_config(REPOSITORY / "configs" / "pixel_sail_7b_evev2.yaml", [f"train.init_from={tmp_path}"])
    save_stand_in(tmp_path, config.architecture)
    assert with_start(config).architecture == config.architecture
    report = plan(config, gpus=8)
    assert "patches and prompts" in report and '"stage": 3' in report
    save_stand_in(tmp_path, config.architecture.model_copy(update={"image_attention": "two_way"}))
    with pytest.raises(ConfigError, match="architecture.image_attention: config causal, checkpoint two_way"):
        with_start(config)


def save_stand_in(folder: Path, architecture: Architecture) -> None:
    """config.json and tokenizer of a converted base with narrow layers, without its weights."""
    tokenizer = train_tokenizer(["the red mug"], 0)
    add_special_tokens(tokenizer)
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    config = bare_config(text, architecture)
    config.prompt_token_ids = list(SpecialTokens.of(tokenizer).prompts)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "sources", "images", "passes"),
    [
        ("refcoco", ["refcoco", "refcoco+", "refcocog"], 16_994 + 16_992 + 21_899, 4),
        ("grefcoco", ["grefcoco"], 16_994, 4),
        ("reason_seg", ["reason_seg"], 239, 16),
    ],
)
def test_fine_tuning_of_the_paper(name: str, sources: list, images: int, passes: int) -> None:
    config = load_config(REPOSITORY / "configs" / f"finetune_{name}.yaml")
    assert [entry.source for entry in config.data.mixture] == sources
    assert (config.train.lr, config.train.lora, config.experts) == (4e-5, None, [])
    assert config.train.steps == round(passes * images / config.train.batch_size)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_says_whether_it_excludes_images_of_benchmarks(path: Path) -> None:
    """And why, in a comment: in itself or where its data come from."""
    assert "exclude" in read_values(path)[0]["data"]
    for line in path.read_text().splitlines():
        if line.strip().startswith("exclude:"):
            before = path.read_text().split(line)[0].splitlines()[-1]
            assert "#" in line or before.strip().startswith("#"), line


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small ones of what the configs name: root/ with every source, base/, export/, evev2/ and expert/."""
    folder = tmp_path_factory.mktemp("stand_ins")
    tool = [sys.executable, str(REPOSITORY / "tools" / "prepare_data.py"), "scenes", "--out", str(folder / "root")]
    subprocess.run(
        [*tool, "--images", "30", "--seed", "0", "--long-side", "96", "--image-text", "--lessons"],
        check=True,
        capture_output=True,
    )
    shutil.copytree(folder / "root" / "refcoco", folder / "root" / "refcoco+")  # which scenes do not have
    llava = folder / "root" / "llava"
    shutil.copy(llava / "train.json", llava / "llava_v1_5_mix665k.json")  # as above
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
    problems = tmp_path / "run" / "bad_samples.jsonl"
    skipped = read_json_lines(problems) if problems.exists() else []
    assert sum(line["samples"] for line in lines) + len(skipped) == 16  # nothing is lost
    assert len(skipped) <= 1  # a region may have no patch to itself in images this small
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
    # the base of the test has a token for each letter, and captions have hundreds
    length = 2048 if any(entry["source"] == "image_text" for entry in data["mixture"]) else 1024
    data |= {"root": str(stand_ins / "root"), "workers": 0, "max_length": length, "expressions_per_image": 2}
    for entry in data["mixture"]:
        for key in ("root", "files", "sizes"):
            entry.pop(key, None)
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
