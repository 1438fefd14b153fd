"""Fine-tuning as it is used: a language model of its own folder and all fixtures; two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_refer_dataset
from tiny_run import assert_same_curve, run_cli, tiny_config, write_config
from transformers import LlamaConfig, LlamaForCausalLM

from pixel_sail import scenes
from pixel_sail.config import build_config
from pixel_sail.data.sources import RECORDS
from pixel_sail.durable import read_json_lines
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.loop import train
from pixel_sail.weights.convert.scratch import CHAT_TEMPLATE, train_tokenizer

NOT_DRAWN = {"refcoco+", "refcoco+_captions", "shards", "jsonl", "hf"}  # what `scenes` has no files of
NOT_DRAWN |= {"llava_mix665k", "refcocog_mdetr_captions", "reason_seg_explained"}
NOT_DRAWN |= {"ade20k", "coco_stuff", "mapillary", "paco_lvis", "pascal_part", "image_text", "text"}
LORA = "train.lora={rank: 4}"


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fixtures") / "scenes"
    scenes.generate(out, 15, 2, 96, workers=1)
    return out


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights in the folder of a Hugging Face model."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer(["the red mug on the table", "What is the colour of it?"] * 3, 300)
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [{"rank": 4}, None], ids=["lora", "full"])
def test_all_fixtures_train_export_load_generate(
    lora: dict | None, llama: Path, fixtures: Path, tmp_path: Path
) -> None:
    names = [record.name for record in RECORDS if record.name not in NOT_DRAWN]
    values = {
        "run": {"dir": str(tmp_path / "run"), "log_every": 1},
        "model": {"base": str(llama)},
        "architecture": {"max_side_px": 64, "mask_dim": 16},
        "data": {"root": str(fixtures), "mixture": [{"source": name} for name in names], "workers": 0}
        | {"expressions_per_image": 2, "max_length": 1024},
        "loss": {"points": 64},
        "train": {"steps": 3, "batch_size": len(names), "micro_batch_tokens": 4096, "lr": 1e-3, "lora": lora},
    }
    train(build_config(values, where="test"))
    lines = read_json_lines(tmp_path / "run/log.jsonl")
    assert [line["samples"] for line in lines] == [len(names)] * 3 and lines[-1]["bad_samples"] == 0
    assert lines[2]["loss"] < lines[0]["loss"]
    predictor = Predictor.from_pretrained(tmp_path / "run/export")
    image = fixtures / "images/train2014/scenes_000000000001.jpg"
    answers = predictor.chat(image, ["What is this?", "And that?"], sampling=Sampling(5))
    assert len(answers) == 2 and all(isinstance(answer.text, str) for answer in answers)
    assert len(predictor.segment(image, ["the red mug"])) == 1


@pytest.mark.parametrize("stage", [0, 2])
def test_two_processes_do_what_one_does(stage: int, tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    options = [LORA, "train.freeze=['fusion.*']", f"train.zero_stage={stage}", "train.steps=2"]
    train(tiny_config(first, root, *options))
    status, printed = run_cli(write_config(second, root), *options, processes=2)
    assert status == 0, printed
    assert printed.count("frozen by fusion.*: ") == 1  # one process says it
    # Adam turns gradients that are nothing but rounding into steps, and adapters have some (B starts at 0).
    assert_same_curve(first / "run", second / "run", tolerance=3e-4)
    assert yaml.safe_load((second / "run/config.yaml").read_text())["train"]["lora"]["rank"] == 4
