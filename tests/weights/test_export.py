"""Publishing: any run or checkpoint becomes a folder that loads in one line, with a model card."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import write_refer_dataset
from huggingface_hub import ModelCard
from tiny_export import save_export
from tiny_predictor import tiny_scoring_predictor
from tiny_run import run_cli, tiny_config, write_config

from pixel_sail.config import REPOSITORY, ConfigError
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.model.generation import Sampling
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.loop import train
from pixel_sail.weights.consolidate import model_of_checkpoint

STEP = "checkpoints/step_00000004"
# YAML of 3 * 10 ** 7 values
BOMB = "a: &a [1, 1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefgh"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("export") / "root")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The folder of a finished run without ZeRO."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_config(folder, root))
    return folder / "run"


@pytest.fixture
def export(monkeypatch, capsys):
    """tools/export.py with arguments; what it printed."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tools/export.py", *map(str, arguments)])
        runpy.run_path(str(REPOSITORY / "tools" / "export.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = (PixelSail.from_pretrained(folder).state_dict() for folder in (a, b))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_how_the_source_answers_stays(tmp_path: Path, export) -> None:
    source = save_export(tmp_path / "source", tiny_scoring_predictor())
    (source / "generation_config.json").write_text('{"max_new_tokens": 7, "min_presence": 0.25}')
    export(source, "--out", tmp_path / "as_it_is")
    assert Predictor.from_pretrained(tmp_path / "as_it_is").sampling == Sampling(7, min_presence=0.25)
    export(source, "--out", tmp_path / "stricter", "--min-presence", 0.5)
    assert Predictor.from_pretrained(tmp_path / "stricter").sampling == Sampling(7, min_presence=0.5)
    assert "whose presence is below 0.5 has empty masks" in (tmp_path / "stricter/README.md").read_text()
    export(source, "--out", tmp_path / "never", "--min-presence", 0)
    assert "presence" not in (tmp_path / "never/README.md").read_text()
    assert Predictor.from_pretrained(tmp_path / "never").sampling == Sampling(7)
    with pytest.raises(SystemExit, match="this model gives no presence"):
        export(save_export(tmp_path / "bare"), "--out", tmp_path / "out", "--min-presence", 0.5)
    assert not (tmp_path / "out").exists()


def test_a_run_with_its_config_commit_and_scores(finished: Path, tmp_path: Path, export) -> None:
    scores = {"checkpoint": "/data/me/run", "benchmarks": {"refcoco:val": {"ciou": 33.91234, "cases": 12}}}
    scores["definitions"] = {"refcoco:val": {"ciou": "the sum of intersections over the sum of unions"}}
    hostile = {"<img src=x>|y": {"ciou": 1.0, "problems": {"meteor": f"no {tmp_path}/java"}}}
    (tmp_path / "metrics.json").write_text(json.dumps(scores | {"benchmarks": scores["benchmarks"] | hostile}))
    options = ["--metrics", tmp_path / "metrics.json", "--license", "apache-2.0", "--command", "make it"]
    options += ["--shard-gb", 0.0001]
    assert f"from {finished / 'export'}" in export(finished, "--out", tmp_path / "out", *options)
    out = tmp_path / "out"
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 1 and all(file.stat().st_size < 130_000 for file in files)
    assert_same_weights(out, finished / "export")
    published_answer, export_answer = (
        Predictor.from_pretrained(folder).chat(None, "What is it?")[0].text for folder in (out, finished / "export")
    )
    assert published_answer == export_answer
    published_scores = json.loads((out / "metrics.json").read_text())
    assert published_scores.pop("benchmarks") == scores["benchmarks"] | {"<img src=x>|y": {"ciou": 1.0}}
    assert published_scores == {"definitions": scores["definitions"]}
    card = (out / "README.md").read_text()
    commit = json.loads((finished / "environment.json").read_text())["commit"]
    for part in (
        "license: apache-2.0",
        commit,
        "| refcoco:val | ciou 33.91, cases 12 |\n| &lt;img src=x&gt;&#124;y | ciou 1 |",
        "steps: 4",
        "random weights",
        "Repeated by `make it`.",
    ):
        assert part in card, part
    data = ModelCard(card).data  # huggingface_hub's own reading of it
    (result,) = [result for result in data.eval_results if result.dataset_type == "refcoco"]
    assert (result.dataset_name, result.dataset_split) == ("refcoco:val", "val")
    assert (result.metric_type, result.metric_value, result.task_type) == ("ciou", 33.9123, data.pipeline_tag)
    assert (data.model_name, data.license, data.library_name) == ("out", "apache-2.0", "pixel_sail")
    published_texts = (
        card,
        *(file.read_text() for file in out.glob("*.*ml")),
        *(file.read_text() for file in out.glob("*.json")),
    )
    assert not any(str(path) in text for text in published_texts for path in (finished, tmp_path, "/data/me"))
    chat = json.loads((out / "chat_format.json").read_text())
    assert chat["first_question"] == "<|im_start|> {question}<|im_end|>" and chat["answer"] == " {answer}<|endoftext|>"


def test_bf16_and_again(finished: Path, tmp_path: Path, export) -> None:
    export(finished / "export", "--out", tmp_path / "bf16", "--dtype", "bf16", "--name", "small")
    assert set(WeightFiles(tmp_path / "bf16").dtypes.values()) == {torch.bfloat16}
    card = (tmp_path / "bf16/README.md").read_text()
    assert "# small" in card and "in bfloat16" in card and "License: not stated" in card
    export(tmp_path / "bf16", "--out", tmp_path / "again")  # a published folder can be published again
    assert_same_weights(tmp_path / "bf16", tmp_path / "again")
    again = (tmp_path / "again/README.md").read_text()
    assert "Not trained by" not in again and "Code at commit `not recorded`" in again and "\n  steps: 4\n" in again


FROZEN = "train.freeze=['language_model.model.layers.*']"


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.zero_stage=0"],
        ["train.zero_stage=1", FROZEN],
        ["train.zero_stage=2"],
        ["train.zero_stage=2", "train.precision=bf16", FROZEN],
        ["train.zero_stage=3", "train.precision=bf16", FROZEN],
    ],
    ids=str,
)
def test_a_checkpoint_is_what_the_run_exports(overrides: list[str], tmp_path: Path, root: Path, export) -> None:
    train(tiny_config(tmp_path, root, *overrides))
    export(tmp_path / "run" / STEP, "--out", tmp_path / "out")
    assert_same_weights(tmp_path / "out", tmp_path / "run" / "export")


def test_two_ranks_of_zero_3_export_on_one(tmp_path: Path, root: Path, export) -> None:
    config = write_config(tmp_path, root)
    status, printed = run_cli(config, "train.zero_stage=3", "train.precision=bf16", processes=2)
    assert status == 0, printed
    run = tmp_path / "run"
    assert len(list((run / STEP / "engine").glob("*optim_states.pt"))) == 2
    shutil.move(run / "export", tmp_path / "by_the_run")
    assert STEP in export(run, "--out", tmp_path / "out")  # without export/ the newest checkpoint is taken
    assert_same_weights(tmp_path / "out", tmp_path / "by_the_run")
    assert Predictor.from_pretrained(tmp_path / "out").segment(REPOSITORY / "docs/images/front.jpg", "the mug")
    shard = run / STEP / "engine" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"  # only rank 1 reads it
    contents = bytearray(shard.read_bytes())
    contents[len(contents) // 2] ^= 1
    shard.write_bytes(contents)
    status, printed = run_cli(config, "train.zero_stage=3", "train.precision=bf16", processes=2)
    assert status == 1 and printed.count("error") == 1 and "Traceback" not in printed, printed
    assert f"error: {shard} is damaged: its bytes have changed" in printed and "No older checkpoint" in printed


def test_what_is_no_model_is_refused(finished: Path, tmp_path: Path, export) -> None:
    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(SystemExit, match=message):
            export(*arguments, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()

    refused("is no model: it has neither config.json, nor state.json", tmp_path)
    refused("tools/test.py writes metrics.json", finished, "--metrics", tmp_path / "metrics.json")
    (tmp_path / "config.json").write_text(json.dumps({"scores": 1}))
    refused("no metrics.json of tools/test.py", finished, "--metrics", tmp_path / "config.json")
    broken = shutil.copytree(finished / STEP, tmp_path / "broken")
    (broken / "engine" / "mp_rank_00_model_states.pt").unlink()
    refused("is incomplete: .*mp_rank_00_model_states.pt is missing", broken)
    with pytest.raises(ConfigError, match=r"is not a checkpoint: it has no state.json"):
        model_of_checkpoint(finished / "export")
    damaged = shutil.copytree(finished / "export", tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    parts = config["architecture"]
    (damaged / "config.json").write_text(json.dumps(config | {"architecture": parts | {"mask_dim": 3}}))
    refused("wrong shape mask_head.pixel_projector.2.bias: file .16,., model .3,.", damaged)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [", "config.yaml is not valid YAML"),
        ("config.yaml", "- 1", "config.yaml holds no keys and values"),
        ("config.yaml", "data: {exclude: 7}", "config.yaml: data.exclude is '7', no list; move it away"),
        ("config.yaml", "model: 3", "config.yaml: model is '3', no dict; move it away"),
        (
            "config.yaml",
            BOMB,
            "it has more than 100,000 values",
        ),
        ("environment.json", '{"packages": [1]}', "environment.json: packages is .*, no dict; move it away"),
        ("environment.json", "{", "environment.json is not valid JSON"),
    ],
)  # fmt: skip
def test_damaged_files_of_the_run(finished: Path, tmp_path: Path, name: str, text: str, message: str, export) -> None:
    shutil.copytree(finished / "export", tmp_path / "run/export")
    (tmp_path / "run/config.yaml").write_text("{}")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        export(tmp_path / "run", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
