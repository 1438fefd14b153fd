"""LLaVA's mix665k and the semantic datasets that LISA's users have: every fixture has the official shape."""

import numpy as np
import pytest
from PIL import Image
from source_fixtures import (
    SIZE,
    assert_mask,
    box_mask,
    box_polygon,
    box_rle,
    box_runs,
    draw_sample,
    messages,
    open_named,
    write_images,
    write_json,
)

from pixel_sail.data import check, image
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.label_classes import ADE20K, COCO_STUFF
from pixel_sail.data.sources.parts import wordings_of
from pixel_sail.data.templates import ANSWERS, QUESTIONS
from pixel_sail.types import BadSample


def _checked(root, source, split="train"):
    """The source, after `prepare_data.py check` decoded all of it."""
    finding = check.check_source(root, source, split, 9)
    assert finding.errors == () and finding.decoded == finding.samples
    return open_named(root, source, split, questions=["{expression}"])


# --- LLaVA ------------------------------------------------------------------------------------------------------------

MIX_IMAGES = (
    "coco/train2017/000000000009.jpg",
    "gqa/images/2405722.jpg",
    "ocr_vqa/images/140031996.jpg",
    "textvqa/train_images/a2f1.jpg",
    "vg/VG_100K_2/2.jpg",
)


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("llava/llava_v1_5_mix665k.json", "llava"),
        ("llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "llava_data/llava_images"),
        ("llava_v1_5_mix665k.json", "."),
    ],
)
def test_the_mixture_of_llava_has_images_of_five_datasets_and_text_alone(tmp_path, file, images):
    for name in MIX_IMAGES:
        path = tmp_path / images / name
        write_images(path.parent, path.name)
    entries = [
        {"id": name, "image": name, "conversations": messages("<image>\nWhat is it?", "A cup.", "Why?", "So.")}
        for name in MIX_IMAGES
    ]
    talk = [{"from": "gpt", "value": "Go on."}, *messages("Write a poem.", "Roses are red.")]
    entries.append({"id": "wgByO4Y_0", "model": "", "conversations": talk})
    write_json(tmp_path / file, entries)
    source = _checked(tmp_path, "llava_mix665k")
    assert source.problems == ["llava_mix665k/5: 1 of its messages, before the first question, left out"]
    for index, name in enumerate(MIX_IMAGES):
        sample = draw_sample(source, index)
        assert sample.image == tmp_path / images / name
        assert [turn.question for turn in sample.turns] == ["What is it?", "Why?"]
    text = draw_sample(source, 5)
    assert text.image is None and text.turns[0].question == "Write a poem."


def test_the_images_of_coco_may_be_where_the_other_sources_have_them(tmp_path):
    write_images(tmp_path / "images/train2017", "000000000009.jpg")
    entry = {"id": "9", "image": MIX_IMAGES[0], "conversations": messages("<image>\nWhat is it?", "A cup.")}
    write_json(tmp_path / "llava/llava_v1_5_mix665k.json", [entry])
    assert draw_sample(_checked(tmp_path, "llava_mix665k")).image.parent == tmp_path / "images/train2017"


@pytest.mark.parametrize("file", ["llava/llava_instruct_150k.json", "llava_dataset/llava_instruct_150k.json"])
def test_llava_is_read_under_the_name_of_its_authors(tmp_path, file):
    write_images(tmp_path / "images/train2017", "000000033471.jpg")
    entry = {"id": "000000033471", "image": "000000033471.jpg"}
    write_json(tmp_path / file, [entry | {"conversations": messages("What is it?\n<image>", "A bus.")}])
    assert draw_sample(_checked(tmp_path, "llava")).turns[0].question == "What is it?"
    assert check.check_source(tmp_path, "llava", "val", 3).missing


# --- label maps -------------------------------------------------------------------------------------------------------


def _label_map(path, boxes, ground, mode="L"):
    """A PNG with a value at each box, and `ground` elsewhere."""
    labels = np.full(SIZE, ground, np.uint8)
    for (x, y), value in boxes.items():
        labels[box_mask(x, y)] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if mode == "P":
        image = image.convert("P")
        image.putdata(labels.flatten().tolist())
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    image.save(path)


def _assert_classes(source, expected, index=0):
    """`expected`: class -> mask (H, W) bool."""
    sample = draw_sample(source, index)
    assert {turn.question for turn in sample.turns} == set(expected)
    for turn, mask in zip(sample.turns, sample.masks, strict=True):
        assert turn.answer in ANSWERS
        assert_mask(mask, expected[turn.question])
    return sample


@pytest.mark.parametrize("base", ["ade20k", "ADEChallengeData2016", "Semantic_Segm/ade20k"])
@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_ade20k_counts_from_one_and_zero_is_no_class(tmp_path, base, split, folder):
    names = [f"ADE_{split}_0000000{i}" for i in (1, 2)]
    write_images(tmp_path / base / "images" / folder, *(f"{name}.jpg" for name in names))
    labels = tmp_path / base / "annotations" / folder
    _label_map(labels / f"{names[0]}.png", {(0, 0): 1, (5, 0): 150, (10, 0): 1}, ground=0)
    _label_map(labels / f"{names[1]}.png", {(0, 0): 13}, ground=0)
    _label_map(labels / "gone.png", {(0, 0): 13}, ground=0)
    source = _checked(tmp_path, "ade20k", split)
    assert [problem.split(" no image ")[0] for problem in source.problems] == [f"ade20k/{split}/gone:"]
    sample = _assert_classes(source, {"wall": box_mask(0, 0) | box_mask(10, 0), "flag": box_mask(5, 0)})
    assert sample.image.name == f"{names[0]}.jpg" and sample.key == f"ade20k/{split}/{names[0]}"
    _assert_classes(source, {"person": box_mask(0, 0)}, index=1)
    questions = {draw_sample(open_named(tmp_path, "ade20k", split), seed=seed).turns[0].question for seed in range(60)}
    assert questions == {template.replace("{expression}", name) for template in QUESTIONS for name in ("wall", "flag")}


@pytest.mark.parametrize("labels", ["cocostuff/train2017", "stuffthingmaps_trainval2017/train2017"])
@pytest.mark.parametrize("images", ["images/train2017", "coco/train2017", "cocostuff/train2017"])
def test_coco_stuff_counts_from_zero_and_leaves_out_the_names_with_a_hyphen(tmp_path, labels, images):
    write_images(tmp_path / images, "000000000009.jpg")
    other, sky = COCO_STUFF.index("building-other"), COCO_STUFF.index("sky")
    assert (sky, COCO_STUFF[0], COCO_STUFF[181]) == (156, "person", "wood")
    boxes = {(0, 0): 0, (5, 0): sky, (10, 0): other, (15, 0): 255}
    _label_map(tmp_path / labels / "000000000009.png", boxes, ground=255)
    source = _checked(tmp_path, "coco_stuff")
    assert source.problems == []
    _assert_classes(source, {"person": box_mask(0, 0), "sky": box_mask(5, 0)})


def _mapillary(root, mode="P"):
    labels = [
        {"name": "animal--bird", "readable": "Bird", "evaluate": True, "instances": True, "color": [165, 42, 42]},
        {"name": "construction--barrier--curb", "readable": "Curb", "evaluate": True, "color": [196, 196, 196]},
        {"name": "void--ego-vehicle", "readable": "Ego Vehicle", "evaluate": False, "color": [120, 10, 10]},
    ]
    write_json(root / "mapillary/config_v2.0.json", {"labels": labels, "version": "2.0", "mapping": "public"})
    write_images(root / "mapillary/training/images", "0035fkbjWljhaftpVM37-g.jpg")
    boxes = {(0, 0): 0, (5, 0): 1, (10, 0): 1}
    _label_map(root / "mapillary/training/v2.0/labels/0035fkbjWljhaftpVM37-g.png", boxes, ground=2, mode=mode)


def test_mapillary_names_its_classes_in_a_file_and_its_label_maps_have_a_palette(tmp_path):
    _mapillary(tmp_path)
    with Image.open(next((tmp_path / "mapillary/training/v2.0/labels").iterdir())) as png:
        assert png.mode == "P"
    source = _checked(tmp_path, "mapillary")
    _assert_classes(source, {"bird": box_mask(0, 0), "curb": box_mask(5, 0) | box_mask(10, 0)})
    write_json(tmp_path / "mapillary/config_v2.0.json", {"labels": [{"name": "animal--bird"}]})
    with pytest.raises(DatasetError, match="config_v2.0.json is not the list of Mapillary's classes: no 'readable'"):
        open_named(tmp_path, "mapillary")


def test_label_maps_that_cannot_be_used_are_explained(tmp_path):
    write_images(tmp_path / "ade20k/images/training", *(f"{i}.jpg" for i in range(3)))
    folder = tmp_path / "ade20k/annotations/training"
    _label_map(folder / "0.png", {}, ground=0)
    (folder / "1.png").write_bytes(b"no image")
    Image.new("RGB", SIZE[::-1]).save(folder / "2.png")
    source = open_named(tmp_path, "ade20k")
    for index, message in enumerate(
        ("no class that can be asked for", "cannot decode", "is of mode RGB; expected one")
    ):
        with pytest.raises(BadSample, match=f"^ade20k/train/{index}: .*{message}"):
            draw_sample(source, index)
    with pytest.raises(DatasetError, match="no file .*/mapillary/training/v2.0/labels"):
        open_named(tmp_path, "mapillary")
    with pytest.raises(DatasetError, match="the splits are train, val, got 'test'"):
        open_named(tmp_path, "ade20k", "test")
    (tmp_path / "stuffthingmaps_trainval2017/train2017").mkdir(parents=True)
    (tmp_path / "images/train2017").mkdir(parents=True)
    with pytest.raises(DatasetError, match="nothing of .*stuffthingmaps_trainval2017/train2017 can be used"):
        open_named(tmp_path, "coco_stuff")


def test_a_label_map_above_the_limit_is_a_bad_sample_and_no_crash(tmp_path, monkeypatch):
    write_images(tmp_path / "ade20k/images/training", "0.jpg")
    _label_map(tmp_path / "ade20k/annotations/training/0.png", {(0, 0): 1}, ground=0)
    source = open_named(tmp_path, "ade20k")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 80)
    with pytest.raises(BadSample, match="^ade20k/train/0: the label map .*0.png has more than 80 pixels; save a"):
        draw_sample(source)


def test_the_lists_of_classes_are_whole():
    assert (len(ADE20K), len(COCO_STUFF)) == (150, 182) == (len(set(ADE20K)), len(set(COCO_STUFF)))
    assert (ADE20K[0], ADE20K[12], ADE20K[149]) == ("wall", "person", "flag")
    assert (COCO_STUFF[17], COCO_STUFF[90], COCO_STUFF[91]) == ("dog", "hair brush", "banner")


# --- objects and their parts ------------------------------------------------------------------------------------------


def test_how_a_category_is_called():
    assert wordings_of("trash_can") == ("trash can",) and wordings_of("dog_(animal)") == ("dog",)
    assert wordings_of("dog_(animal):ear") == ("dog ear", "the ear of the dog")
    assert wordings_of("bottle:inner_body") == ("bottle inner body", "the inner body of the bottle")


def _coco(image, annotations, categories, **members):
    image = {"id": 3, "height": SIZE[0], "width": SIZE[1], "file_name": image} | members
    numbered = [{"id": i, "image_id": 3, "area": 25, "bbox": []} | a for i, a in enumerate(annotations)]
    named = [{"id": i, "name": name} for i, name in enumerate(categories)]
    return {"info": {}, "licenses": [], "images": [image], "annotations": numbered, "categories": named}


@pytest.mark.parametrize("base", ["vlpart/paco", "paco", "paco_lvis"])
@pytest.mark.parametrize("images", ["coco/train2017", "images/train2017", "coco_2017/train2017"])
def test_paco_names_parts_and_says_which_classes_are_not_whole(tmp_path, base, images):
    write_images(tmp_path / images, "000000000009.jpg")
    annotations = [
        {"category_id": 0, "segmentation": box_polygon(0, 0)},
        {"category_id": 0, "segmentation": box_rle(10, 0)},
        {"category_id": 1, "segmentation": box_polygon(20, 0), "obj_ann_id": 0},
        {"category_id": 1, "segmentation": [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], "obj_ann_id": 1},
        {"category_id": 2, "segmentation": box_polygon(5, 10)},
        {"category_id": 3, "segmentation": box_runs(5, 20), "iscrowd": 1},
    ]
    categories = ["trash_can", "trash_can:lid", "mug", "dog_(animal)"]
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": [2]}
    values = _coco("train2017/000000000009.jpg", annotations, categories, **lists)
    write_json(tmp_path / base / "annotations/paco_lvis_v1_train.json", values)
    source = _checked(tmp_path, "paco_lvis")
    assert source.problems == [
        "paco_lvis/train/image=3: annotation 3: its mask has no pixel",
        "paco_lvis/train: 2 classes of an image have a crowd or are not exhaustive",
    ]
    asked = set()
    for seed in range(20):
        sample = draw_sample(source, seed=seed)
        masks = dict(zip((turn.question for turn in sample.turns), sample.masks, strict=True))
        assert_mask(masks.pop("trash can"), box_mask(0, 0) | box_mask(10, 0))
        ((question, mask),) = masks.items()
        assert_mask(mask, box_mask(20, 0))
        asked.add(question)
    assert asked == {"trash can lid", "the lid of the trash can"}


@pytest.mark.parametrize("base", ["vlpart/pascal_part", "pascal_part"])
def test_pascal_part_has_the_images_of_voc(tmp_path, base):
    write_images(tmp_path / base / "VOCdevkit/VOC2010/JPEGImages", "2008_000008.jpg")
    annotations = [{"category_id": 0, "segmentation": box_polygon(0, 0)}]
    write_json(tmp_path / base / "train.json", _coco("2008_000008.jpg", annotations, ["horse:muzzle"]))
    source = _checked(tmp_path, "pascal_part")
    sample = draw_sample(source)
    assert source.problems == [] and sample.image.name == "2008_000008.jpg"
    assert sample.turns[0].question in ("horse muzzle", "the muzzle of the horse")
    assert_mask(sample.masks[0], box_mask(0, 0))


def test_two_images_of_parts_with_one_id_are_named(tmp_path):
    write_images(tmp_path / "coco/train2017", "0.jpg", "1.jpg", "2.jpg")
    values = _coco("train2017/0.jpg", [{"category_id": 0, "segmentation": box_polygon(0, 0)}], ["mug"])
    values["images"].append(values["images"][0] | {"file_name": "train2017/1.jpg"})
    values["images"].append(values["images"][0] | {"file_name": "train2017/2.jpg", "id": 4})
    values["annotations"].append(values["annotations"][0] | {"image_id": 4})
    write_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", values)
    source = _checked(tmp_path, "paco_lvis")
    assert len(source) == 1 and draw_sample(source).image.name == "2.jpg"
    assert source.problems == ["paco_lvis/train/image=3: 2 images have this id, so their objects are not known"] * 2


def test_bad_files_of_parts_are_explained(tmp_path):
    write_images(tmp_path / "coco/train2017", "0.jpg")
    file = tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json"
    write_json(file, {"images": [], "annotations": []})
    with pytest.raises(DatasetError, match="is not a COCO instances file: no 'categories'"):
        open_named(tmp_path, "paco_lvis")
    write_json(file, _coco("train2017/0.jpg", [{"category_id": 7, "segmentation": box_polygon(0, 0)}], ["mug"]))
    with pytest.raises(DatasetError, match="nothing of .* can be used; first: .*category 7 is not in the list"):
        open_named(tmp_path, "paco_lvis")
    with pytest.raises(DatasetError, match="no file .*/vlpart/pascal_part/train.json or .*/pascal_part/train.json"):
        open_named(tmp_path, "pascal_part")
