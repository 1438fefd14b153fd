"""What must stop a run stops it, on all ranks together, before anything is damaged, and says which samples it met."""

from __future__ import annotations

import errno
import json
import resource
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LAUNCHER_KEYS, edit_instances, write_refer_dataset
from tiny_run import log_lines, run_cli, tiny_config, weights, write_config
from warm import start_tool

from pixel_sail.data.mixture import Mixture
from pixel_sail.data.sources.referring import ReferringSource
from pixel_sail.durable import append_json_line, read_json_lines
from pixel_sail.errors import UserError
from pixel_sail.train import distributed, log, loop, step
from pixel_sail.train.engine import Engine
from pixel_sail.train.loop import train
from pixel_sail.train.step import TrainingStopped
from pixel_sail.types import BadSample, NoPixels, Sample
from pixel_sail.weights.run_folder import complete_checkpoints

EXPLODING = ("train.lr=100", "train.new_parts_lr_scale=1e12", "train.save_every=1", "train.warmup_fraction=0")


def break_image(root: Path, number: int = 0) -> str:
    """Cuts a training image short; its name."""
    path = sorted((root / "images" / "train2014").iterdir())[number]
    path.write_bytes(path.read_bytes()[:150])
    return path.name


def test_non_finite_loss(tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    with pytest.raises(
        TrainingStopped, match="the loss of step 2 is not finite.*nothing was updated.*refcoco"
    ) as caught:
        train(tiny_config(tmp_path, root, *EXPLODING))
    assert "train" in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]
    assert [line["step"] for line in log_lines(tmp_path / "run")] == [1]


def test_non_finite_loss_stops_all_ranks(tmp_path: Path) -> None:
    config = write_config(tmp_path, write_refer_dataset(tmp_path / "root"))
    status, output = run_cli(config, *EXPLODING, processes=2)
    assert status != 0
    assert output.count("error: the loss of step 2 is not finite") == 1, output
    assert "Traceback" not in output


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_non_finite_gradient_is_not_applied(tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss whose gradient overflows: the weights must stay."""
    root = write_refer_dataset(tmp_path / "root")
    changed: list[str] = []

    def watched_step(engine: Engine, lr: float) -> float:
        before = engine.full_state_dict()
        norm = step(engine, lr)
        changed.extend(name for name, tensor in engine.full_state_dict().items() if not tensor.equal(before[name]))
        return norm

    step = Engine.step
    monkeypatch.setattr(Engine, "step", watched_step)
    with pytest.raises(TrainingStopped, match="the gradient of step 1 is not finite; nothing was updated"):
        config = tiny_config(tmp_path, root, f"train.zero_stage={stage}")
        overflowing = config.loss.model_copy(update={"lm": 1e39})  # more than a config may say
        train(config.model_copy(update={"loss": overflowing}))
    assert changed == []
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_bad_samples_are_counted_and_listed(tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    broken = break_image(root)
    train(tiny_config(tmp_path, root))
    listed = read_json_lines(tmp_path / "run" / "bad_samples.jsonl")
    lines = log_lines(tmp_path / "run")
    assert 0 < len(listed) == lines[-1]["bad_samples"]
    assert sum(line["samples"] for line in lines) + len(listed) == 4 * 6
    assert all(line.keys() == {"step", "position", "key", "message"} and line["message"] for line in listed)
    assert all(broken in line["message"] or line["key"] in line["message"] for line in listed), json.dumps(
        listed, indent=1
    )


def test_samples_without_a_pixel_do_not_count_as_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(self: ReferringSource, index: int, rng: np.random.Generator) -> Sample:
        if index == 0:
            raise NoPixels(f"{self.key(index)}: its objects are smaller than a pixel")
        return drawn(self, index, rng)

    drawn = ReferringSource.sample
    monkeypatch.setattr(ReferringSource, "sample", sample)
    train(tiny_config(tmp_path, write_refer_dataset(tmp_path / "root"), "data.max_bad_samples=0"))
    listed, lines = read_json_lines(tmp_path / "run" / "bad_samples.jsonl"), log_lines(tmp_path / "run")
    assert listed and all(line["no_pixels"] and "smaller than a pixel" in line["message"] for line in listed)
    assert lines[-1]["bad_samples"] == 0 and sum(line["dropped_turns"] for line in lines) == len(listed)


def test_annotations_left_out_on_reading_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_refer_dataset(tmp_path / "root")
    edit_instances(root, lambda values: values["annotations"][0].update(segmentation=[[1, 2, 3, 4]]))
    train(tiny_config(tmp_path, root))
    named = [line for line in capsys.readouterr().out.splitlines() if "left out on reading: refcoco/train/ref=" in line]
    assert len(named) == 1 and "is no polygon" in named[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_too_many_bad_samples(tmp_path: Path, processes: int) -> None:
    root = write_refer_dataset(tmp_path / "root")
    for number in range(2):
        break_image(root, number)
    status, output = run_cli(write_config(tmp_path, root), "data.max_bad_samples=2", processes=processes)
    assert status != 0
    assert output.count("more than data.max_bad_samples=2") == 1, output
    assert output.count("refcoco/train/image=1") >= 3
    assert "Traceback" not in output


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_without_a_usable_sample_updates_nothing(
    tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by weight decay nor by the momentum of the steps before; the run goes on, and says samples 0."""

    def sample(self: Mixture, position: int) -> Sample:
        if 12 <= position < 18:  # all of step 3
            raise BadSample(f"{self.key(position)}: made so")
        return drawn(self, position)

    def watched_step(engine: Engine, *arguments: Any) -> Any:
        before = engine.full_state_dict()
        result = take(engine, *arguments)
        changed.append(any(not tensor.equal(before[name]) for name, tensor in engine.full_state_dict().items()))
        return result

    drawn, take = Mixture.sample, loop.train_step
    changed: list[bool] = []
    monkeypatch.setattr(Mixture, "sample", sample)
    monkeypatch.setattr(loop, "train_step", watched_step)
    train(tiny_config(tmp_path, write_refer_dataset(tmp_path / "root"), f"train.zero_stage={stage}"))
    assert changed == [True, True, False, True]
    lines = log_lines(tmp_path / "run")
    assert [line["samples"] for line in lines] == [6, 6, 0, 6] and lines[2]["loss"] == lines[2]["grad_norm"] == 0
    assert [line["bad_samples"] for line in lines] == [0, 0, 6, 6]


def test_steps_without_a_usable_sample_are_the_same_on_two_ranks(tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    for number in range(2):
        break_image(root, number)
    overrides = ["train.batch_size=2", "train.steps=5", "data.max_bad_samples=100", "data.expressions_per_image=1"]
    config = write_config(tmp_path, root)
    for processes in (1, 2):
        status, output = run_cli(config, *overrides, f"run.dir={tmp_path / str(processes)}", processes=processes)
        assert status == 0, output
    lines = [log_lines(tmp_path / name) for name in ("1", "2")]
    samples = [[line["samples"] for line in run] for run in lines]
    assert samples[0] == samples[1] and 0 in samples[0] and max(samples[0]) > 0
    a, b = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-4


@pytest.mark.parametrize("workers", [0, 2])
def test_data_without_a_usable_sample_are_one_message(tmp_path: Path, workers: int) -> None:
    """Found in a worker of each of two ranks."""
    root = write_refer_dataset(tmp_path / "root")
    for number in range(3):
        break_image(root, number)
    status, output = run_cli(write_config(tmp_path, root), f"data.workers={workers}", processes=2)
    assert status == 1 and "Traceback" not in output, output
    assert output.count("step 1: no usable sample in 1000 stream positions") == output.count("error: ") == 1, output


@pytest.mark.parametrize("name", ["log.jsonl", "validation.jsonl", "bad_samples.jsonl"])
def test_a_full_disk_is_one_error_and_the_older_checkpoint_stays(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(path: Path, values: Any) -> None:
        if path.name == name and values["step"] >= 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append_json_line(path, values)

    root = write_refer_dataset(tmp_path / "root")
    break_image(root)
    monkeypatch.setattr(log, "append_json_line", append)
    monkeypatch.setattr(step, "append_json_line", append)
    overrides = ["train.save_every=1", "evaluate.benchmarks=[refcoco:val]", "evaluate.every=1", "evaluate.max_images=1"]
    with pytest.raises(OSError, match=name):
        train(tiny_config(tmp_path, root, *overrides))
    checkpoints = complete_checkpoints(tmp_path / "run/checkpoints")
    assert checkpoints[-1].name == ("step_00000003" if name == "validation.jsonl" else "step_00000002")
    assert not (tmp_path / "run/.lock").exists()


def test_an_error_of_one_rank_ends_both(tmp_path: Path) -> None:
    """Rank 0 may write no large files: it alone fails, in the middle of the loop or of a save."""
    run_dir = tmp_path / "run"
    config = write_config(tmp_path, write_refer_dataset(tmp_path / "root"))
    run = start_tool(
        "tools/train.py", config, "train.steps=100000", "train.save_every=100000", "run.log_every=1", processes=2
    )
    while not (run_dir / "log.jsonl").exists() and all(process.is_alive() for process in run.ranks):
        time.sleep(0.01)
    resource.prlimit(run.ranks[0].pid, resource.RLIMIT_FSIZE, (3000, 3000))
    _, output = run.finish()
    assert [process.exitcode for process in run.ranks] == [1, 1], output
    assert output.count("error: ") == output.count("File too large") == 1 and "Traceback" not in output, output


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.batchsize=2", "unknown key 'train.batchsize'; did you mean 'train.batch_size'"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("data.root=/nowhere", "/nowhere"),
        ("train.offload=optimizer", "train.offload=optimizer needs train.zero_stage"),
        ("train.init_from=/nowhere", "/nowhere"),
        ("train.offload=parameters", "needs train.zero_stage=3"),
    ],
)
def test_one_clear_message(tmp_path: Path, override: str, message: str) -> None:
    status, output = run_cli(write_config(tmp_path, write_refer_dataset(tmp_path / "root")), override)
    assert status == 1
    assert message in output and "error: " in output and "Traceback" not in output


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "two"}, "the environment says WORLD_SIZE=two, which is no number"),
        (
            {"WORLD_SIZE": "2", "RANK": "1"},
            r"2 processes \(WORLD_SIZE\) must meet at None:None .* rank 1 cannot: .*MASTER",
        ),
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "must meet at 127.0.0.1:99999"),
    ],
    ids=["number", "no address", "port"],
)
def test_processes_that_cannot_meet_are_one_message(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in LAUNCHER_KEYS:
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    with pytest.raises(UserError, match=message):
        distributed.start()


def test_a_port_in_use_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for key, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
        with pytest.raises(UserError, match=f"must meet at 127.0.0.1:{port} .* choose one, as in .* --master_port"):
            distributed.start()
