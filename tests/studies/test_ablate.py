"""tools/ablate.py: with the real tools, killed and continued; and the order of its calls, with stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import write_refer_dataset

from pixel_sail.architecture import Architecture
from pixel_sail.config import REPOSITORY
from pixel_sail.studies.ablation import runs
from pixel_sail.studies.ablation.plan import Run, load_plan
from pixel_sail.studies.ablation.runs import RunFailed, execute, finished_scores

BASE = {
    "run": {"dir": "x", "log_every": 1},
    "model": {
        "scratch": {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_size": 64, "vocab_size": 400},
    },
    "architecture": {"max_side_px": 64, "mask_dim": 16},
    "data": {"root": "set below", "mixture": [{"source": "refcoco"}], "max_length": 512, "workers": 0},
    "loss": {"points": 64},
    "train": {"steps": 2, "batch_size": 4, "lr": 1e-3},
}
PLAIN = {"name": "plain", "changes": {"architecture.mask_stride": 16, "architecture.region_embedding": "pooled"}}
UPSAMPLING = {"name": "upsampling", "changes": {"architecture.mask_stride": 4}}


def write(folder: Path, root: Path, **changes) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE | {"data": BASE["data"] | {"root": str(root)}}))
    values = {"base": "base.yaml", "dir": str(folder / "out"), "seeds": [0, 1], "benchmarks": ["refcoco:val"]}
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(values | {"variants": [PLAIN, UPSAMPLING]} | changes))
    return path


def start(*arguments: str | Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "tools/ablate.py", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def call(*arguments: str | Path) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def test_killed_and_continued(tmp_path: Path) -> None:
    """Killed during the training of the second run: that training continues and is not started twice."""
    config, out = write(tmp_path, write_refer_dataset(tmp_path / "root")), tmp_path / "out"
    process, deadline = start(config), time.monotonic() + 400
    while not (out / "upsampling/seed_0/log.txt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    printed, _ = process.communicate()
    assert process.returncode == -9 and "plain, seed 0: done" in printed, printed
    first = (out / "plain/seed_0/scores.json").stat()

    status, printed = call(config)
    assert status == 0 and "1 of 4 runs are finished" in printed, printed
    assert (out / "plain/seed_0/scores.json").stat() == first
    for folder in (out / name / f"seed_{seed}" for name in ("plain", "upsampling") for seed in (0, 1)):
        assert (folder / "log.txt").read_text().count("tools/train.py") == 1, folder
        assert [json.loads(line)["step"] for line in (folder / "run/log.jsonl").read_text().splitlines()] == [1, 2]
    results = json.loads((out / "ablation.json").read_text())
    assert results["unfinished"] == [] and len(results["steps"]) == len(results["scores"])
    values = results["values"]["refcoco:val ciou"]
    scored = json.loads((out / "upsampling/seed_1/scores/metrics.json").read_text())["benchmarks"]["refcoco:val"]
    assert values["upsampling"]["1"] == scored["ciou"] and {"boundary_iou", "small_giou"} <= scored.keys()
    blocks = {name: _upsample_blocks(out / name / "seed_0/run/export/config.json") for name in ("plain", "upsampling")}
    assert blocks == {"plain": 0, "upsampling": 2}
    assert (out / "ablation.md").read_text() in printed

    write(tmp_path, tmp_path / "root", changes={"train.steps": 3})
    status, printed = call(config, "--table")
    assert status == 1 and "train.steps was 2, is 3" in printed and "Traceback" not in printed


def _upsample_blocks(path: Path) -> int:
    return Architecture(**json.loads(path.read_text())["architecture"]).upsample_blocks


@pytest.fixture
def calls(tmp_path: Path, monkeypatch) -> Path:
    """Stand-ins for the tools: they write the files of the real ones, and a line in this file for each call."""
    (tmp_path / "tools").mkdir()
    written = tmp_path / "calls.txt"
    body = f"import sys, json, pathlib\nopen({str(written)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    train = "import yaml\npathlib.Path(yaml.safe_load(open(sys.argv[1]))['run']['dir'], 'export').mkdir(parents=True)\n"
    test = (
        "if pathlib.Path(sys.argv[0]).with_name('broken').exists(): sys.exit('error: no images')\n"
        "names = [b for a, b in zip(sys.argv, sys.argv[1:]) if a == '--benchmark']\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); out.mkdir(exist_ok=True)\n"
        "(out / 'metrics.json').write_text(json.dumps({'benchmarks': {n: {'ciou': 1.0} for n in names}}))\n"
    )
    for name, rest in (("train", train), ("test", test), ("cache_expert", "")):
        (tmp_path / "tools" / f"{name}.py").write_text(body + rest)
    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    return written


def one_run(folder: Path, **changes) -> tuple[Run, object]:
    plan = load_plan(write(folder, folder / "root", seeds=[3], variants=[PLAIN], **changes))
    return plan.runs[0], plan.config


def test_what_is_done_is_not_done_again(tmp_path: Path, calls: Path) -> None:
    run, config = one_run(tmp_path)
    assert finished_scores(run, config) is None and execute(run, config, wait=False)
    train, test = calls.read_text().splitlines()
    assert train == str(run.folder / "config.yaml")
    assert (
        test == f"{run.folder}/run/export --benchmark refcoco:val --data-root {tmp_path}/root --out {run.folder}/scores"
    )
    assert execute(run, config, wait=False) and len(calls.read_text().splitlines()) == 2
    run, config = one_run(tmp_path, benchmarks=["refcoco:val", "perbench:mcq"], max_images=5)
    assert finished_scores(run, config) is None and execute(run, config, wait=False)
    *_, last = calls.read_text().splitlines()
    assert len(calls.read_text().splitlines()) == 3  # scored on more benchmarks, not trained again
    assert "--benchmark perbench:mcq" in last and last.endswith("--max-images 5")
    assert set(finished_scores(run, config)) == {"refcoco:val", "perbench:mcq"}
    run, config = one_run(tmp_path, max_images=6)
    assert finished_scores(run, config) is None  # scores of another number of images do not count


def test_caches_are_filled_before_training(tmp_path: Path, calls: Path) -> None:
    expert = {"kind": "mask2former", "path": "x", "at": "patches", "size_px": 64}
    cached, uncached = expert | {"name": "first", "cache": str(tmp_path / "caches/first")}, expert | {"name": "second"}
    also_cached = cached | {"name": "third", "cache": str(tmp_path / "caches/third")}
    run, config = one_run(tmp_path, changes={"experts": [cached, uncached, also_cached]})
    execute(run, config, wait=False)
    cache, train, _ = calls.read_text().splitlines()
    assert cache == f"{run.folder}/config.yaml --expert first --expert third" and train == f"{run.folder}/config.yaml"


def test_a_failed_run_says_why_and_can_be_repeated(tmp_path: Path, calls: Path) -> None:
    run, config = one_run(tmp_path)
    (tmp_path / "tools/broken").touch()
    with pytest.raises(RunFailed, match=r"(?s)plain, seed 3: tools/test.py ended with 1; .*error: no images"):
        execute(run, config, wait=False)
    assert finished_scores(run, config) is None
    (tmp_path / "tools/broken").unlink()
    assert execute(run, config, wait=False) and len(calls.read_text().splitlines()) == 3


def test_a_run_of_another_process_is_skipped(tmp_path: Path, calls: Path) -> None:
    run, config = one_run(tmp_path)
    with runs._locked(run.folder / "lock", wait=False) as lock:
        assert lock is not None
        assert not execute(run, config, wait=False) and not calls.exists()
    assert execute(run, config, wait=True) and calls.exists()
