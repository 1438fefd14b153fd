"""Training from shards: exact resume, ranks that finish together, and the tools, killed in between."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_refer_dataset
from tiny_run import (
    assert_same_bits,
    assert_same_curve,
    forget_second_half,
    log_lines,
    run_cli,
    tiny_config,
    weights,
    write_config,
)

from pixel_sail.config import REPOSITORY, ConfigError
from pixel_sail.data.write_shards import make_shards
from pixel_sail.durable import read_json_lines
from pixel_sail.experts.cache import CacheWriter, finish, image_digest, made_with
from pixel_sail.experts.features import cached_features
from pixel_sail.train.loop import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("streamed") / "root", train=5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """15 samples in shards of 7, 7 and 1. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("shards")
    make_shards(tiny_config(folder, root), folder / "shards", 15, 7)
    return folder / "shards"


def streamed(shards: Path) -> str:
    return f"data.mixture=[{{source: shards, root: {shards}}}]"


def test_two_and_two_streamed_steps_are_four(tmp_path: Path, root: Path, shards: Path) -> None:
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    for folder, save_every in ((straight, 100), (interrupted, 2)):
        folder.mkdir()
        train(tiny_config(folder, root, f"train.save_every={save_every}", streamed(shards)))
    forget_second_half(interrupted / "run")
    moved = shutil.copytree(shards, tmp_path / "moved")  # 4 steps of 6 samples: the second half begins an epoch
    train(tiny_config(interrupted, root, "train.save_every=2", "data.workers=3", streamed(moved)))
    assert_same_bits(straight / "run", interrupted / "run")

    forget_second_half(interrupted / "run")
    other = tmp_path / "other"
    make_shards(tiny_config(tmp_path, root, "run.seed=1"), other, 15, 7)
    with pytest.raises(ConfigError, match="the data changed"):
        train(tiny_config(interrupted, root, "train.save_every=2", streamed(other)))


def test_two_ranks_with_uneven_shards_finish_together(tmp_path: Path, root: Path) -> None:
    torn = shutil.copytree(root, tmp_path / "root")
    (image,) = (torn / "images" / "train2014").glob("*11.png")
    image.write_bytes(image.read_bytes()[:-40])  # stored as it is; encoding finds it
    make_shards(tiny_config(tmp_path, torn), tmp_path / "shards", 15, 7)
    overrides = (streamed(tmp_path / "shards"), "train.micro_batch_tokens=150", "train.batch_size=5", "data.workers=1")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    train(tiny_config(first, torn, *overrides))
    status, output = run_cli(write_config(second, torn), *overrides, processes=2)
    assert status == 0, output
    assert_same_curve(first / "run", second / "run")
    bad = read_json_lines(second / "run" / "bad_samples.jsonl")
    assert bad == read_json_lines(first / "run" / "bad_samples.jsonl")
    assert bad and all("image=11: cannot decode the image" in line["message"] for line in bad)
    assert sum(line["samples"] for line in log_lines(second / "run")) == 4 * 5 - len(
        bad
    )  # shares of 3 and 2, less these


def test_from_shards_as_from_files(tmp_path: Path, root: Path) -> None:
    """Samples without a draw in them train the same model from both, where the order is the same: one sample."""
    mixture = "data.mixture=[{source: llava}]"
    talk = [{"from": "human", "value": "Which colours?\n<image>"}, {"from": "gpt", "value": "Red, green and blue."}]
    data = shutil.copytree(root, tmp_path / "root")
    (data / "llava").mkdir()
    image = next((data / "images" / "train2014").iterdir()).name
    (data / "llava" / "train.json").write_text(json.dumps([{"image": image, "conversations": talk}]))
    files = tiny_config(tmp_path, data, mixture, "train.steps=2")
    train(files)
    make_shards(files, tmp_path / "shards", 1)
    train(tiny_config(tmp_path, data, streamed(tmp_path / "shards"), "train.steps=2", f"run.dir={tmp_path / 'second'}"))
    assert_same_bits(tmp_path / "run", tmp_path / "second")
    assert weights(tmp_path / "second")


def test_features_from_shards_as_from_their_cache(tmp_path: Path, root: Path) -> None:
    """Nothing but the cache or the shards is there: no weights of the expert."""
    cache = tmp_path / "cache"
    expert = {"name": "sam", "kind": "timm", "path": "a/hub-name", "at": "patches", "size_px": 32}
    cached, carried = (f"experts={json.dumps([expert | where])}" for where in ({"cache": str(cache)}, {}))
    config = tiny_config(tmp_path, root, cached)
    made_as = made_with(config.experts[0], config.architecture) | {"fingerprint": "abc"}
    with CacheWriter(cache, {"width": 5, "path": "a/hub-name", "made_with": made_as}) as writer:
        for image in sorted((root / "images" / "train2014").iterdir()):
            features = np.random.default_rng(len(image.read_bytes())).normal(size=(5, 3, 4))
            writer.add(image_digest(image), features.astype(np.float16))
    finish(cache, progress=False)
    make_shards(tiny_config(tmp_path, root), tmp_path / "plain", 12, 5)
    make_shards(config, tmp_path / "with", 12, 5, features=cached_features(config))
    for folder, how in ((tmp_path / "plain", cached), (tmp_path / "with", carried)):
        train(tiny_config(tmp_path, root, streamed(folder), how, "train.steps=2", f"run.dir={folder}_run"))
    lines = [log_lines(tmp_path / f"{name}_run") for name in ("plain", "with")]
    assert lines[0] == lines[1] and all(line["distill_sam"] > 0 for line in lines[0])
    a, b = (weights(tmp_path / f"{name}_run") for name in ("plain", "with"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = carried.replace('"size_px": 32', '"size_px": 48')
    with pytest.raises(ConfigError, match=r"other features: size_px was 32, is 48"):
        train(tiny_config(tmp_path, root, streamed(tmp_path / "with"), other, f"run.dir={tmp_path / 'third'}"))


def start_tool(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "tools" / "make_shards.py"), *arguments]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.DEVNULL)


def run_here(monkeypatch: pytest.MonkeyPatch, tool: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    runpy.run_path(str(REPOSITORY / "tools" / tool), run_name="__main__")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def processes_of(folder: Path) -> list[int]:
    """The processes that have the folder as an argument (Linux)."""
    commands = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            commands[int(path.parent.name)] = path.read_bytes().split(b"\0")
    return [number for number, command in commands.items() if bytes(folder) in command]


def test_the_tool_killed_and_repeated(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config, out = write_config(tmp_path, root), tmp_path / "killed"
    request = ("--samples", "3000", "--samples-per-shard", "10")
    process = start_tool(str(config), "--out", str(out), *request, "--workers", "2")
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.index.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)  # what gives out the work: it cannot end before it is killed
    assert len(processes_of(out)) == 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while processes_of(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_of(out) == []  # no worker is left behind
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.index.json")}
    assert 5 <= len(finished) < 300 and not (out / "shards.json").exists()

    run_here(monkeypatch, "make_shards.py", str(config), "--out", str(out), *request, "--workers", "2")
    assert "3000 samples in 300 shards" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    make_shards(tiny_config(tmp_path, root), tmp_path / "straight", 3000, 10, workers=2)
    assert contents(out) == contents(tmp_path / "straight")


def test_the_tool_verifies_and_refuses(
    tmp_path: Path, root: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    run_here(monkeypatch, "make_shards.py", "--out", str(copy), "--verify")
    assert f"{copy}: no file has changed since it was written" in capsys.readouterr().out
    with (copy / "000001.tar").open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(SystemExit, match="1 problems.*\n.*000001.tar has 1000 bytes instead of"):
        run_here(monkeypatch, "make_shards.py", "--out", str(copy), "--verify")
    with pytest.raises(SystemExit, match="error: .*samples was 15, is 5"):
        run_here(monkeypatch, "make_shards.py", str(write_config(tmp_path, root)), "--out", str(copy), "--samples", "5")
    with pytest.raises(SystemExit, match="2"):
        run_here(monkeypatch, "make_shards.py", "--out", str(copy))
    assert "give a config and --samples, or --verify" in capsys.readouterr().err


def test_bench_prints_one_line(
    tmp_path: Path, root: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = str(write_config(tmp_path, root))
    run_here(monkeypatch, "bench.py", "data", config, "--shards", str(shards), "--samples", "30")
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for work in ("read", "encoded"):
        assert result[work]["map"] > 0 and result[work]["shards"] > 0
        # Both are rounded.
        assert abs(result[work]["ratio"] - result[work]["shards"] / result[work]["map"]) < 0.02
