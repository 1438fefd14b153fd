"""Resuming is an equation: 2 + 2 steps are 4 steps, bit for bit; and what must not be resumed is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_refer_dataset
from tiny_run import assert_same_bits, forget_second_half, log_lines, tiny_config

from pixel_sail.config import ConfigError, load_config
from pixel_sail.durable import append_json_line, publish_folder
from pixel_sail.train.checkpoint import FREE_KEYS
from pixel_sail.train.loop import train
from pixel_sail.weights.convert import scratch


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("resume") / "root")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The folder of a finished run that saved at steps 2 and 4. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_config(folder, root, "train.save_every=2"))
    return folder


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.zero_stage=2"], ["train.zero_stage=3"], ["train.precision=bf16"], ["train.muon={}"]],
    ids=str,
)
def test_two_and_two_steps_are_four(tmp_path: Path, root: Path, overrides: list[str]) -> None:
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    for folder, save_every in ((straight, 100), (interrupted, 2)):
        folder.mkdir()
        train(tiny_config(folder, root, f"train.save_every={save_every}", *overrides))
    forget_second_half(interrupted / "run")
    train(tiny_config(interrupted, root, "train.save_every=2", "data.workers=2", *overrides))
    assert_same_bits(straight / "run", interrupted / "run")


def test_a_finished_run_stays_as_it_is(finished: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("*")}
    train(tiny_config(finished, root, "train.save_every=2"))
    assert "is finished: 4 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("*")} == before


def test_export_is_made_up_for(tmp_path: Path, finished: Path, root: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "copy") / "run"
    shutil.rmtree(run / "export")
    train(tiny_config(tmp_path / "copy", root))
    assert_same_bits(run, finished / "run")


def test_the_text_around_questions_is_that_of_the_beginning(
    tmp_path: Path, finished: Path, root: Path, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    """A chat template of the base that has changed since, as with a new version of it."""
    run = shutil.copytree(finished, tmp_path / "copy") / "run"
    forget_second_half(run)
    monkeypatch.setattr(scratch, "CHAT_TEMPLATE", scratch.CHAT_TEMPLATE.replace("<|im_start|> ", "<|im_start|>user "))
    train(tiny_config(tmp_path / "copy", root, "train.save_every=2"))
    assert "the chat template of the base has changed since the run began" in capsys.readouterr().out
    assert_same_bits(run, finished / "run")
    kept = [
        json.loads((folder / "export" / "config.json").read_text())["chat_pieces"] for folder in (run, finished / "run")
    ]
    assert kept[0] == kept[1]


def test_log_lines_of_lost_steps_go(tmp_path: Path, finished: Path, root: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "copy") / "run"
    forget_second_half(run)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # cut short by a kill
    append_json_line(run / "bad_samples.jsonl", {"step": 3, "key": "lost"})
    (run / "checkpoints" / "step_00000004.partial").mkdir()
    (run / "export.partial").mkdir()
    train(tiny_config(tmp_path / "copy", root))
    assert_same_bits(run, finished / "run")
    assert (run / "bad_samples.jsonl").read_text() == ""
    assert list(run.rglob("*.partial")) == []


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=2e-3", "train.lr was 0.001, is 0.002"),
        ("train.steps=5", "train.steps was 4, is 5"),
        ("run.seed=1", "run.seed was 0, is 1"),
        ("data.mixture.0.weight=2", "data.mixture"),
        ("loss.dice=1", "loss.dice was 0.5, is 1.0"),
        ("train.zero_stage=2", "train.zero_stage was 0, is 2"),
    ],
)
def test_a_different_config_is_refused(finished: Path, root: Path, override: str, message: str) -> None:
    if "mixture" in override:
        override = "data.mixture=[{source: refcoco}]"
    with pytest.raises(ConfigError, match="cannot go on from .*step_00000004") as caught:
        train(tiny_config(finished, root, override))
    assert message in str(caught.value)


def test_different_data_are_refused(finished: Path, tmp_path: Path) -> None:
    other = write_refer_dataset(tmp_path / "root", train=4)
    with pytest.raises(ConfigError, match="the data changed"):
        train(tiny_config(finished, other))


def test_what_may_differ_is_accepted(tmp_path: Path, finished: Path, root: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    forget_second_half(copy / "run")
    moved = shutil.copytree(root, tmp_path / "moved")
    overrides = ["run.log_every=2", "data.workers=1", "train.save_every=1", "train.keep_checkpoints=1"]
    train(tiny_config(copy, moved, *overrides))
    assert log_lines(copy / "run") == log_lines(finished / "run")[:2] + log_lines(finished / "run")[3:]
    assert [path.name for path in (copy / "run" / "checkpoints").iterdir()] == ["step_00000004"]


def test_a_checkpoint_from_before_a_key_is_accepted(tmp_path: Path, finished: Path, root: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    forget_second_half(copy / "run")
    path = next((copy / "run" / "checkpoints").iterdir()) / "state.json"
    path.with_name("checksums.json").unlink()  # nor were there checksums
    state = json.loads(path.read_text())
    del state["config"]["experts"], state["config"]["architecture"]["small_images"], state["experts"]
    path.write_text(json.dumps(state))
    train(tiny_config(copy, root, "train.save_every=2"))
    assert log_lines(copy / "run") == log_lines(finished / "run")


def test_free_keys_exist(finished: Path) -> None:
    values = load_config(finished / "tiny.yaml").model_dump()
    for key in FREE_KEYS:
        value = values
        for part in key.split("."):
            value = value[part]


def test_never_does_not_overwrite(finished: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match="already holds log.jsonl, checkpoints, export"):
        train(tiny_config(finished, root, "train.resume=never"))


def test_an_export_without_checkpoints_is_not_overwritten(tmp_path: Path, finished: Path, root: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "run/checkpoints")
    with pytest.raises(ConfigError, match="holds a finished model, but no checkpoint"):
        train(tiny_config(copy, root))
    assert_same_bits(copy / "run", finished / "run")


def test_resume_from_a_folder(tmp_path: Path, finished: Path, root: Path) -> None:
    checkpoints = finished / "run" / "checkpoints"
    with pytest.raises(ConfigError, match="not a checkpoint"):
        train(tiny_config(finished, root, f"train.resume={checkpoints}"))
    with pytest.raises(ConfigError, match="newer checkpoints than step_00000002"):
        train(tiny_config(finished, root, f"train.resume={checkpoints / 'step_00000002'}"))
    train(tiny_config(tmp_path, root, f"train.resume={checkpoints / 'step_00000002'}"))
    assert log_lines(tmp_path / "run") == log_lines(finished / "run")[2:]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    """As the export of a run that goes on for more steps does; also when a kill has left an old one half deleted."""
    for text in ("old", "new"):
        (tmp_path / "export.old.partial").mkdir()
        (tmp_path / "export.old.partial/torn").touch()
        (tmp_path / "export.partial").mkdir()
        (tmp_path / "export.partial/file").write_text(text)
        publish_folder(tmp_path / "export.partial", tmp_path / "export")
        assert (tmp_path / "export/file").read_text() == text
        shutil.rmtree(tmp_path / "export.old.partial", ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
