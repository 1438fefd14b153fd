"""Exports of annotation tools become a data root; what cannot be used is named with its file and line."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys

import numpy as np
import pytest
from PIL import Image
from source_fixtures import SIZE, assert_mask, box_mask, box_polygon, box_rle, draw_sample, open_named, write_images

from pixel_sail.commands import data
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.own.coco import read_coco
from pixel_sail.data.own.labelme import read_labelme
from pixel_sail.data.own.write import with_splits, write_own
from pixel_sail.data.own.yolo import read_yolo

HEIGHT, WIDTH = SIZE


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "in"


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def _shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def _labelme(folder, name, *shapes, **changes):
    values = {"version": "5.4", "flags": {}, "imagePath": f"{name}.jpg", "imageData": None}
    values |= {"imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": list(shapes)} | changes
    return _write(folder / f"{name}.json", values)


def _corners(x, y, side=5):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def _png(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# --- labelme --------------------------------------------------------------------------------------------------------


def test_every_area_of_labelme_becomes_a_mask(folder, tmp_path):
    write_images(folder, "a.jpg", "b.jpg")
    write_images(folder / "sub", "c.jpg")
    _labelme(
        folder,
        "a",
        _shape("mug", _corners(0, 0)),
        _shape("mug", [[15, 20], [10, 15]], "rectangle"),
        _shape("big plate", [[20, 10], [20, 15]], "circle"),
        _shape("mug", [[30, 0], [34, 4]], "mask", mask=_png(np.ones((5, 5), dtype=bool))),
        _shape("mug", _corners(30, 20), group_id=1),
        _shape("mug", _corners(20, 20), None, group_id=1),  # two pieces of one mug
    )
    _labelme(folder, "b", imagePath="..\\elsewhere\\b.jpg", imageHeight=None)  # nothing is in it
    _labelme(folder / "sub", "c", _shape("mug", _corners(5, 5)))
    problems: list[str] = []
    images = read_labelme(folder, None, problems)
    assert problems == [] and [image.name for image in images] == ["a.jpg", "b.jpg", "sub/c.jpg"]
    objects = images[0].objects
    assert [thing.name for thing in objects] == ["mug", "mug", "big plate", "mug", "mug"]
    for thing, expected in zip(
        (objects[0], objects[1], objects[3], objects[4]),
        (box_mask(0, 0), box_mask(10, 15), box_mask(30, 0), box_mask(30, 20) | box_mask(20, 20)),
        strict=True,
    ):
        assert_mask(thing.mask, expected)
    assert decode_mask(objects[2].mask).sum() == pytest.approx(math.pi * 25, rel=0.1)
    counts = write_own(with_splits(images, 0, 0), tmp_path / "out")
    assert counts == {"train": {"mug": 5, "big plate": 1}}
    source = open_named(tmp_path / "out", "concepts", count=12)
    assert source.problems == [] and len(source) == 3
    masks = dict(zip(("a", "b", "c"), (len(draw_sample(source, index).masks) for index in range(3)), strict=True))
    assert masks == {"a": 5, "b": 0, "c": 1}


def test_images_of_labelme_may_be_in_another_folder(folder, tmp_path):
    write_images(tmp_path / "photos", "a.jpg")
    _labelme(folder, "a", _shape("mug", _corners(0, 0)), imagePath="/home/me/a.jpg")
    problems: list[str] = []
    assert read_labelme(folder, None, problems) == []
    assert (
        problems[0]
        == f"{folder}/a.json: no image {folder}/a.jpg; put it there, or say with --images in which folder it is"
    )
    (image,) = read_labelme(folder, tmp_path / "photos", [])
    assert (image.path, image.name) == (tmp_path / "photos/a.jpg", "a.jpg")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            _shape("mug", [[0, 0], [5, 5]]),
            r"shape 0 \('mug'\), polygon 0: .* is no polygon; it needs x, y of at least th",
        ),
        (_shape("mug", [[0, 0], [5, "x"], [1, 1]]), r"shape 0 \('mug'\): \[5, 'x'\] is no point \[x, y\]; draw it as"),
        (
            _shape("mug", [[0, 0], [5, 5]], "line"),
            r"shape 0 \('mug'\): a 'line' of 2 points is no area; draw it as a pol",
        ),
        (_shape("mug", _corners(900, 0)), r"shape 0 \('mug'\), polygon 0: .* lies far outside the 30 x 40 image"),
        (_shape("mug", _corners(50, 0)), r"shape 0 \('mug'\): the mask has no pixel: .*; draw it again, or delete it"),
        (_shape("", _corners(0, 0)), "shape 0: its 'label' is empty"),
        (_shape("[SEG]", _corners(0, 0)), r"shape 0: the text contains \[SEG\]"),
        ("mug", "shape 0: it has no 'label'"),
        (_shape("mug", [[0, 0], [4, 4]], "mask", mask="?"), "shape 0 .*: its 'mask' is no PNG in base64"),
        (
            _shape("mug", [[38, 0], [42, 4]], "mask", mask=_png(np.ones((5, 5), dtype=bool))),
            r"its mask of 5 x 5 pixels at \(38, 0\) reaches beyond the image of 30 x 40",
        ),
    ],
)
def test_a_shape_that_is_no_object_is_named(folder, shape, message):
    write_images(folder, "a.jpg")
    file, problems = _labelme(folder, "a", shape, _shape("mug", _corners(0, 0))), []
    assert read_labelme(folder, None, problems) == []  # not all objects of the image are known
    assert len(problems) == 1 and re.match(f"{re.escape(str(file))}: ", problems[0])
    assert re.search(message, problems[0])


def test_a_file_that_labelme_did_not_write_is_named(folder):
    with pytest.raises(DatasetError, match="no JSON file below .*; give the folder in which labelme saved"):
        read_labelme(folder, None, [])
    write_images(folder, "a.jpg", "c.jpg")
    _write(folder / "a.json", '{"shapes": [\n}')
    _write(folder / "b.json", {"images": []})
    _labelme(folder, "c", imageHeight=31)
    problems: list[str] = []
    assert read_labelme(folder, None, problems) == []
    assert re.search(r"a.json is not valid JSON: .*line 2.*; save it again in labelme", problems[0])
    assert problems[1] == f"{folder}/b.json: it has no 'shapes', so labelme did not write it; move it out of the folder"
    assert "c.json: it says that the image has 31 x 40 pixels (height x width), and" in problems[2]


def test_an_image_that_is_stored_turned_is_refused(folder):
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.jpg", exif=exif)
    _labelme(folder, "a", _shape("mug", _corners(0, 0)))
    problems: list[str] = []
    assert read_labelme(folder, None, problems) == []
    assert "a.json: the image" in problems[0] and "save it upright, without this tag" in problems[0]


# --- YOLO -----------------------------------------------------------------------------------------------------------


def _yolo(folder, labels, **values):
    """`labels`: "train/a" -> the text of its label file, or None for no file."""
    for name, text in labels.items():
        split, _, stem = name.partition("/")
        write_images(folder / "images" / split, f"{stem}.jpg")
        if text is not None:
            _write(folder / "labels" / split / f"{stem}.txt", text)
    values = {
        "path": "/somewhere/else",
        "train": "images/train",
        "val": "images/val",
        "names": {0: "mug", 3: "lid"},
    } | values
    return _write(folder / "data.yaml", json.dumps(values).replace('"0"', "0").replace('"3"', "3"))


def _row(number, x, y):
    points = [value for px, py in _corners(x, y) for value in (px / WIDTH, py / HEIGHT)]
    return " ".join([str(number), *(f"{value:.8f}" for value in points)])


def test_yolo_keeps_its_splits(folder, tmp_path):
    rows = f"{_row(0, 0, 0)}\n{_row(3, 10, 5)}\n\n"
    file = _yolo(folder, {"train/a": rows, "train/b": None, "val/a": _row(0, 5, 5)})
    problems: list[str] = []
    images = read_yolo(file, problems)
    assert problems == [] and [(image.name, image.split) for image in images] == [
        *(("train/a.jpg", "train"), ("train/b.jpg", "train"), ("val/a.jpg", "val"))
    ]
    assert [thing.name for thing in images[0].objects] == ["mug", "lid"] and images[1].objects == ()
    assert_mask(images[0].objects[1].mask, box_mask(10, 5))
    assert with_splits(images, 0.5, 0) == images
    assert write_own(images, tmp_path / "out") == {"train": {"mug": 1, "lid": 1}, "val": {"mug": 1}}
    source = open_named(tmp_path / "out", "concepts", "val")
    assert_mask(draw_sample(source).masks[0], box_mask(5, 5))


def test_roboflow_writes_folders_above_the_file(folder):
    write_images(folder / "train/images", "a.jpg")
    _write(folder / "train/labels/a.txt", _row(0, 0, 0))
    file = _write(folder / "data.yaml", json.dumps({"train": "../train/images", "names": ["mug"]}))
    (image,) = read_yolo(file, [])
    assert image.name == "train/a.jpg" and len(image.objects) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{_row(0, 0, 0)}\n{_row(7, 0, 0)}",
            ":2: class '7' is not in the names of .*data.yaml .0 to 3.; add it there, or",
        ),
        ("mug 0.1 0.1 0.2 0.1 0.2 0.2", ":1: class 'mug' is not in the names"),
        ("0 0.5 0.5 0.2 0.2", ":1: a box, where a polygon x y x y ... is expected; export segmentation, not detection"),
        ("0 0.1 0.1 0.2 0.1 0.2", ":1: 5 numbers after the class; a polygon has x, y of at least three points"),
        ("0 0.1 0.1 0.2 0.1 0.2 x", ":1: could not convert string to float: 'x'; a line is a class and x y x y"),
        ("0 10 10 20 10 20 20", ":1: 10.0 is no share of a side of the image, 0 to 1; pixels are not read"),
        ("0 0.1 0.1 0.2 0.1 nan 0.2", ":1: nan is no share of a side"),
        ("\n0 0.1 0.1 0.101 0.1 0.101 0.101", ":2: the mask has no pixel: .*; draw it again, or delete it"),
    ],
)
def test_a_line_of_yolo_that_is_no_object_is_named(folder, text, message):
    file, problems = _yolo(folder, {"train/a": text, "val/b": _row(0, 0, 0)}), []
    assert [image.name for image in read_yolo(file, problems)] == ["val/b.jpg"]
    assert len(problems) == 1 and problems[0].startswith(f"{folder}/labels/train/a.txt:")
    assert re.search(message, problems[0])


def test_a_label_file_without_its_image_is_named(folder):
    file, problems = _yolo(folder, {"train/a": _row(0, 0, 0), "val/b": ""}), []
    _write(folder / "labels/train/lost.txt", _row(0, 0, 0))
    read_yolo(file, problems)
    assert problems == [
        f"{folder}/labels/train/lost.txt: no image lost.jpg (or .png, ...) in {folder}/images/train; put it there, or "
        "delete the label file"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": None}, "its 'names' are None; expected a list of names"),
        ({"names": {0: ""}}, "names: its 0 is empty"),
        ({"train": "images/no"}, "no folder .*images/no for its 'train' .*; put the images below"),
        ({"train": "train.txt"}, "its 'train' is 'train.txt'; only folders of images are read"),
        ({"train": None, "val": None}, "names no folder with an image"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_is_named(folder, values, message):
    file = _yolo(folder, {"train/a": "", "val/b": ""}, **values)
    with pytest.raises(DatasetError, match=message):
        read_yolo(file, [])


# --- COCO -----------------------------------------------------------------------------------------------------------


def _coco(file, objects, images=("a.jpg",), size=SIZE):
    return _write(
        file,
        {
            "images": [
                {"id": n, "file_name": name, "height": size[0], "width": size[1]} for n, name in enumerate(images, 1)
            ],
            "categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "lid"}],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": 0, **(more[0] if more else {})}
                for n, (i, c, s, *more) in enumerate(objects)
            ],
        },
    )


def test_coco_exports_are_found_with_their_images(folder, tmp_path):
    write_images(folder / "images/default", "a.jpg", "b.jpg")  # as CVAT writes them
    crowd = {"iscrowd": 1}
    objects = [(1, 1, box_polygon(0, 0)), (1, 1, box_rle(10, 10)), (2, 2, box_rle(0, 0), crowd)]
    file = _coco(folder / "annotations/instances_default.json", objects, ("a.jpg", "b.jpg"))
    problems: list[str] = []
    images = read_coco(file, None, problems)
    assert problems == [] and [len(image.objects) for image in images] == [2, 1]
    assert_mask(images[0].objects[1].mask, box_mask(10, 10))
    drawn = with_splits(images, 0.1, 0)
    assert sorted(image.split for image in drawn) == ["train", "val"] and drawn == with_splits(images, 0.1, 0)
    write_own(with_splits(images, 0, 0), tmp_path / "out")
    values = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert [annotation["iscrowd"] for annotation in values["annotations"]] == [0, 0, 1]
    assert values["annotations"][1]["bbox"] == [10, 10, 5, 5] and values["annotations"][1]["area"] == 25
    for split in ("train", "valid"):  # as Roboflow writes them
        write_images(folder / split, "a.jpg")
        _coco(folder / split / "_annotations.coco.json", [(1, 1, box_polygon(0, 0))])
    images = read_coco(folder, None, [])
    assert [(image.name, image.split) for image in images] == [("train/a.jpg", "train"), ("val/a.jpg", "val")]


@pytest.mark.parametrize(
    ("objects", "options", "message"),
    [
        ([(1, 1, [])], {}, "annotation 0: it has no segmentation, perhaps only a box; draw its mask, or delete it"),
        ([(1, 1, [[1, 1, 2, 2]])], {}, "annotation 0, polygon 0: .* is no polygon; .*; draw it again, or delete it"),
        ([(1, 1, [[1, 1, 2, 2], *box_polygon(0, 0)])], {}, "annotation 0, polygon 0: .* is no polygon"),
        ([(5, 1, box_polygon(0, 0))], {}, "annotation 0 is of image 5, which 'images' does not list; export again"),
        ([], {"images": ("no.jpg",)}, "image 1: no image 'no.jpg' in .*; say with --images in which folder it is"),
        ([], {"images": ("../a.jpg",)}, "image 1: the file name '../a.jpg' leads out of the dataset's folder"),
        ([], {"size": (31, 40)}, r"image 1: it says 31 x 40 pixels \(height x width\), and .*a.jpg has 30 x 40"),
        ([], {"images": ("broken.jpg",)}, "image 1: cannot decode the image .*broken.jpg"),
    ],
)
def test_an_annotation_of_coco_that_is_no_object_is_named(folder, objects, options, message):
    write_images(folder, "a.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    file, problems = _coco(folder / "a.json", objects, **options), []
    read_coco(file, None, problems)
    assert len(problems) == 1 and problems[0].startswith(f"{file}: ")
    assert re.search(message, problems[0])


# --- what is written ------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_and_nothing_is_written_without_an_object(folder, tmp_path):
    write_images(folder, "a.jpg")
    images = with_splits(read_coco(_coco(folder / "a.json", [(1, 1, box_polygon(0, 0))]), None, []), 0.1, 0)
    assert [image.split for image in images] == ["train"]  # the only one
    with pytest.raises(DatasetError, match="is there already; give another --out, or delete it"):
        write_own(images, folder)
    with pytest.raises(DatasetError, match="no image has an object: there is nothing to learn"):
        write_own(with_splits(read_coco(_coco(folder / "a.json", []), None, []), 0, 0), tmp_path / "out")
    with pytest.raises(DatasetError, match="1 images would have a name twice, the first a.jpg; rename one of them"):
        write_own([*images, *images], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tool_stops_at_a_problem_or_goes_on_without_its_image(folder, tmp_path, monkeypatch, capsys):
    write_images(folder, "a.jpg", "b.jpg", "c.jpg")
    for name in ("a", "b"):
        _labelme(folder, name, _shape("mug", _corners(0, 0)))
    _labelme(folder, "c", _shape("mug", [[0, 0]]), _shape("lid", [[0, 0]]))
    out = tmp_path / "out"

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["data", "own", "labelme", str(folder), "--out", str(out), *options])
        try:
            data.main()
        except SystemExit as ended:
            return ended.code, capsys.readouterr()
        return 0, capsys.readouterr()

    code, said = run("--problems", "1")
    assert code and not out.exists() and said.out.count("cannot be used: ") == 2  # the first, and how many more
    assert "1 more; --problems 2 lists all" in said.out
    assert "2 problems, nothing is written; mend them, or add --leave-out" in said.err + str(code)
    code, said = run("--leave-out", "--val", "0.5")
    assert code == 0 and "train: 1 objects: mug 1\nval: 1 objects: mug 1\nwrote 2 images to" in said.out
    assert len(open_named(out, "concepts", "val")) == 1
    assert "is no share of the images; give 0 to below 1" in run("--val", "1.5")[1].err
    assert "data.yaml says where the images are" in run_yolo(monkeypatch, capsys, out)


def run_yolo(monkeypatch, capsys, out):
    monkeypatch.setattr(sys, "argv", ["data", "own", "yolo", "data.yaml", "--out", str(out), "--images", "x"])
    with pytest.raises(SystemExit):
        data.main()
    return capsys.readouterr().err
