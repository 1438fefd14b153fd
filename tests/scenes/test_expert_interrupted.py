"""Training an expert with signals, two at once and full disks; and a run folder whose files are damaged."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import fork
from test_expert_training import config_of, write_split

from pixel_sail.config import REPOSITORY, ConfigError
from pixel_sail.errors import FileError, UserError
from pixel_sail.locks import Busy
from pixel_sail.scenes import expert_training as expert
from pixel_sail.scenes.expert_config import load_expert_training


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("panoptic")
    (root / "images").mkdir()
    for split in ("train", "val"):
        write_split(root, split)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    expert.train_expert(config_of(root, folder, steps=3))
    return folder


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_stopped_after_a_step_and_repeated(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, workers: int
) -> None:
    run, step = tmp_path / "run", expert._step
    config = config_of(root, run, steps=3, save_every=100, workers=workers)

    def signalled(*arguments) -> float:
        if arguments[-1] == 1:  # to the whole group, twice
            os.killpg(0, number)
            os.killpg(0, number)
        return step(*arguments)

    monkeypatch.setattr(expert, "_step", signalled)
    status, printed = fork(partial(expert.train_expert, config), tmp_path / "log").finish()
    assert status == (130 if number == signal.SIGINT else 143), printed
    assert printed.endswith(
        f"{signal.Signals(number).name}: finishing this step first\nstopped: at step 2 of 3; the same command goes on\n"
    )
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt"] and "Traceback" not in printed
    monkeypatch.setattr(expert, "_step", step)
    expert.train_expert(config)
    whole, resumed = (torch.load(folder / "checkpoint.pt")["model"] for folder in (finished, run))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "expert", "log.jsonl", "quality.json"]


def test_two_at_once(root: Path, tmp_path: Path) -> None:
    started = fork(partial(expert.train_expert, config_of(root, tmp_path / "run", steps=10**4)), tmp_path / "log")
    started.wait_for((tmp_path / "run/checkpoint.pt").exists)
    with pytest.raises(Busy, match=rf"run is in use by process {started.process.pid} on"):
        expert.train_expert(config_of(root, tmp_path / "run", steps=10**4))
    started.signal_all(signal.SIGKILL)
    started.finish()


@pytest.mark.parametrize("place", ["checkpoint", "expert"])
def test_a_full_disk_is_one_message(root: Path, finished: Path, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    if place == "expert":
        run.mkdir()
        shutil.copy(finished / "checkpoint.pt", run)

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        expert.train_expert(config_of(root, run, steps=3, save_every=1))

    status, printed = fork(on_a_full_disk, tmp_path / "log").finish()
    *_, last = printed.splitlines()
    assert status == 1 and str(run) in last and "File too large" in last, printed
    assert not list(run.glob("*.partial")) and "Traceback" not in printed


def rewritten(path: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(path)
    change(state)
    torch.save(state, path)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pickled(path: Path) -> None:
    content = io.BytesIO()
    torch.save({"step": print}, content)
    path.write_bytes(content.getvalue())


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flipped,
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "pickle": pickled,
    "list": lambda path: torch.save([1], path),
    "no step": partial(rewritten, change=lambda state: state.pop("step")),
    "step": partial(rewritten, change=lambda state: state.update(step=10**9)),
    "weights": partial(rewritten, change=lambda state: state["model"].popitem()),
    "shape": partial(rewritten, change=lambda state: state["model"].update({"head.bias": torch.zeros(99)})),
    "nan": partial(rewritten, change=lambda state: state["model"]["head.bias"].fill_(float("nan"))),
    "optimizer": partial(rewritten, change=lambda state: state["optimizer"].pop("param_groups")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(root: Path, finished: Path, tmp_path: Path, damage: str) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    DAMAGES[damage](run / "checkpoint.pt")
    with pytest.raises(FileError, match=r"cannot resume from .*checkpoint\.pt: it is damaged \(.*\)\. Delete it"):
        expert.train_expert(config_of(root, run, steps=3))


def test_a_damaged_end_is_made_again(root: Path, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    expected = json.loads((run / "quality.json").read_text())["quality"]
    for text in ("{", "[]", '{"quality": {"pq": NaN}}'):
        (run / "quality.json").write_text(text)
        assert expert.train_expert(config_of(root, run, steps=3)) == expected
    shutil.rmtree(run / "expert")
    assert expert.train_expert(config_of(root, run, steps=3)) == expected and (run / "expert/config.json").exists()


def test_a_loss_that_is_not_finite_is_a_message(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert.Learner, "forward", lambda *arguments, **settings: torch.tensor(float("nan")))
    with pytest.raises(UserError, match="the loss of step 1 is nan: give a lower lr"):
        expert.train_expert(config_of(root, tmp_path / "run"))


def test_no_place_to_write(root: Path) -> None:
    with pytest.raises(FileError, match="cannot write into /sys/kernel/run"):
        expert.train_expert(config_of(root, Path("/sys/kernel/run")))


UNUSABLE = "lr=-1 lr=.nan lr=.inf clip_norm=0 size_px=1000000 queries=100000000 workers=100000 evaluate_images=0"


@pytest.mark.parametrize("override", [*UNUSABLE.split(), "blocks=[1,1,1,0]", "widths=[8,8,8,-8]"])
def test_values_that_no_training_can_use(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_expert_training(REPOSITORY / "configs" / "expert_scenes.yaml", [override])
