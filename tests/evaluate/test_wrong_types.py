"""Files of PixFoundation with a value of another type anywhere: a message that names the file or the row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from pixel_sail.errors import UserError
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.pixfoundation.pixcvbench import expression_of

SEGMENTATIONS = "COCO/FinalSegmentations.json"
QUESTIONS = "CV-Bench/test_2d.jsonl"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("pixmmvp", "pixcvbench"):
        shutil.copytree(REPOSITORY / "tests/samples" / name, tmp_path / name)
    return tmp_path


def put(values: Any, path: tuple[Any, ...], new: Any) -> Any:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = new


@pytest.mark.parametrize(
    ("name", "file", "path", "value"),
    [
        ("pixmmvp", "Segmentations.json", ("images", 2, "file_name"), 10),
        ("pixmmvp", "Segmentations.json", ("images", 2, "file_name"), "../../../etc/passwd"),
        ("pixmmvp", "Segmentations.json", ("images", 2, "file_name"), "/etc/passwd"),
        ("pixmmvp", "Segmentations.json", ("images", 1, "id"), {"a": 1}),
        ("pixmmvp", "Segmentations.json", ("annotations", 1, "id"), [1]),
        ("pixmmvp", "Segmentations.json", ("annotations", 1, "image_id"), [1]),
        ("pixmmvp", "Segmentations.json", ("annotations",), {"0": 1}),
        ("pixcvbench", SEGMENTATIONS, ("annotations", 0, "segmentation", "size"), {"a": 1}),
        ("pixcvbench", SEGMENTATIONS, ("annotations", 0, "segmentation", "size"), [48, []]),
        ("pixcvbench", SEGMENTATIONS, ("annotations", 0, "segmentation", "size"), [10**9, 10**9]),
        ("pixcvbench", SEGMENTATIONS, ("annotations", 0, "segmentation"), {"a": 1}),
        ("pixcvbench", SEGMENTATIONS, ("images", 1, "file_name"), None),
        ("pixcvbench", SEGMENTATIONS, ("images", 1, "id"), [1]),
    ],
)
def test_a_value_of_another_type(root: Path, name: str, file: str, path: tuple[Any, ...], value: Any) -> None:
    values = json.loads((root / name / file).read_text())
    put(values, path, value)
    (root / name / file).write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        runner.open_benchmark(name, root)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "row",
    [
        '{"idx": Infinity, "question": "?", "choices": ["a", "b"], "answer": "(A)"}',
        '{"idx": 1, "question": "?", "choices": -1, "answer": "(A)"}',
        '{"idx": 1, "question": "?", "choices": ["a", {}], "answer": "(A)"}',
        '{"idx": 1, "question": "?", "choices": ["a", "b"], "answer": {"a": 1}}',
        '{"idx": 1, "question": null, "choices": ["a", "b"], "answer": "(A)"}',
        "null",
        "[" * 100_000,
    ],
)
def test_a_question_of_another_type(root: Path, row: str) -> None:
    (root / "pixcvbench" / QUESTIONS).write_text(row + "\n")
    with pytest.raises(UserError, match=r"test_2d\.jsonl"):
        runner.open_benchmark("pixcvbench", root)


@pytest.mark.parametrize(
    "classes", ["(1)", "()", "('a', 1)", "(" * 5000, "('a'", "(" * 400 + ")" * 400, "(__import__('os'))"]
)
def test_classes_that_are_none(classes: str) -> None:
    with pytest.raises(UserError, match="is neither a class nor classes like"):
        expression_of(classes)
    assert expression_of("('boat', 'train')") == "boat and train"


@pytest.mark.parametrize(
    "row", ["x,COCO/a.jpg,cup", "9" * 5000 + ",COCO/a.jpg,cup", "1,../../etc/passwd,cup", "1,,cup"]
)
def test_rows_that_name_no_image(root: Path, row: str) -> None:
    file = root / "pixcvbench/CV-Bench/Objects.csv"
    file.write_text(f"Id,file,Objects\n{row}\n")
    with pytest.raises(UserError, match=r"Objects\.csv"):
        runner.open_benchmark("pixcvbench", root)


def test_a_long_answer_of_open_tags_is_read_at_once() -> None:
    from pixel_sail.evaluate.gcg import grounded_phrases

    assert grounded_phrases("<p>" * 30_000, []) == []
