"""Making shards with signals, kills, two at once, full disks and damaged files: the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import write_refer_dataset
from forked import Forked, fork

from pixel_sail.config import Config, ConfigError, build_config
from pixel_sail.data import write_shards
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.verify_shards import verify_shards
from pixel_sail.data.write_shards import make_shards
from pixel_sail.errors import FileError, UserError
from pixel_sail.locks import Busy

SAMPLES, PER_SHARD = 600, 20


def config_of(root: Path) -> Config:
    values = {
        "run": {"dir": "unused", "seed": 5},
        "model": {"base": "unused"},
        "data": {"root": str(root), "mixture": [{"source": "refcoco"}]},
        "train": {"steps": 1, "batch_size": 1},
    }
    return build_config(values, "test")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return config_of(write_refer_dataset(tmp_path_factory.mktemp("interrupted") / "root", train=5))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, config: Config) -> tuple[dict[str, bytes], float]:
    """The files, and the seconds that it takes to make them."""
    out, started = tmp_path_factory.mktemp("made") / "out", time.monotonic()
    make_shards(config, out, SAMPLES, PER_SHARD, workers=2)
    return contents(out), time.monotonic() - started


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(config: Config, out: Path, log: Path, samples: int = SAMPLES, workers: int = 2) -> Forked:
    return fork(partial(make_shards, config, out, samples, PER_SHARD, workers), log)


def test_killed_at_any_moment_and_repeated(config: Config, undisturbed: tuple[dict, float], tmp_path: Path) -> None:
    files, seconds = undisturbed
    out, rng = tmp_path / "data/out", random.Random(0)
    for number in range(6):
        started = start(config, out, tmp_path / f"log{number}")
        time.sleep(rng.uniform(0, seconds / 3))
        os.kill(started.process.pid, signal.SIGKILL)
        started.finish()
    make_shards(config, out, SAMPLES, PER_SHARD, workers=2)
    assert contents(out) == files and [path.name for path in out.parent.iterdir()] == ["out"]
    (out / "000004.tar.partial").touch()
    (out / ".lock").touch()
    make_shards(config, out, SAMPLES, PER_SHARD)
    assert contents(out) == files


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGUSR1, 1)])
def test_a_signal_to_all_twice(config: Config, tmp_path: Path, number: int, workers: int) -> None:
    out = tmp_path / "out"
    started = start(config, out, tmp_path / "log", 10**6, workers)
    started.wait_for(lambda: len(list(out.glob("*.index.json"))) > 3)
    started.signal_all(number)
    started.signal_all(number)
    status, printed = started.finish()
    assert status == (130 if number == signal.SIGINT else 143)
    assert printed.startswith("stopped: ") and printed.count("\n") == 1
    assert printed.endswith(" of 50000 shards are made; the same command makes the others\n")
    assert not list(out.glob("*.partial")) and not (out / ".lock").exists()
    assert len(list(out.glob("*.index.json"))) > 3


def test_two_at_once(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    started = start(config, out, tmp_path / "log", 10**6)
    started.wait_for((out / "000001.tar").exists)
    with pytest.raises(Busy, match=rf"{out} is in use by process {started.process.pid} on"):
        make_shards(config, out, 10**6, PER_SHARD)
    started.signal_all(signal.SIGTERM)
    assert started.finish()[0] == 143


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_message_and_keeps_what_is_finished(config: Config, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        make_shards(config, out, SAMPLES, PER_SHARD, workers)

    status, printed = fork(on_a_full_disk, tmp_path / "log").finish()
    assert status == 1 and printed.startswith(f"error: {out}") and printed.count("\n") == 1
    assert "File too large; raise the limit" in printed
    assert [path.name for path in out.iterdir()] == ["shards.unfinished.json"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_one_message_for_any_number_of_workers(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def write_shard(job: object, number: int) -> None:
        raise DatasetError(f"shard {number} cannot be drawn")

    monkeypatch.setattr(write_shards, "write_shard", write_shard)
    status, printed = start(config, tmp_path / "out", tmp_path / "log", workers=workers).finish()
    assert (status, printed) == (1, "error: shard 0 cannot be drawn\n")


def test_a_killed_worker_is_a_message(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_shards, "write_shard", lambda job, number: os.kill(os.getpid(), signal.SIGKILL))
    status, printed = start(config, tmp_path / "out", tmp_path / "log").finish()
    assert status == 1 and printed.startswith("error: a worker process was ended by SIGKILL: most likely the memory")


def test_room_is_asked_for_before_the_work(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"out would need about .* GB, and .* GB are free on its disk"):
        make_shards(config, tmp_path / "out", 10**9, 10**5)
    with pytest.raises(FileError, match="cannot write into /sys/kernel/out"):
        make_shards(config, Path("/sys/kernel/out"), SAMPLES, PER_SHARD)


@pytest.mark.parametrize("numbers", [(10**10, 10**5, 1), (10**9, 1, 1), (9, 1, 10**6)])
def test_numbers_that_make_no_sense(config: Config, tmp_path: Path, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="at most 1,000,000,000 samples, 1,000,000 shards and 256 workers"):
        make_shards(config, tmp_path / "out", *numbers)
    assert not list(tmp_path.iterdir())


DAMAGES: list[Callable[[dict], object]] = [
    lambda index: index.update(counts="many"),
    lambda index: index.update(counts=[10**9]),
    lambda index: index.update(sha256=None),
    lambda index: index.update(file="../shards.json"),
    lambda index: index.pop("samples"),
    lambda index: index.update(samples=7),
    lambda index: index.update(problems=[1]),
    lambda index: index["samples"].pop(),
]


def test_damaged_indices_are_made_again(config: Config, undisturbed: tuple[dict, float], tmp_path: Path) -> None:
    """Of unfinished shards, and of finished ones whose shards.json still has their checksum."""
    files, out = undisturbed[0], tmp_path / "out"
    for unfinished in (True, False):
        out.mkdir(exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
        if unfinished:
            request = json.loads(files["shards.json"])["request"]
            (out / "shards.json").unlink()
            (out / "shards.unfinished.json").write_text(json.dumps({"version": 1, "request": request}))
        for number, damage in enumerate(DAMAGES):
            path = out / f"{number:06d}.index.json"
            index = json.loads(path.read_text())
            damage(index)
            path.write_text(json.dumps(index))
        (out / "000010.index.json").write_bytes(files["000010.index.json"][:100])
        (out / "000011.index.json").write_text("[" * 10**5)
        make_shards(config, out, SAMPLES, PER_SHARD)
        assert contents(out) == files, unfinished


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request": 1}', "[" * 10**5])
@pytest.mark.parametrize("name", ["shards.json", "shards.unfinished.json"])
def test_a_damaged_claim_is_a_message(config: Config, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is .*Copy it again, or make the shards in another folder"):
        make_shards(config, tmp_path, SAMPLES, PER_SHARD)


def test_verify_sees_wrong_numbers_and_files_that_do_not_belong(
    undisturbed: tuple[dict, float], tmp_path: Path
) -> None:
    for name, content in undisturbed[0].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").touch()
    assert verify_shards(tmp_path) == []
    (tmp_path / "000030.tar").touch()
    (tmp_path / "000003.tar.partial").touch()
    problems = verify_shards(tmp_path)
    assert [problem.split()[0] for problem in problems] == ["000003.tar.partial", "000030.tar"]
    assert "is not one of the files of shards.json" in problems[0]
    (tmp_path / "000030.tar").unlink()
    (tmp_path / "000003.tar.partial").unlink()
    index = json.loads(undisturbed[0]["shards.json"])
    for change, message in (
        ({"samples": 3}, "its numbers of samples are not those of its shards"),
        ({"samples_per_source": [3]}, "its numbers of samples"),
        ({"problems": []}, ""),
        (
            {"shards": [index["shards"][0] | {"samples": 21}, *index["shards"][1:]]},
            "does not list the 21 samples that shards.json says",
        ),
    ):
        (tmp_path / "shards.json").write_text(json.dumps(index | change))
        problems = verify_shards(tmp_path)
        assert len(problems) == bool(message) and message in "".join(problems)
