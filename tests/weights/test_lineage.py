"""The stages that a model comes from, by the configs of their runs, and the card's table of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from pixel_sail.config import build_config, load_config
from pixel_sail.errors import FileError
from pixel_sail.weights.lineage import MAX_STAGES, Stage, lineage, note_untrained_zoom
from pixel_sail.weights.model_card import _sources, _stages


def write_run(folder: Path, start: Path | str | None = None, steps: int = 4, commit: str = "abc") -> Path:
    folder.mkdir(parents=True)
    mixture = [{"source": "refcoco", "weight": 1.0}, {"source": "hf", "split": "late", "weight": 3.0}]
    config = {
        "train": {"init_from": None if start is None else str(start), "steps": steps, "batch_size": 16},
        "architecture": {"max_side_px": 96},
        "data": {"mixture": mixture},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"commit": commit}))
    return folder


@pytest.mark.parametrize("model", ["", "export", "checkpoints/step_00000004"])
def test_stages_from_the_first_to_the_last(tmp_path: Path, model: str) -> None:
    """A start is a run, its export or one of its checkpoints."""
    first = write_run(tmp_path / "first", steps=1, commit="one")
    second = write_run(tmp_path / "second", first / model, steps=2)
    third = write_run(tmp_path / "third", second / model, steps=3, commit="three")
    stages = lineage(third)
    assert [(stage.name, stage.training["train"]["steps"]) for stage in stages] == [
        ("first", 1),
        ("second", 2),
        ("third", 3),
    ]
    assert [stage.environment["commit"] for stage in stages] == ["one", "abc", "three"]
    row = "| second | 2 | 16 | 96 px | hf (late) 75 %, refcoco 25 % |"
    assert _stages(stages).splitlines()[3] == row


def test_a_start_that_is_a_published_folder_is_the_first_stage(tmp_path: Path) -> None:
    """Where that one started from is a name of another machine, even if this one has such a run."""
    other = write_run(tmp_path / "other")
    published = tmp_path / "published"
    published.mkdir()
    (published / "training_config.yaml").write_text(yaml.safe_dump({"train": {"init_from": str(other), "steps": 9}}))
    stages = lineage(write_run(tmp_path / "mine", published))
    assert [(stage.name, stage.environment) for stage in stages] == [("published", None), ("mine", {"commit": "abc"})]


@pytest.mark.parametrize("start", ["org/model", "gone/run/export", "step_00000004"])
def test_a_start_that_is_not_here_ends_the_list(tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_run(tmp_path / "here"))
    assert [stage.name for stage in lineage(write_run(tmp_path / "mine", start))] == ["mine"]


def test_no_run_and_a_circle(tmp_path: Path) -> None:
    assert lineage(tmp_path) == []
    write_run(tmp_path / "a", tmp_path / "b")
    write_run(tmp_path / "b", tmp_path / "a")
    assert len(lineage(tmp_path / "a")) == MAX_STAGES


def test_a_second_look_that_was_never_trained_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", first)
    note_untrained_zoom(second)
    assert re.match(r"note: .*/second was not trained with crops \(data.zoom\)", capsys.readouterr().err)
    config = yaml.safe_load((first / "config.yaml").read_text())
    config["data"]["zoom"] = 0.5
    (first / "config.yaml").write_text(yaml.safe_dump(config))
    note_untrained_zoom(second)
    note_untrained_zoom(tmp_path)  # of which no training is known
    assert capsys.readouterr().err == ""


def test_a_damaged_config_of_an_earlier_stage_is_named(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    (first / "config.yaml").write_text("train: 3")
    with pytest.raises(FileError, match=r"first/config.yaml: train is '3', no dict; move it away"):
        lineage(write_run(tmp_path / "second", first))


def test_odd_weights_are_no_share() -> None:
    mixture = [{"source": "a|b", "weight": "x"}, {"source": "c", "split": None, "weight": 2}, 7, {"source": "d"}]
    assert _sources({"data": {"mixture": mixture}}) == "c 100 %, a&#124;b 0 %, d 0 %"
    assert _sources({}) == _sources({"data": {"mixture": None}}) == ""


def test_joined_sources_are_named() -> None:
    also = [{"source": "jsonl", "split": "mine"}, 7, {"source": "grefcoco"}]
    mixture = [{"source": "refcoco", "also": also}, {"source": "d", "also": 3}, {"source": "e", "also": []}]
    assert _sources({"data": {"mixture": mixture}}) == "refcoco with jsonl (mine) with grefcoco 0 %, d 0 %, e 0 %"


def test_the_small_model_was_trained_as_its_recipe_says() -> None:
    """`make tiny` repeats the training of the weights that ship: no override is missing in the config."""
    path = REPOSITORY / "data/models/tiny/training_config.yaml"
    shipped = build_config(yaml.safe_load(path.read_text()), str(path)).model_dump(mode="json")
    recipe = load_config(REPOSITORY / "configs/tiny.yaml").model_dump(mode="json")
    assert shipped == recipe


def test_a_hostile_config_is_words_of_the_table() -> None:
    hostile = {"train": {"steps": "<img src=x>|"}, "architecture": {"max_side_px": "<b>"}}
    assert _stages([Stage("a|b", hostile)]).splitlines()[2] == (
        "| a&#124;b | &lt;img src=x&gt;&#124; | None | &lt;b&gt; px |  |"
    )
