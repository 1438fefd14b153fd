"""Filling a cache with signals, kills, two at once and full disks; and damaged files of a cache."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forked import Forked, fork
from test_cache import IMAGES, draw_root, write_config
from tiny_expert import save_expert

from pixel_sail.config import Config, load_config
from pixel_sail.data.errors import DatasetError
from pixel_sail.errors import FileError, UserError
from pixel_sail.experts.cache import RECORD, CacheWriter, FeatureCache
from pixel_sail.experts.features import cached_features
from pixel_sail.experts.fill_cache import ImagesToCache, cache_experts, finish_cache
from pixel_sail.locks import Busy


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_expert(tmp_path_factory.mktemp("expert") / "vit")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_root(tmp_path_factory.mktemp("cache") / "root")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, root: Path, expert: Path) -> tuple[Path, float]:
    """A finished cache, and the seconds that it takes to fill it."""
    config = load_config(write_config(tmp_path_factory.mktemp("whole"), root, expert))
    started = time.monotonic()
    fill(config)
    return config.experts[0].cache, time.monotonic() - started


def fill(config: Config, process: int = 0, processes: int = 1, batch: int = 4) -> None:
    cache_experts(config, ["vit"], "cpu", process, processes, batch, progress=False)
    if processes == 1:
        finish_cache(config, "vit", progress=False)


@pytest.fixture
def config(tmp_path: Path, root: Path, expert: Path) -> Config:
    return load_config(write_config(tmp_path, root, expert), ["data.workers=2"])


def slow(config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Ten milliseconds an image."""
    prepare = ImagesToCache.__getitem__
    monkeypatch.setattr(ImagesToCache, "__getitem__", lambda self, number: (time.sleep(0.01), prepare(self, number))[1])
    return config


def start(config: Config, log: Path, **shares: int) -> Forked:
    return fork(partial(fill, config, **shares), log)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_killed_at_any_moment_and_repeated(config: Config, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = undisturbed
    cache, rng = tmp_path / "cache", random.Random(0)
    for number in range(5):
        started = start(config, tmp_path / f"log{number}")
        time.sleep(rng.uniform(0, seconds))
        os.kill(started.process.pid, signal.SIGKILL)
        started.finish()
    cache.mkdir(exist_ok=True)  # on a busy machine all five may be killed before they make it
    (cache / "manifest.json.00000-of-00002.partial").touch()
    fill(config)
    assert files(cache) == files(whole)
    assert FeatureCache(cache).manifest["statistics"] == FeatureCache(whole).manifest["statistics"]
    assert sorted(path.name for path in tmp_path.iterdir() if "log" not in path.name) == ["cache", "config.yaml"]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGUSR1, 2)])
def test_a_signal_to_all_twice(
    config: Config,
    undisturbed: tuple[Path, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    workers: int,
) -> None:
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    started = start(slow(config, monkeypatch), tmp_path / "log")
    index = tmp_path / "cache/00000-of-00001.index"
    started.wait_for(lambda: index.exists() and index.stat().st_size > 0)
    started.signal_all(number)
    started.signal_all(number)
    status, printed = started.finish()
    assert status == (130 if number == signal.SIGINT else 143)
    name = signal.Signals(number).name
    first, second = printed.splitlines()
    assert first == f"{name}: finishing this batch of images first"
    assert second.startswith("stopped") and f"of {IMAGES} images are done; the same command goes on" in second
    done = int(second.split(" of ")[0].split()[-1])
    assert done == index.stat().st_size // RECORD.itemsize and not (tmp_path / "cache/00000-of-00001.lock").exists()
    fill(config)
    assert files(tmp_path / "cache") == files(undisturbed[0])


def test_two_on_one_share_and_two_on_two(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked workers do not hold the lock, and shares run side by side."""
    released, prepare = tmp_path / "released", ImagesToCache.__getitem__

    def held(self: ImagesToCache, number: int) -> object:
        while not released.exists():  # the first must not be over before the others have tried
            time.sleep(0.01)
        return prepare(self, number)

    monkeypatch.setattr(ImagesToCache, "__getitem__", held)
    first = start(config, tmp_path / "log", process=0, processes=2)
    first.wait_for((tmp_path / "cache/00000-of-00002.index").exists)
    with pytest.raises(Busy, match=rf"index is in use by process {first.process.pid} on .*Give every process its own"):
        fill(config, 0, 2)
    with pytest.raises(Busy, match="is in use by process"):
        finish_cache(config, "vit", progress=False)
    second = start(config, tmp_path / "log2", process=1, processes=2)
    released.touch()
    assert first.finish() == (0, "") and second.finish() == (0, "")
    finish_cache(config, "vit", progress=False)
    assert FeatureCache(tmp_path / "cache").manifest["statistics"]["images"] == IMAGES


def test_a_full_disk_is_one_message_and_keeps_what_is_stored(config: Config, tmp_path: Path) -> None:
    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        fill(config)

    status, printed = fork(on_a_full_disk, tmp_path / "log").finish()
    assert (
        status == 1 and printed.startswith(f"error: {tmp_path / 'cache'}: File too large") and printed.count("\n") == 1
    )
    fill(config)
    assert FeatureCache(tmp_path / "cache").manifest["statistics"]["images"] == IMAGES


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    def refuse(self: ImagesToCache, number: int) -> None:
        raise FileError(f"image {number} is on a disk that has gone")

    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    monkeypatch.setattr(ImagesToCache, "__getitem__", refuse)
    assert start(config, tmp_path / "log").finish() == (1, "error: image 0 is on a disk that has gone\n")
    if workers:
        monkeypatch.setattr(ImagesToCache, "__getitem__", lambda self, number: os.kill(os.getpid(), signal.SIGKILL))
        status, printed = start(config, tmp_path / "log2").finish()
        assert status == 1 and printed.startswith("error: a worker process was ended by SIGKILL")


def test_no_place_to_write(config: Config) -> None:
    expert = config.experts[0].model_copy(update={"cache": Path("/sys/kernel/cache"), "path": "not opened"})
    with pytest.raises(FileError, match="cannot write into /sys/kernel/cache"):
        cache_experts(config.model_copy(update={"experts": [expert]}), ["vit"], "cpu", progress=False)


def test_overflow_is_a_message(tmp_path: Path) -> None:
    manifest = {"width": 1, "path": "x", "made_with": {"fingerprint": "x"}}
    with CacheWriter(tmp_path / "cache", manifest) as writer, pytest.raises(UserError, match="not finite in float16"):
        writer.add("a" * 64, np.full((1, 2, 2), np.inf, np.float16))


# Damaged files


@pytest.fixture
def copy(undisturbed: tuple[Path, float], tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed[0], tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**12}, "width, which must be 1 to 65,536"),
        ({"width": "8"}, "width"),
        ({"width": None}, "width"),
        ({"made_with": []}, "made_with"),
        ({"made_with": {}}, "made_with"),
        ({"path": 3}, "path"),
        ({"statistics": []}, "statistics"),
        ({"statistics": {"images": 1, "bytes": 1, "mean": [], "std": []}}, r"statistics\.mean, which must have"),
        ({"version": 2}, "has version 2, this code reads 1"),
    ],
)
def test_a_manifest_that_was_changed(copy: Path, config: Config, change: dict, message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    for use in (lambda: FeatureCache(copy), lambda: fill(config), lambda: cached_features(config)):
        with pytest.raises(DatasetError, match=message):
            use()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 10**5, '{"version": 1}'])
def test_a_manifest_that_is_none(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        FeatureCache(copy)


def test_statistics_that_are_not_finite(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["statistics"]["std"][0] = float("nan")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match=r"statistics\.std: not all are finite numbers"):
        FeatureCache(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("height", 2**32 - 1), ("width", 0), ("offset", 2**63), ("offset", 1), ("image", b"../../x"), ("height", 1)],
)
def test_records_that_no_writer_wrote(copy: Path, config: Config, field: str, value: object) -> None:
    """Nothing is allocated or read by their numbers."""
    path = copy / "00000-of-00001.index"
    records = np.frombuffer(path.read_bytes(), dtype=RECORD).copy()
    records[field][3] = value
    path.write_bytes(records.tobytes())
    for use in (lambda: FeatureCache(copy), lambda: fill(config)):
        with pytest.raises(DatasetError, match=r"index is damaged at record [34]: copy it again, or delete"):
            use()


def test_a_tail_of_zeros_is_what_a_power_cut_leaves(
    copy: Path, undisturbed: tuple[Path, float], config: Config
) -> None:
    path = copy / "00000-of-00001.index"
    path.write_bytes(path.read_bytes()[: -2 * RECORD.itemsize] + bytes(2 * RECORD.itemsize))
    with pytest.raises(DatasetError, match=f"of {IMAGES - 2} images, and manifest.json speaks of {IMAGES}"):
        FeatureCache(copy)
    fill(config)
    assert files(copy) == files(undisturbed[0])


def test_pipes_and_folders_in_the_place_of_files(copy: Path) -> None:
    for name in ("00000-of-00001.features", "00000-of-00001.index", "manifest.json"):
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(DatasetError, match=f"{name} is a named pipe"):
            FeatureCache(copy)


def test_a_missing_part_is_noticed(copy: Path) -> None:
    for name in ("index", "features"):
        (copy / f"00000-of-00001.{name}").unlink()
    with pytest.raises(DatasetError, match=f"has the features of 0 images, and manifest.json speaks of {IMAGES}"):
        FeatureCache(copy)
