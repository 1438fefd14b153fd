"""The benchmark `concepts`: its cases, its lines, and a file of predictions of any model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_predictor import tiny_predictor

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import runner
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.types import BadSample

SIZE = (30, 40)  # height, width


def box_mask(x: int, y: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + 5, x : x + 5] = True
    return mask


def _box(x: int, y: int):
    return encode_mask(box_mask(x, y))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Image 1: two cups and a lid; image 2: a crowd of cups, and nothing else; image 3: nothing."""
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    for i in (1, 2, 3):
        Image.new("RGB", SIZE[::-1], "grey").save(tmp_path / f"images/{i}.jpg")
    objects = [(1, 4, _box(20, 0)), (1, 4, _box(0, 5)), (1, 9, _box(30, 10)), (2, 4, _box(0, 0))]
    values = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2, 3)],
        "categories": [{"id": 4, "name": "cup"}, {"id": 9, "name": "pot_lid"}, {"id": 5, "name": "never"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": int(i == 2)}
            for n, (i, c, s) in enumerate(objects)
        ],
    }
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(values))
    return tmp_path


def _line(image: int, phrase: str, *masks, **more) -> dict:
    return {"id": f"concepts/val/image={image}", "phrase": phrase, "segmentations": list(masks), **more}


def test_the_cases_are_present_categories_and_absent_ones(root: Path) -> None:
    benchmark = runner.open_benchmark("concepts", root)
    assert benchmark.name == "concepts:val"
    of_image = [(case.id[-1], case.phrase, len(case.masks)) for case in benchmark.cases]
    # a crowd is neither present nor absent, and a category without any object is not asked for
    assert of_image == [("1", "cup", 2), ("1", "pot lid", 1), ("2", "pot lid", 0), ("3", "cup", 0)]
    assert benchmark.problems == ("concepts/val: 1 categories of an image have a crowd",)
    assert {tuple(np.argwhere(decode_mask(mask))[0]) for mask in benchmark.cases[0].masks} == {(0, 20), (5, 0)}


def test_a_file_of_predictions_is_scored(root: Path, tmp_path: Path) -> None:
    right = [
        _line(1, "cup", _box(20, 0), _box(0, 5), scores=[0.9, 0.8]),
        _line(1, "pot lid", _box(30, 10), scores=[0.7]),
        _line(2, "pot lid", scores=[]),
        _line(3, "cup"),
    ]
    file = tmp_path / "p.jsonl"
    write_json_lines(file, right)
    scores = runner.score_file(file, "concepts:val", root)
    assert all(scores[name] == pytest.approx(100) for name in ("ap", "ap50", "ap75", "cgf1", "pmf1", "il_mcc"))
    assert {name: scores[name] for name in ("cases", "absent_cases", "objects", "masks", "images")} == {
        **{"cases": 4, "absent_cases": 2, "objects": 3, "masks": 3, "images": 3}
    }
    assert set(runner.definitions({"concepts:val": scores})["concepts:val"]) == {
        *("ap", "ap50", "ap75", "cgf1", "pmf1", "il_mcc", "pmf1_50", "cgf1_all_masks")
    }
    # one of two cups has a low score: cgF1 does not see it, AP does; a lid is invented where none is
    less = [
        _line(1, "cup", _box(20, 0), _box(0, 5), scores=[0.9, 0.2]),
        right[1],
        _line(2, "pot lid", _box(0, 0), scores=[0.6]),
        right[3],
    ]
    write_json_lines(file, less)
    scores = runner.score_file(file, "concepts:val", root)
    assert scores["ap"] == pytest.approx(100) and scores["pmf1"] == pytest.approx(100 * 2 * 2 / 5)
    assert scores["il_mcc"] == pytest.approx(100 * 2 / 12**0.5) and scores["masks"] == 4  # tp 2, fp 1, tn 1
    assert scores["cgf1"] == pytest.approx(80 * 2 / 12**0.5)
    assert scores["cgf1_all_masks"] == pytest.approx(100 * 2 / 12**0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (_line(1, "cup", {"size": [3, 3], "counts": "x"}), "segmentation 0: the mask is of size"),
        (_line(1, "cup", _box(0, 0), scores=[]), "1 segmentations and 0 scores; one for each, or none"),
        (_line(1, "cup", _box(0, 0), scores=[None]), "the score None is no finite number"),
        (_line(1, "cup", _box(0, 0), scores=[True]), "the score True is no finite number"),
        (_line(1, "cup") | {"segmentations": None}, "segmentations is None, expected a list"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(root: Path, tmp_path: Path, line: dict, message: str) -> None:
    file = tmp_path / "p.jsonl"
    write_json_lines(file, [line, _line(1, "pot lid"), _line(2, "pot lid"), _line(3, "cup")])
    with pytest.raises(BadSample, match=f"p.jsonl, id concepts/val/image=1 phrase cup.*{message}"):
        runner.score_file(file, "concepts:val", root)


def test_the_lines_of_a_model_have_a_score_for_each_mask(root: Path, tmp_path: Path, monkeypatch) -> None:
    predictor = tiny_predictor(architecture={"mask_scores": True})
    asked = []

    def segment(self, image, expressions, instances=False):
        asked.append((list(expressions), instances))
        masks = [box_mask(0, 0), box_mask(9, 0)]
        return [Answer("[SEG] [SEG]", masks, [0.5, 0.25], 0.75) for _ in expressions]

    monkeypatch.setattr(Predictor, "segment", segment)
    benchmark = runner.open_benchmark("concepts:val", root)
    scores = runner.run_benchmark(predictor, benchmark, tmp_path, {})
    assert scores["masks"] == 8 and asked == [
        *((["cup", "pot lid"], True), (["pot lid"], True), (["cup"], True)),
    ]
    lines = benchmark.predict(predictor, benchmark.cases[:1])
    assert lines[0]["scores"] == [0.5, 0.25] and lines[0]["presence"] == 0.75
    result = benchmark.result(benchmark.cases[0], lines[0])
    assert result.groups["objects"] == "2" and len(result.masks) == 2
    nothing = benchmark.result(benchmark.cases[2], _line(2, "pot lid"))
    assert nothing.right and nothing.target is None and nothing.groups["objects"] == "0"
