"""The way of docs/jsonl.md: write lines, check, look, train 20 steps, score; each command as its own process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny_run
import yaml
from PIL import Image, ImageDraw
from test_end_to_end import run

COLOURS = ("red", "green", "blue")


def write_dataset(root: Path, images: int, split: str, seed: int) -> Path:
    """Coloured boxes: a mask of each form, a text, and a region."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    rng, lines = np.random.default_rng(seed), []
    for number in range(images):
        name = f"{split}_{number}.png"
        image, mask = Image.new("RGB", (64, 48), "grey"), Image.new("L", (64, 48))
        x, y = int(rng.integers(2, 30)), int(rng.integers(2, 20))
        colour = COLOURS[number % 3]
        ImageDraw.Draw(image).rectangle((x, y, x + 19, y + 15), fill=colour)
        ImageDraw.Draw(mask).rectangle((x, y, x + 19, y + 15), fill=255)
        image.save(root / "images" / name)
        mask.save(root / "masks" / name)
        polygon = [[x, y, x + 20, y, x + 20, y + 16, x, y + 16]]
        talks = [
            {"question": f"Segment the {colour} box.", "answer": "It is [SEG]."},
            {"question": "What colour is <Prompt0>?", "answer": f"{colour}."},
        ]
        line = {"image": name, "conversations": talks, "masks": [name if number % 2 else polygon]}
        lines.append(line | {"regions": {"0": [x, y, 20, 16]}})
    (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_check_look_train_score(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "run"
    write_dataset(mine, 12, "train", seed=0)
    write_dataset(mine, 4, "val", seed=1)
    printed = run("tools/prepare_data.py", "check", "--root", mine, "--source", "jsonl")
    assert (
        "12 samples, 12 decoded" in printed and "4 samples, 4 decoded" in printed and "missing  jsonl:test" in printed
    )

    config = tmp_path / "mine.yaml"
    data = {"root": str(tmp_path), "mixture": [{"source": "jsonl", "root": str(mine), "split": "train"}]}
    values = tiny_run.VALUES | {
        "run": {"dir": str(out), "log_every": 1},
        "data": tiny_run.VALUES["data"] | data,
        "train": tiny_run.VALUES["train"] | {"steps": 20, "lr": 3e-3},
        "evaluate": {"benchmarks": ["jsonl:mine/val.jsonl"], "every": 20},
    }
    config.write_text(yaml.safe_dump(values))
    run("tools/inspect_data.py", config, "--out", tmp_path / "look", "--count", 4)
    text = (tmp_path / "look/mine.txt").read_text()
    assert text.count("1 masks of") == text.count("1 regions") == 4 and "train.jsonl:" in text
    with Image.open(tmp_path / "look/mine.png") as page:
        assert page.width > 300

    run("tools/train.py", config)
    log = tiny_run.log_lines(out)
    assert len(log) == 20 and log[-1]["bad_samples"] == 0
    assert np.mean([line["loss"] for line in log[-5:]]) < 0.9 * np.mean([line["loss"] for line in log[:5]])
    validated = json.loads((out / "validation.jsonl").read_text().splitlines()[-1])
    assert "jsonl:mine/val.jsonl" in json.dumps(validated)

    name = f"jsonl:{mine}/val.jsonl"
    printed = run("tools/test.py", out / "export", "--benchmark", name, "--out", tmp_path / "scores", "--gallery", 2)
    (scores,) = json.loads((tmp_path / "scores/metrics.json").read_text())["benchmarks"].values()
    assert (scores["cases"], scores["images"], scores["not_scored"]) == (4, 4, 4) and 0 <= scores["giou"] <= 100
    (predictions,) = (tmp_path / "scores/predictions").glob("*.jsonl")
    right = [
        {"line": number, "turn": 0, "segmentation": segmentation}
        for number, segmentation in enumerate(_targets(mine / "val.jsonl"), start=1)
    ]
    predictions.write_text("".join(json.dumps(line) + "\n" for line in right))
    again = ["--predictions", predictions, "--benchmark", name, "--out", tmp_path / "again"]
    run("tools/test.py", *again)
    (scores,) = json.loads((tmp_path / "again/metrics.json").read_text())["benchmarks"].values()
    assert (scores["giou"], scores["ciou"]) == (100, 100)

    lines = (mine / "val.jsonl").read_text().splitlines()
    (mine / "val.jsonl").write_text("\n".join([*lines[:2], lines[2].replace("[SEG]", "here")]))
    printed = run("tools/prepare_data.py", "check", "--root", mine, "--source", "jsonl", ok=False)
    assert "val.jsonl:3: its answers have 0 [SEG], but 'masks' has 1; each needs its own" in printed
    assert "Traceback" not in printed


def _targets(path: Path) -> list[dict]:
    from pixel_sail.data.sources.jsonl import read_jsonl

    return [entry.target(0, [(48, 64)]) for entry in read_jsonl(path, [])]
