"""PixCV-Bench: classes and RLEs as published, masks at the size of their images, questions joined by their idx."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.pixfoundation import pixcvbench


@pytest.fixture(scope="module")
def raw(shared: Path) -> dict[str, list[np.ndarray]]:
    """File name -> the masks of its annotations, in their own sizes."""
    values = json.loads((shared / "data/pixcvbench/COCO/FinalSegmentations.json").read_text())
    names = {image["id"]: image["file_name"] for image in values["images"]}
    masks: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
    for annotation in values["annotations"]:
        masks[names[annotation["image_id"]]].append(coco_mask.decode(annotation["segmentation"]).astype(bool))
    return masks


def copied(shared: Path, root: Path) -> Path:
    shutil.copytree(shared / "data/pixcvbench", root / "pixcvbench", copy_function=shutil.copyfile)
    for folder in [root / "pixcvbench", *(root / "pixcvbench").rglob("*/")]:
        folder.chmod(0o755)
    return root


def test_published_masks_at_the_size_of_their_images(shared: Path, raw) -> None:
    objects = pixcvbench.read_objects(shared / "data")
    assert len(objects) == 37 and [case.index for case in objects] == sorted(case.index for case in objects)
    assert [case.expression for case in objects if case.index in (643, 1288)] == ["elephant", "tv and suitcase"]
    present = [case for case in objects if case.image.is_file()]
    assert len(present) == 18
    resized = 0
    for case in present:
        with Image.open(case.image) as image:
            width, height = image.size
        own = np.any(raw[case.image.name], axis=0)
        resized += own.shape != (height, width)
        # Pillow's nearest takes the pixel under the centre as well
        expected = np.asarray(Image.fromarray(own).resize((width, height), Image.Resampling.NEAREST))
        assert case.size_hw == (height, width) and (decode_mask(case.mask_rle) == expected).all(), case.image.name
    assert resized == 3


def test_masks_alone_are_scored_without_questions(shared: Path, tmp_path: Path) -> None:
    objects = [case for case in pixcvbench.read_objects(shared / "data") if case.image.is_file()]
    for wrong, expected in ((0, 100.0), (9, 50.0)):
        lines = [
            {"index": case.index, "answers": [], "segmentations": [None if i < wrong else case.mask_rle]}
            for i, case in enumerate(objects)
        ]
        write_json_lines(tmp_path / "lines.jsonl", lines)
        scores = runner.score_file(tmp_path / "lines.jsonl", "pixcvbench", shared / "data")
        assert scores["miou"] == scores["miou_present"] == expected and scores["unusable"] == 19
        assert scores["accuracy"] is None and scores["score"] is None and scores["pairs"] == 18


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_questions_as_cv_bench_publishes_them(shared: Path, tmp_path: Path, form: str) -> None:
    root = copied(shared, tmp_path)
    known = {case.index: case for case in pixcvbench.read_objects(root)}
    rows = [
        {"idx": index, "task": "Count", "question": "How many are there?", "choices": ["0", "2", "3"], "answer": "(B)"}
        for index in [5, *known]
    ]
    folder = root / "pixcvbench/CV-Bench"
    if form == "jsonl":
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (extra pixfoundation)")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    objects = [case for case in pixcvbench.read_objects(root) if case.image.is_file()]
    assert {(case.question, case.options, case.answer) for case in objects} == {
        ("How many are there?", ("0", "2", "3"), "b")
    }
    answers = ["There are 2.", "(B)", "b", *["(a)"] * 15]
    lines = [
        {"index": case.index, "answers": [text], "segmentations": [case.mask_rle]}
        for case, text in zip(objects, answers, strict=True)
    ]
    write_json_lines(tmp_path / "lines.jsonl", lines)
    scores = runner.score_file(tmp_path / "lines.jsonl", "pixcvbench", root)
    assert scores["accuracy"] == scores["accuracy_single"] == pytest.approx(100 * 3 / 18)
    assert scores["failures"]["both_right"] == [[case.index] for case in objects[:3]]
    assert scores["only_vqa_wrong"] == 15 and scores["score"] == pytest.approx(2 * (100 / 6) * 100 / (100 / 6 + 100))


def test_rows_of_one_image_are_joined_in_order(shared: Path, tmp_path: Path) -> None:
    """An image that two rows show is listed twice; the smaller Id has the smaller image id. ADE20K lies elsewhere."""
    root = copied(shared, tmp_path)
    folder = root / "pixcvbench"
    folder_of_images = folder / "ADE20K/validation/images"
    folder_of_images.mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(folder_of_images / "ADE_val_1.jpg")
    with (folder / "CV-Bench/Objects.csv").open("a") as file:
        file.write("20,20,CV-Bench/ADE20K/validation/images/ADE_val_1.jpg,lamp\n")
        file.write("7,7,CV-Bench/ADE20K/validation/images/ADE_val_1.jpg,bed\n")
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[:2] = 1
    rle = coco_mask.encode(mask)
    top = {"size": [4, 6], "counts": rle["counts"].decode()}
    images = [{"id": 20, "file_name": "ADE_val_1.jpg"}, {"id": 7, "file_name": "ADE_val_1.jpg"}]
    values = {
        "images": images,
        "annotations": [
            {"image_id": 7, "category_id": 0, "segmentation": top},
            {"image_id": 20, "category_id": 0, "segmentation": [[0, 2, 6, 2, 6, 4, 0, 4]]},
        ],
    }
    (folder / "ADE20K/FinalSegmentations.json").write_text(json.dumps(values))
    bed, lamp = pixcvbench.read_objects(root)[:2]
    assert (bed.index, bed.expression, lamp.index, lamp.expression) == (7, "bed", 20, "lamp")
    assert (decode_mask(bed.mask_rle) == mask).all() and (decode_mask(lamp.mask_rle) == 1 - mask).all()
    (folder / "ADE20K/FinalSegmentations.json").write_text(json.dumps({"images": images[:1], "annotations": []}))
    with pytest.raises(DatasetError, match=r"lists ADE_val_1.jpg 1 times; Objects.csv has 2 rows"):
        pixcvbench.read_objects(root)
