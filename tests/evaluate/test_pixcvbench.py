"""PixCV-Bench: classes and RLEs as published, masks at the size of their images, questions joined by their idx."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import rows, runner
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


def one_row(root: Path, segmentation: object, with_image: bool) -> Path:
    """A root with a row whose image may be missing, and one whose image is there."""
    folder = root / "pixcvbench"
    (folder / "CV-Bench").mkdir(parents=True)
    (folder / "COCO/coco/images").mkdir(parents=True)
    names = ["000000000007.jpg", "000000000009.jpg"]
    for name in names[0 if with_image else 1 :]:
        Image.new("RGB", (60, 40)).save(folder / "COCO/coco/images" / name)
    rows = [f"{i},{i},CV-Bench/COCO/coco/images/{name},mouse\n" for i, name in enumerate(names, start=643)]
    (folder / "CV-Bench/Objects.csv").write_text(",Id,file,Objects\n" + "".join(rows))
    values = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 0, "category_id": 0, "segmentation": segmentation},
            {"image_id": 1, "category_id": 0, "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]},
        ],
    }
    (folder / "COCO/FinalSegmentations.json").write_text(json.dumps(values))
    return root


@pytest.mark.filterwarnings("ignore:no questions")
@pytest.mark.parametrize(
    "segmentation", [[[10, 10, 30, 10, 30, 30, 10, 30]], {"size": [40, 60], "counts": [0, 40, 2360]}]
)
def test_a_missing_image_is_named_and_the_others_are_scored(tmp_path: Path, segmentation: object) -> None:
    """A published mask is often a polygon, which has no size without its image."""
    benchmark = runner.open_benchmark("pixcvbench", one_row(tmp_path, segmentation, with_image=False))
    assert [case.index for case in benchmark.cases] == [644]
    path = tmp_path / "pixcvbench/COCO/coco/images/000000000007.jpg"
    assert benchmark.problems == (f"643: no image {path}",)
    path.with_name("000000000009.jpg").unlink()
    with pytest.raises(DatasetError, match=f"all 2 images of pixcvbench are missing; the first is {path}"):
        runner.open_benchmark("pixcvbench", tmp_path)
    path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=f"cannot decode the image {path}"):
        runner.open_benchmark("pixcvbench", tmp_path)


@pytest.mark.filterwarnings("ignore:no questions")
def test_an_image_above_pillows_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = one_row(tmp_path, {"size": [40, 60], "counts": [0, 40, 2360]}, with_image=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # twice as many are refused
    with pytest.raises(DatasetError, match=r"0000000\d+.jpg has more than [\d,]+ pixels; save a smaller copy"):
        runner.open_benchmark("pixcvbench", root)


def cv_bench_row(idx: int, kind: str = "2D") -> dict:
    """A line of CV-Bench's present files, with all of its fields."""
    return {
        "idx": idx,
        "type": kind,
        "task": "Count",
        "filename": f"img/{kind}/count/coco_{idx}.png",
        "question": f"How many mice are in the {kind} image?",
        "choices": ["2", "3", "1", "0"],
        "answer": "(C)",
        "prompt": "How many mice are in the image? Select from the following choices.\n(A) 2\n(B) 3\n(C) 1\n(D) 0",
        "source": "COCO",
        "source_dataset": "COCO Detection",
        "source_filename": "/coco/val2017/000000000007.jpg",
        "target_class": None,
        "target_size": None,
        "bbox": None,
    }


@pytest.mark.parametrize("names", [("test_2d.jsonl", "test_3d.jsonl"), ("test_2d.jsonl",), ("test.jsonl",)])
def test_the_present_files_of_cv_bench_are_found(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = one_row(tmp_path, [[10, 10, 30, 10, 30, 30, 10, 30]], with_image=True)
    for name in names:
        kind, first = ("3D", 644) if "3d" in name else ("2D", 642)
        rows = [cv_bench_row(idx, kind) for idx in range(first, first + 3)]
        (root / "pixcvbench/CV-Bench" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = pixcvbench.read_objects(root)
    assert first.question == second.question == "How many mice are in the 2D image?", "a 3D row never hides a 2D one"
    assert first.options == ("2", "3", "1", "0") and first.answer == "c"
    if len(names) == 1:
        (root / "pixcvbench/CV-Bench" / names[0]).write_text('{"idx": 643}\n{"idx"')
        with pytest.raises(DatasetError, match=f"{names[0]}, line 2: '.\"idx\"' is not JSON"):
            pixcvbench.read_objects(root)


def test_parquet_without_a_reader_names_the_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = one_row(tmp_path, [[10, 10, 30, 10, 30, 30, 10, 30]], with_image=True)
    (root / "pixcvbench/CV-Bench/test_2d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"test_2d.parquet needs pyarrow: .*; or put test_2d.jsonl, which CV-Bench"):
        pixcvbench.read_objects(root)


def test_without_questions_there_is_a_warning(tmp_path: Path) -> None:
    root = one_row(tmp_path, [[10, 10, 30, 10, 30, 30, 10, 30]], with_image=True)
    with pytest.warns(
        UserWarning, match="no questions in .*CV-Bench: expected one of test_2d.jsonl, .* Only the masks"
    ):
        objects = pixcvbench.read_objects(root)
    assert {case.question for case in objects} == {""}
