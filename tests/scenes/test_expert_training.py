"""The expert that needs no download: its data, its quality, resuming after a kill, and open_expert on the result."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Mask2FormerForUniversalSegmentation

from pixel_sail.config import REPOSITORY, ConfigError, ExpertConfig
from pixel_sail.durable import read_json_lines
from pixel_sail.experts import open_expert
from pixel_sail.scenes import expert_training as expert
from pixel_sail.scenes.expert_config import ExpertTraining, load_expert_training
from pixel_sail.scenes.expert_data import PanopticImages, Segmentation, batch_order
from pixel_sail.scenes.expert_quality import PanopticQuality, _dense, score

CATEGORIES = [("box", 1), ("disc", 1), ("floor", 0)]
SIZES = [(64, 48), (48, 64), (96, 96), (64, 64)]
SMALL = {"size_px": 64, "widths": [8, 16, 16, 16], "blocks": [1, 1, 1, 1], "feature_size": 32, "encoder_layers": 1}
SMALL |= {"decoder_layers": 2, "queries": 6, "points": 256, "batch_size": 4, "lr": 3e-3, "workers": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training images of a red box and a blue disc on a grey floor; the same again are held out."""
    root = tmp_path_factory.mktemp("panoptic")
    (root / "images").mkdir()
    for split in ("train", "val"):
        write_split(root, split)
    return root


def write_split(root: Path, split: str) -> None:
    folder = root / "annotations" / f"panoptic_{split}2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i, (width, height) in enumerate(SIZES, start=1):
        image, ids = Image.new("RGB", (width, height), (90, 90, 90)), Image.new("RGB", (width, height), (3, 0, 0))
        for colour, segment, draw in (("red", (1, 1, 0), "rectangle"), ("blue", (2, 0, 1), "ellipse")):
            x, y = (4 * i, 6) if draw == "rectangle" else (width // 2, height // 2 + i)
            for canvas, fill in ((image, colour), (ids, segment)):
                getattr(ImageDraw.Draw(canvas), draw)([x, y, x + 18, y + 16], fill=fill)
        image.save(root / "images" / f"{split}_{i}.png")
        ids.save(folder / f"{split}_{i}.png")
        values = np.asarray(ids, dtype=int) @ [1, 256, 65536]
        infos = [
            {"id": n, "category_id": c, "area": int((values == n).sum()), "iscrowd": 0}
            for n, c in ((257, 1), (65538, 2), (3, 3))
        ]
        images.append({"id": i, "file_name": f"{split}_{i}.png", "width": width, "height": height})
        annotations.append({"image_id": i, "file_name": f"{split}_{i}.png", "segments_info": infos})
    categories = [{"id": i, "name": n, "isthing": t} for i, (n, t) in enumerate(CATEGORIES, start=1)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(values))


def config_of(root: Path, folder: Path, **changes) -> ExpertTraining:
    return ExpertTraining(**SMALL | {"root": root, "dir": folder, "steps": 4, "save_every": 2} | changes)


def test_an_image_and_its_segments(root: Path) -> None:
    images = PanopticImages(root, "train", 64)
    assert images.classes == ("box", "disc", "floor") and images.stuff == {2} and len(images) == 4
    stored, truth = images.read(0)
    box = np.asarray(stored)[truth.ids == 1 + truth.classes.index(0)]
    assert len(box) and (box == (255, 0, 0)).all()
    target, mirrored = images[0, False], images[0, True]
    assert target.image.shape == (3, 64, 64) and target.image.dtype == torch.uint8
    assert target.classes.tolist() == [0, 1, 2] and torch.equal(target.masks.sum(0), torch.ones(64, 64))
    assert torch.equal(target.labels, target.masks.argmax(0))
    red = (target.image[0] > 250) & (target.image[1] < 5)
    assert red.sum() > 100 and target.masks[0][red].all()
    assert torch.equal(mirrored.image, target.image.flip(-1)) and torch.equal(mirrored.masks, target.masks.flip(-1))


def test_order_is_a_function_of_the_step() -> None:
    whole = list(batch_order(images=10, batch_size=4, seed=3, first=0, steps=10, flip=True))
    assert list(batch_order(10, 4, 3, 7, 10, True)) == whole[7:]
    assert [len(batch) for batch in whole] == [4] * 10
    epochs = np.array([index for batch in whole for index, _ in batch]).reshape(4, 10)
    assert (np.sort(epochs) == np.arange(10)).all() and len({tuple(epoch) for epoch in epochs}) == 4
    assert 10 < sum(mirrored for batch in whole for _, mirrored in batch) < 30
    assert not any(mirrored for batch in batch_order(10, 4, 3, 0, 10, False) for _, mirrored in batch)


def test_panoptic_quality_closed_form() -> None:
    """Ten pixels; class 0: IoU 3/4 of one, another missed; class 1: predicted as 0; pixel 9 is unannotated."""
    truth = Segmentation(np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3, 0]]), (0, 0, 1))
    predicted = Segmentation(np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2, 2]]), (0, 0))
    quality = PanopticQuality(2)
    quality.add(predicted, truth)
    scores = quality.summary()
    # class 0: one hit of IoU 3/4, one miss, one false alarm: 0.75 / (1 + 0.5 + 0.5). class 1: one miss.
    assert scores["pq"] == pytest.approx(100 * (0.75 / 2 + 0) / 2)
    assert scores["sq"] == pytest.approx(100 * 0.75 / 2) and scores["rq"] == pytest.approx(100 * 0.5 / 2)
    assert scores["found"] == pytest.approx(200 / 3) and scores["class_accuracy"] == pytest.approx(50)
    # class 0: 4 pixels right of 5 true ones and 4 that are another's. class 1: none of 4.
    assert scores["miou"] == pytest.approx(100 * (4 / 9 + 0) / 2)


def test_unannotated_pixels_are_no_false_positive() -> None:
    """One true segment; a second prediction lies mostly on unannotated pixels, then wholly on the segment."""
    truth = Segmentation(np.array([[1, 1, 1, 1, 0, 0, 0]]), (0,))
    quality = PanopticQuality(1)
    quality.add(Segmentation(np.array([[1, 1, 1, 2, 2, 2, 2]]), (0, 0)), truth)
    assert quality.summary()["pq"] == pytest.approx(75)
    quality = PanopticQuality(1)
    quality.add(Segmentation(np.array([[1, 1, 1, 2, 0, 0, 0]]), (0, 0)), truth)
    assert quality.summary()["pq"] == pytest.approx(100 * 0.75 / 1.5)


def test_panoptic_quality_brute_force() -> None:
    """Against sets of pixels, on random images with unannotated pixels, in both orders of the images."""
    rng = np.random.default_rng(0)
    drawn = [(random_segmentation(rng), random_segmentation(rng)) for _ in range(40)]
    drawn = [(blend(a, b, rng), b) for a, b in drawn]
    expected = brute_force(drawn, classes=3)
    for images in (drawn, drawn[::-1]):
        quality = PanopticQuality(3)
        for predicted, truth in images:
            quality.add(predicted, truth)
        assert quality.summary()["pq"] == pytest.approx(expected)
    assert 5 < expected < 95


def random_segmentation(rng: np.random.Generator) -> Segmentation:
    ids = np.repeat(np.repeat(rng.integers(0, 5, (3, 4)), 3, 0), 3, 1)
    return Segmentation(ids, tuple(int(c) for c in rng.integers(0, 3, 4)))


def blend(noise: Segmentation, truth: Segmentation, rng: np.random.Generator) -> Segmentation:
    """The truth with a share of the noise: segments that overlap, some with another class."""
    keep = rng.random(truth.ids.shape) < 0.8
    classes = [c if rng.random() < 0.8 else d for c, d in zip(truth.classes, noise.classes, strict=True)]
    return Segmentation(np.where(keep, truth.ids, noise.ids), tuple(classes))


def brute_force(images: list[tuple[Segmentation, Segmentation]], classes: int) -> float:
    scores = []
    for c in range(classes):
        iou_sum, hits, false, missed = 0.0, 0, 0, 0
        for predicted, truth in images:
            void = pixels(truth, 0)
            theirs = [pixels(truth, k) for k, d in enumerate(truth.classes, 1) if d == c]
            ours = [pixels(predicted, k) for k, d in enumerate(predicted.classes, 1) if d == c]
            matched = 0
            for mine in ours:
                iou = max((len(mine & true) / max(1, len((mine | true) - void)) for true in theirs), default=0)
                if iou > 0.5:
                    iou_sum, matched = iou_sum + iou, matched + 1
                elif len(mine & void) <= len(mine) / 2:
                    false += 1
            hits, missed = hits + matched, missed + len(theirs) - matched
        scores.append(iou_sum / (hits + false / 2 + missed / 2))
    return 100 * float(np.mean(scores))


def pixels(segmentation: Segmentation, k: int) -> set[tuple[int, int]]:
    return {tuple(place) for place in np.argwhere(segmentation.ids == k).tolist()}


def test_fused_segments_are_one() -> None:
    """transformers lists a fused segment once a query, under one number."""
    first, second = {"id": 1, "label_id": 2}, {"id": 2, "label_id": 0}
    for segments in ([first, second, first], [first, first, second, second]):
        segmentation = _dense({"segmentation": torch.tensor([[1, -1, 2, 1, 0]]), "segments_info": segments})
        assert segmentation.ids.tolist() == [[1, 0, 2, 1, 0]] and segmentation.classes == (2, 0)


def test_two_and_two_steps_are_four(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_stages = {"log_every": 1, "feature_steps": 1}
    expert.train_expert(config_of(root, tmp_path / "whole", **two_stages))
    cut = config_of(
        root, tmp_path / "cut", evaluate_every=1, **two_stages
    )  # scoring does not touch the training's randomness
    step = expert._step

    def killed(*arguments) -> float:
        if arguments[-1] == 3:
            (tmp_path / "cut" / "checkpoint.pt.partial").write_bytes(b"torn")
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(expert, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        expert.train_expert(cut)
    monkeypatch.setattr(expert, "_step", step)
    assert not (tmp_path / "cut" / "expert").exists()
    expert.train_expert(cut)
    whole, resumed = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert resumed["step"] == 4
    for key, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][key]), key
    lines = [[x["loss"] for x in read_json_lines(tmp_path / n / "log.jsonl") if "loss" in x] for n in ("whole", "cut")]
    assert lines[0] == lines[1] and len(lines[0]) == 4


def test_another_run_is_refused(root: Path, tmp_path: Path) -> None:
    first = expert.train_expert(config_of(root, tmp_path, steps=1))
    written = (tmp_path / "expert" / "model.safetensors").stat()
    assert expert.train_expert(config_of(root, tmp_path, steps=1)) == first  # a finished run is left unchanged
    assert (tmp_path / "expert" / "model.safetensors").stat() == written
    (tmp_path / "quality.json").unlink()
    assert expert.train_expert(config_of(root, tmp_path, steps=1)) == first  # a kill during scoring
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".new", ".partial")]
    with pytest.raises(ConfigError, match=r"cannot resume from .*: lr was 0.003, is 0.1. Choose another dir"):
        expert.train_expert(config_of(root, tmp_path, steps=1, lr=0.1))
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    for path in (root / "images").iterdir():
        (other / "images" / path.name).symlink_to(path)
    for split in ("train", "val"):
        write_split(other, split)
    path = other / "annotations" / "panoptic_train2017.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"annotations": values["annotations"][:3]}))
    with pytest.raises(ConfigError, match="the data changed"):
        expert.train_expert(config_of(other, tmp_path, steps=1))


def test_the_stages(root: Path, tmp_path: Path) -> None:
    """First the features alone, then all: each stage with its own warm-up and its own rate."""
    config = config_of(root, tmp_path, steps=50, feature_steps=20, feature_lr=1.0, lr=0.1, warmup_fraction=0.1)
    rates = [expert.stage_lr(step, config) for step in range(50)]
    assert rates[0] == pytest.approx(1 / 3) and rates[2] == max(rates) == 1.0 and rates[19] < 0.01
    assert rates[20] == pytest.approx(0.1 / 4) and rates[23] == max(rates[20:]) == 0.1 and rates[49] < 0.001
    learner = expert.Learner(config, PanopticImages(root, "train", config.size_px).classes)
    batch = [PanopticImages(root, "train", config.size_px)[i, False] for i in range(2)]
    learner(batch, features_only=True).backward()
    taught = {name.split(".")[2] for name, p in learner.named_parameters() if p.grad is not None and "model." in name}
    assert taught == {"pixel_level_module"}
    with pytest.raises(ConfigError, match="feature_steps are the first of all 1999 steps"):
        load_expert_training(REPOSITORY / "configs" / "expert_scenes.yaml", ["steps=1999"])


def test_quality_of_features(root: Path, tmp_path: Path) -> None:
    """A head that calls everything a box is right on boxes alone."""
    config = config_of(root, tmp_path, feature_steps=2)
    held_out = PanopticImages(root, "val", config.size_px)
    learner = expert.Learner(config, held_out.classes)
    torch.nn.init.zeros_(learner.head.weight)
    learner.head.bias.data = torch.tensor([9.0, 0.0, 0.0])
    labels = torch.cat([held_out[i, False].labels[2::4, 2::4].flatten() for i in range(3)])
    boxes, discs, floor = ((labels == i).sum().item() for i in range(3))
    assert min(boxes, discs, floor) > 0
    assert expert.quality(learner, held_out, 2, 3) == {
        "pixels": pytest.approx(100 * boxes / (boxes + discs + floor)),
        "thing_pixels": pytest.approx(100 * boxes / (boxes + discs)),
    }
    assert "pq" in expert.quality(learner, held_out, 3, 1)


def test_it_learns(root: Path, tmp_path: Path) -> None:
    """It learns its training images in seconds; the written expert is the scored one."""
    config = config_of(root, tmp_path, steps=120, feature_steps=40, lr=6e-3, save_every=1000, flip=False)
    held_out = PanopticImages(root, "val", config.size_px)
    untrained = expert.build_model(config, held_out.classes).eval()
    assert score(untrained, expert.build_processor(config), held_out, None)["pq"] < 10
    values = expert.train_expert(config)
    assert values["pq"] > 60 and values["miou"] > 60, values
    assert json.loads((tmp_path / "quality.json").read_text())["quality"] == values


def run_tool(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    path = REPOSITORY / "tools" / "train_expert.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(REPOSITORY / "configs" / "expert_scenes.yaml"), *overrides])
    runpy.run_path(str(path), run_name="__main__")


def test_the_tool_makes_an_expert(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"{key}={value}" for key, value in SMALL.items()]
    run_tool(monkeypatch, *small, f"root={root}", f"dir={tmp_path}", "steps=2", "feature_steps=1", "queries=5")
    said = capsys.readouterr().out
    assert f"the expert is {tmp_path / 'expert'}" in said and "held out:  pq" in said
    config = ExpertConfig(name="e", kind="mask2former", path=str(tmp_path / "expert"), at="mask_features", size_px=64)
    expert = open_expert(config, "cpu")
    image = PanopticImages(root, "val", 64)[0, False].image
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "expert").eval()
    assert model.config.id2label == {0: "box", 1: "disc", 2: "floor"} and model.config.num_queries == 5
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model.model(((image / 255 - mean) / std)[None]).pixel_decoder_last_hidden_state[0]
    assert (expert.width, expert.multiple) == (32, 32) and expected.shape == (32, 16, 16)
    torch.testing.assert_close(expert.features([image])[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(SystemExit, match="error: .*/nowhere"):
        run_tool(monkeypatch, *small, "root=/nowhere", f"dir={tmp_path / 'other'}")


def test_config_errors(tmp_path: Path) -> None:
    path = REPOSITORY / "configs" / "expert_scenes.yaml"
    assert load_expert_training(path, ["lr=0.5"]).lr == 0.5
    for override, message in (
        ("qeries=3", "did you mean 'queries'"),
        ("size_px=100", "size_px: .*multiple of 32"),
        ("widths=[8]", "widths"),
        ("lr", "write key.sub=value"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_expert_training(path, [override])
    with pytest.raises(ConfigError, match="no config file"):
        load_expert_training(tmp_path / "none.yaml")
