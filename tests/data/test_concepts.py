"""The source `concepts`: every object of a category from left to right, and confusable categories that are absent."""

from __future__ import annotations

import numpy as np
import pytest
from source_fixtures import SIZE, assert_mask, box_mask, box_rle, draw_sample, open_named, write_images, write_json

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.coco_instance import MAX_OBJECTS
from pixel_sail.data.sources.concepts import MOST_CONFUSABLE, Confusable
from pixel_sail.data.templates import ANSWERS_NONE, ANSWERS_SEVERAL, QUESTIONS, QUESTIONS_EACH

CUP, LID, CAT, DOG = 4, 9, 2, 7


def _write(root, *objects, images=(1, 2, 3, 4), file="annotations/instances_train2017.json"):
    """`objects`: (image, category, segmentation), and more members."""
    names = {CUP: "tea_cup", LID: "lid", CAT: "cat", DOG: "dog"}
    above = {CUP: "kitchen", LID: "kitchen", CAT: "animal", DOG: "animal"}
    write_images(root / "images", *(f"{i}.jpg" for i in images))
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": 0, **(more[0] if more else {})}
        for n, (i, c, s, *more) in enumerate(objects)
    ]
    write_json(
        root / file,
        {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in images],
            "categories": [{"id": c, "name": names[c], "supercategory": above[c]} for c in names],
            "annotations": annotations,
        },
    )


def _named(turn) -> str:
    """What a question asks for, which is one that asks for each object."""
    for template in QUESTIONS_EACH:
        for name in ("tea cup", "lid", "cat", "dog"):
            if turn.question == template.replace("{expression}", name):
                return name
    raise AssertionError(turn.question)


def test_each_object_has_a_mask_and_absent_categories_have_none(tmp_path):
    cups = [(1, CUP, box_rle(x, y)) for x, y in ((20, 0), (0, 5), (10, 10))]
    _write(tmp_path, *cups, (1, LID, box_rle(30, 0)), (2, CAT, box_rle(0, 0)), (3, DOG, box_rle(0, 0)))
    source = open_named(tmp_path, "concepts", count=12)
    assert len(source) == 4 and source.problems == []
    asked = set()
    for seed in range(6):
        sample = draw_sample(source, 0, seed)
        answers, masks = {_named(turn): turn.answer for turn in sample.turns}, list(sample.masks)
        assert len(sample.turns) == 4 and {"tea cup", "lid"} < set(answers)
        assert answers["tea cup"] in {text.replace("[SEG]", "[SEG], [SEG] and [SEG]") for text in ANSWERS_SEVERAL}
        for name, answer in answers.items():
            if name in ("cat", "dog"):
                assert answer in ANSWERS_NONE
                asked.add(name)
        for name in answers:
            for x, y in {"tea cup": ((0, 5), (10, 10), (20, 0)), "lid": ((30, 0),)}.get(name, ()):
                assert_mask(masks.pop(0), box_mask(x, y))
        assert masks == []
    assert asked == {"cat", "dog"}
    empty = draw_sample(source, 3)  # an image without any object
    assert len(empty.turns) == 1 and empty.masks == () and empty.turns[0].answer in ANSWERS_NONE
    shares = [len(draw_sample(source, index).masks) for index in range(4)]
    assert shares == [4, 1, 1, 0]


def test_a_question_for_each_object_is_no_question_for_one_mask(tmp_path):
    """Otherwise a plain expression would get several masks."""
    assert not set(QUESTIONS_EACH) & set(QUESTIONS)
    _write(tmp_path, (1, CUP, box_rle(0, 0)), (2, LID, box_rle(0, 0)))
    for questions, expected in (
        (
            ["{expression}", "Where is {expression}?"],
            {"each tea cup", "Where is each tea cup?", "each lid", "Where is each lid?"},
        ),
        (
            [QUESTIONS[0]],
            {text.replace("{expression}", name) for text in QUESTIONS_EACH for name in ("tea cup", "lid")},
        ),
    ):
        source = open_named(tmp_path, "concepts", questions=questions)
        asked = {turn.question for seed in range(20) for turn in draw_sample(source, 0, seed).turns}
        assert asked == expected


def test_what_is_not_known_is_neither_present_nor_absent(tmp_path):
    many = [(2, CUP, box_rle(0, 0))] * (MAX_OBJECTS + 1)
    _write(tmp_path, (1, CUP, box_rle(0, 0), {"iscrowd": 1}), (1, LID, box_rle(5, 5)), *many, (3, CAT, box_rle(0, 0)))
    source = open_named(tmp_path, "concepts", count=12)
    assert source.problems == ["concepts/train: 2 categories of an image have a crowd or over 20 objects"]
    for seed in range(8):
        assert {_named(turn) for turn in draw_sample(source, 0, seed).turns} == {"lid", "cat"}
        assert {_named(turn) for turn in draw_sample(source, 1, seed).turns} <= {"lid", "cat"}
        assert "dog" not in {_named(turn) for turn in draw_sample(source, 2, seed).turns}  # nowhere in the file


def test_the_most_confusable_categories_come_first():
    above = {"cat": "animal", "dog": "animal", "cow": "animal", "sofa": "furniture", "car": "vehicle"}
    images = [("cat", "sofa"), ("cat", "sofa", "dog"), ("cow", "car"), ("car",), ("cow", "car"), ("cow", "cat")]
    confusable = Confusable.of(images, above)
    # beside a cat: sofa (2 of 4 images), dog, cow (1 of 4 each); never a car. In turn an animal and something else
    assert confusable.absent(["cat"]) == ["cow", "sofa", "dog", "car"]
    assert confusable.absent(["cat", "dog"]) == ["cow", "sofa", "car"]
    assert confusable.absent(["cow", "cat", "sofa", "car", "dog"]) == []
    assert confusable.absent([]) == ["car", "cat", "cow", "sofa", "dog"]  # the most frequent, then by name
    unrelated = Confusable.of([("cat", "sofa")] * 2 + [("dog",)], {})
    assert unrelated.absent(["cat"]) == ["sofa", "dog"]


def test_training_draws_from_the_most_confusable_alone(tmp_path):
    names = [f"kind {k:02}" for k in range(20)]
    confusable = Confusable.of([(names[0], name) for name in names[1:]], dict.fromkeys(names, "x"))
    write_images(tmp_path / "images", "0.jpg")
    rows = [{"id": k, "name": name, "supercategory": "x"} for k, name in enumerate(names)]
    boxes = [
        {"id": 2 * k + part, "image_id": k, "category_id": c, "segmentation": box_rle(10 * part, 0), "iscrowd": 0}
        for k in range(1, 20)
        for part, c in enumerate((0, k))
    ]
    images = [{"id": k, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1]} for k in range(1, 20)]
    write_json(
        tmp_path / "annotations/instances_train.json",  # the name of one's own data
        {"images": images, "categories": rows, "annotations": boxes},
    )
    source = open_named(tmp_path, "concepts", count=12)
    drawn = set()
    for seed in range(60):
        turns = [turn for turn in source.sample(0, np.random.default_rng(seed)).turns if "[SEG]" not in turn.answer]
        named = [name for name in names for turn in turns if name in turn.question]
        assert len(named) == 2 == len(set(named))
        drawn.update(named)
    assert drawn == set(confusable.absent([names[0], names[1]])[:MOST_CONFUSABLE])


def test_files_that_are_not_there_are_named(tmp_path):
    (tmp_path / "images").mkdir()
    expected = "no file .*annotations/instances_train2017.json or .*annotations/instances_train.json"
    with pytest.raises(DatasetError, match=expected):
        open_named(tmp_path, "concepts")
