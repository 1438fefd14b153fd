"""One wandb run over all resumes; a failure of wandb stops no training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_refer_dataset
from tiny_run import forget_second_half, log_lines, tiny_config

from pixel_sail.train.loop import train


class Wandb(SimpleNamespace):
    """What stands for the module: it keeps what it is told, and fails where `broken`."""

    def __init__(self, broken: str = "") -> None:
        super().__init__(broken=broken, runs=[], points=[], finished=0)

    def init(self, **arguments: Any) -> Wandb:
        self._fail("init")
        self.runs.append(arguments)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self._fail("log")
        self.points.append((step, values))

    def Image(self, file: str) -> str:  # noqa: N802
        return file

    def finish(self) -> None:
        self._fail("finish")
        self.finished += 1

    def _fail(self, name: str) -> None:
        if self.broken == name:
            raise ConnectionResetError("the network is away")


def train_with(wandb: Wandb, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny_config(folder, root, "run.wandb_project=mine", "train.save_every=2"))


def test_a_resumed_run_goes_on_in_its_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, wandb = write_refer_dataset(tmp_path / "root"), Wandb()
    train_with(wandb, tmp_path, root, monkeypatch)
    forget_second_half(tmp_path / "run")
    train_with(wandb, tmp_path, root, monkeypatch)
    first, second = wandb.runs
    assert first["id"] == second["id"] == (tmp_path / "run/wandb_id").read_text().strip()
    assert first["resume"] == second["resume"] == "allow" and first["project"] == "mine"
    assert [step for step, _ in wandb.points] == [1, 2, 3, 4, 3, 4] and wandb.finished == 2
    (tmp_path / "other").mkdir()
    train_with(wandb, tmp_path / "other", root, monkeypatch)
    assert wandb.runs[2]["id"] != first["id"]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_training_goes_on_without_wandb(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_with(Wandb(broken), tmp_path, write_refer_dataset(tmp_path / "root"), monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("wandb has failed, and the run goes on without it: ConnectionResetError: the network") == 1
    assert len(log_lines(tmp_path / "run")) == 4
