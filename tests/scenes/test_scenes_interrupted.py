"""Drawing scenes with signals, kills, two at once and full disks: whole or absent, and nothing is left behind."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from forked import Forked, fork

from pixel_sail import scenes
from pixel_sail.errors import FileError, UserError
from pixel_sail.locks import Busy
from pixel_sail.scenes import dataset

SIZE = {"images": 12, "seed": 5, "long_side_px": 64}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The files, and the seconds that it takes to draw them."""
    out, started = tmp_path_factory.mktemp("scenes") / "out", time.monotonic()
    assert scenes.generate(out, **SIZE, workers=2)
    return contents(out), time.monotonic() - started


def draw(out: Path, log: Path, **changes: object) -> Forked:
    return fork(partial(scenes.generate, out, **{**SIZE, "workers": 2, **changes}), log)


def test_killed_at_any_moment_and_repeated(undisturbed: tuple[dict, float], tmp_path: Path) -> None:
    files, seconds = undisturbed
    out, rng = tmp_path / "data/out", random.Random(0)
    moments = [rng.uniform(0.02, seconds) for _ in range(5)]
    for number, moment in enumerate(moments):
        started = draw(out, tmp_path / f"log{number}", overwrite=True, seed=number % 2)
        time.sleep(moment)
        os.kill(started.process.pid, signal.SIGKILL)
        started.finish()
        assert not out.exists() or (out / "scenes.json").exists()
    scenes.generate(out, **SIZE, workers=2, overwrite=True)
    assert contents(out) == files and [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_kill_left_goes_even_if_the_folder_is_complete(undisturbed: tuple[dict, float], tmp_path: Path) -> None:
    out = tmp_path / "out"
    scenes.generate(out, **SIZE, workers=2)
    shutil.copytree(out, tmp_path / "out.previous.partial")  # killed while the older folder was being deleted
    (tmp_path / ".out.lock").touch()
    assert not scenes.generate(out, **SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and contents(out) == undisturbed[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_twice(tmp_path: Path, number: int) -> None:
    out = tmp_path / "data/out"
    started = draw(out, tmp_path / "log", images=2000)
    started.wait_for(lambda: len(list(out.parent.glob("out.partial/images/*/*.jpg"))) > 3)
    started.signal_all(number)
    started.signal_all(number)
    status, printed = started.finish()
    assert status == (130 if number == signal.SIGINT else 143)
    assert printed.startswith("stopped: ") and printed.count("\n") == 1
    assert " of 2000 images were drawn, and none is kept" in printed and "the same command starts again" in printed
    assert not list(out.parent.iterdir())


def test_two_at_once(tmp_path: Path) -> None:
    out = tmp_path / "data/out"
    started = draw(out, tmp_path / "log", images=2000)
    started.wait_for((out.parent / "out.partial").exists)
    with pytest.raises(Busy, match=rf"{out} is in use by process {started.process.pid} on"):
        scenes.generate(out, **SIZE)
    started.signal_all(signal.SIGTERM)
    assert started.finish()[0] == 143


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_message(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "data/out"

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        scenes.generate(out, 8, 0, 224, workers)

    status, printed = fork(on_a_full_disk, tmp_path / "log").finish()
    message = f"error: {out}: File too large; raise the limit of the size of a file (ulimit -f)\n"
    assert (status, printed) == (1, message)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_one_message_for_any_number_of_workers(tmp_path: Path, monkeypatch, workers: int) -> None:
    def draw_image(folder: Path, index: int, **settings: object) -> None:
        raise MemoryError

    monkeypatch.setattr(dataset, "draw_image", draw_image)
    status, printed = draw(tmp_path / "out", tmp_path / "log", workers=workers).finish()
    assert status == 1 and printed.startswith("error: the memory of this machine is used up")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 10**9}, r"would need about 62,\d{3}\.\d GB, and .* are free on its disk"),
        ({"images": 10**9, "lessons": True}, r"would need about 73,\d{3}\.\d GB"),
        ({"images": 10**9, "image_text": True}, r"would need about 67,\d{3}\.\d GB"),  # each image once more
        ({"long_side_px": 10**6}, "long_side_px from 64 to 4096"),
        ({"workers": 0}, "need 1 to 256 workers, got 0"),
        ({"workers": 10**6}, "need 1 to 256 workers"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scenes.generate(tmp_path / "out", **{**SIZE, **changes})
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (Path("/sys/kernel/out"), Path("/proc/out"), tmp_path / "file/out"):
        with pytest.raises(FileError, match="cannot write into .*give a"):
            scenes.generate(out, **SIZE)


def test_a_folder_that_lost_images_is_not_taken_for_complete(tmp_path: Path, undisturbed: tuple[dict, float]) -> None:
    out = tmp_path / "out"
    scenes.generate(out, **SIZE, workers=2)
    next((out / "images/train2014").iterdir()).unlink()
    with pytest.raises(FileError, match=r"has 11 of its 12 images; .*--overwrite"):
        scenes.generate(out, **SIZE)
    assert scenes.generate(out, **SIZE, workers=2, overwrite=True) and contents(out) == undisturbed[0]


def test_a_damaged_scenes_json_is_no_scenes_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for write in (lambda path: path.write_bytes(b'{"request": {"ima'), os.mkfifo, Path.mkdir):
        write(tmp_path / "out/scenes.json")
        with pytest.raises(FileError, match="is not a scenes folder; choose another folder"):
            scenes.generate(tmp_path / "out", **SIZE, overwrite=True)
        if (tmp_path / "out/scenes.json").is_dir():
            break
        (tmp_path / "out/scenes.json").unlink()
