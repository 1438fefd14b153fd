"""The README's commands, small: draw, train, score, predict. `launch` starts each tool once, as a user does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm import run_tool

from pixel_sail.config import REPOSITORY
from pixel_sail.data.masks import decode_mask

TINY = [
    "model.scratch.hidden_size=32",
    "model.scratch.layers=2",
    "model.scratch.mlp_size=64",
    "train.steps=3",
    "train.batch_size=4",
    "data.workers=0",
    "loss.points=64",
]


def launch(*command: str | Path) -> None:
    """A tool in a Python of its own, its imports included."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run(*command: str | Path, ok: bool = True) -> str:
    """A tool in a process forked from one that has imported everything; what it printed."""
    status, output = run_tool(*command)
    assert (status == 0) == ok, output
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """data/ and run/ of a three-step training on fifteen images."""
    folder = tmp_path_factory.mktemp("e2e")
    launch("tools/prepare_data.py", "scenes", "--out", folder / "data", "--images", 15, "--seed", 3, "--long-side", 96)
    launch("tools/train.py", "configs/scratch.yaml", f"run.dir={folder}/run", f"data.root={folder}/data", *TINY)
    return folder


def test_a_run_leaves_what_is_promised(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]
    assert {"loss", "lm", "bce", "dice", "lr", "step_ms", "data_ms"} <= lines[0].keys()
    for name in ("config.yaml", "environment.json", "checkpoints/step_00000003/state.json", "export/model.safetensors"):
        assert (finished / "run" / name).is_file(), name
    assert "is finished" in run(
        "tools/train.py", "configs/scratch.yaml", f"run.dir={finished}/run", f"data.root={finished}/data", *TINY
    )


def test_score_and_score_again_from_the_file(finished: Path) -> None:
    out = finished / "scores"
    common = ["--data-root", finished / "data", "--benchmark", "refcoco:val", "--benchmark", "grefcoco:val"]
    launch("tools/test.py", finished / "run/export", *common, "--out", out, "--gallery", 4)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["checkpoint"] == str(finished / "run/export")
    assert {"ciou", "giou", "pr@0.5", "pr@0.9", "cases", "images"} <= metrics["benchmarks"]["refcoco:val"].keys()
    assert {"ciou", "giou", "n_acc", "t_acc"} <= metrics["benchmarks"]["grefcoco:val"].keys()
    line = json.loads((out / "predictions/refcoco_val.jsonl").read_text().splitlines()[0])
    assert line.keys() == {"ref_id", "sent_id", "sentence", "text", "segmentation"}
    assert (out / "gallery/refcoco_val.png").is_file()
    files = [
        x for name in ("refcoco_val", "grefcoco_val") for x in ("--predictions", out / f"predictions/{name}.jsonl")
    ]
    run("tools/test.py", *files, *common, "--out", finished / "again")
    again = json.loads((finished / "again/metrics.json").read_text())
    assert again["benchmarks"] == metrics["benchmarks"] and again["checkpoint"] is None


def test_scores_do_not_depend_on_the_generation_config(finished: Path, tmp_path: Path) -> None:
    """It is how the folder answers where nobody says otherwise; scores are of greedy answers of the usual length."""
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    for folder in (plain, changed):
        shutil.copytree(finished / "run/export", folder)
        (folder / "checksums.json").unlink(missing_ok=True)
    (plain / "generation_config.json").unlink(missing_ok=True)
    (changed / "generation_config.json").write_text('{"max_new_tokens": 1, "do_sample": true, "temperature": 50.0}')
    written = []
    for folder in (plain, changed):
        out = tmp_path / f"{folder.name}_out"
        run("tools/test.py", folder, "--data-root", finished / "data", "--benchmark", "refcoco:val", "--out", out)
        written.append((out / "predictions/refcoco_val.jsonl").read_text())
    assert written[0] == written[1]


def test_predict(finished: Path) -> None:
    image = next((finished / "data/images/train2014").glob("*.jpg"))
    out = finished / "predict"
    launch("tools/predict.py", finished / "run/export", "--image", image, "--text", "the red one", "--out", out)
    assert list(out.glob("*.json")) and list(out.glob("*.png"))
    size = Image.open(image).size
    for mask in out.glob("*_[0-9]_[0-9].png"):
        assert np.asarray(Image.open(mask)).shape == size[::-1]


def test_predict_on_a_folder(finished: Path, tmp_path: Path) -> None:
    """Each image is answered as alone; one that cannot be read is named, and does not stop the others."""
    photos = tmp_path / "photos"
    photos.mkdir()
    first, second = sorted((finished / "data/images/train2014").glob("*.jpg"))[:2]
    Image.open(first).save(photos / "a.png")
    Image.open(second).save(photos / "a.webp", lossless=True)
    (photos / "b.JPG").write_bytes(b"no image")
    (photos / "notes.txt").write_text("not an image either")
    ask = ["--text", "the red one", "--ask", "Is it red?", "--out"]
    call = ["tools/predict.py", finished / "run/export", "--image"]
    output = run(*call, photos, *ask, tmp_path / "out", ok=False)
    assert "not read: " in output and "error: 1 of 3 images could not be read; the others are in" in output
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"a.png.json", "a.webp.json"}
    for name in ("a.png", "a.webp"):
        run(*call, photos / name, *ask, tmp_path / name)
        alone = json.loads((tmp_path / name / "a.json").read_text())["answers"]
        together = json.loads((tmp_path / "out" / f"{name}.json").read_text())["answers"]
        kept = ("asked", "text", "segmentations")
        assert [{key: answer[key] for key in kept} for answer in together] == [
            {key: answer[key] for key in kept} for answer in alone
        ]
    both = [*call, photos / "a.png", "--image", first, "--box", "1,2,9,9", *ask, tmp_path / "regions"]
    assert "regions are drawn on one image, and there are 2" in run(*both, ok=False)


def test_predict_with_regions(finished: Path) -> None:
    image = next((finished / "data/images/train2014").glob("*.jpg"))
    width, height = Image.open(image).size
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 2, : width // 3] = 255
    Image.fromarray(mask).save(finished / "mask.png")
    call = ["tools/predict.py", finished / "run/export", "--image", image, "--out", finished / "regions"]
    regions = ["--box", "2,3,20,30", "--mask", finished / "mask.png", "--point", "40,50", "--scribble", "5,60,30,64"]
    output = run(
        *call, *regions, "--ask", "Is <Prompt1> red?", "--ask", "<Prompt9>?", "--text", "what is near <Prompt2>"
    )
    assert "<Prompt9>?  ->  <Prompt9> is not in the image." in output
    written = json.loads((finished / f"regions/{image.stem}.json").read_text())
    areas = [int(decode_mask(region).sum()) for region in written["regions"]]
    assert areas[:3] == [18 * 27, int((mask > 0).sum()), 1] and areas[3] >= 25
    assert [answer["asked"] for answer in written["answers"]][1:] == ["Is <Prompt1> red?", "<Prompt9>?"]
    plain, marked = (
        np.asarray(Image.open(image)),
        np.asarray(Image.open(finished / f"regions/{image.stem}_overlay.png")),
    )
    times = marked.shape[1] // plain.shape[1]
    edge = marked[3 * times + times // 2, 10 * times].astype(int)  # the upper edge of the box is drawn
    assert np.abs(edge - (235, 0, 90)).max() < 60
    phrases = ["--text", "the red one", "--text", "the mug"]  # of a phrase that names no region, none is shown
    assert "no --text names a region, so none is shown to the model: write <Prompt0>" in run(*call, *regions, *phrases)
    with_regions = json.loads((finished / f"regions/{image.stem}.json").read_text())
    run(*call, *phrases)
    without = json.loads((finished / f"regions/{image.stem}.json").read_text())
    assert with_regions["answers"] == without["answers"] and len(with_regions["regions"]) == 4


def test_score_perbench(finished: Path) -> None:
    out = finished / "perbench"
    call = ["tools/test.py", finished / "run/export", "--data-root", finished / "data", "--out", out]
    run(*call, "--benchmark", "perbench", "--benchmark", "region_caption:refcocog", "--gallery", 3, "--max-images", 2)
    scores = json.loads((out / "metrics.json").read_text())["benchmarks"]
    assert {"meteor", "cases"} <= scores["perbench:caption"].keys() and "accuracy" in scores["perbench:mcq"]
    assert {"ciou", "giou"} <= scores["perbench:vtres"].keys() and "cider" in scores["region_caption:refcocog"]
    assert len(list((out / "gallery").glob("*.png"))) == 4
    blind = run(*call, "--benchmark", "perbench:mcq", "--hide", "prompts", "--max-images", 2, ok=False)
    assert "metrics.json has the scores of perbench:caption, perbench:vtres, region_caption:refcocog" in blind
    assert "made with something else: settings.hide was " in blind and "Traceback" not in blind


def test_errors_are_one_line_without_a_traceback(finished: Path) -> None:
    image = next((finished / "data/images/train2014").glob("*.jpg"))
    train, nowhere, out = ["tools/train.py", "configs/scratch.yaml"], finished / "nowhere", ["--out", finished / "x"]
    ask = ["tools/predict.py", finished / "run/export", "--image", image, "--ask", "?", *out]
    for command, message in (
        ([*train, "trian.lr=1"], "did you mean 'train'?"),
        ([*train, f"data.root={nowhere}"], "expected"),
        (["tools/test.py", nowhere, "--benchmark", "refcoco:val", *out], "error:"),
        (["tools/predict.py", nowhere, "--image", "a.jpg", "--text", "x", *out], "error:"),
        ([*ask, "--point", "9999,1"], "the point (9999.0, 1.0) of <Prompt0> is outside the image"),
        ([*ask, "--min-presence", "0.5"], "error: min_presence is 0.5"),
        ([*ask, "--min-presence", "2"], "'2' is not a number from 0 to 1"),
        ([*ask, "--box", "1,2,3"], "--box 1,2,3: a box is x0,y0,x1,y1"),
        (["tools/convert.py", "research", nowhere, "--out", finished / "z"], "needs config.json"),
    ):
        output = run(*command, ok=False)
        assert message in output and "Traceback" not in output, output
