"""Where the published datasets lie, and what their files really contain: every fixture has the official shape."""

import pytest
from source_fixtures import (
    SIZE,
    assert_mask,
    box_mask,
    box_polygon,
    box_rle,
    draw_sample,
    open_named,
    write_images,
    write_json,
)

from pixel_sail.data import check
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources import source_record
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.templates import QUESTIONS_EXPLAINED, TELL_APART
from pixel_sail.types import BadSample

GCG = "GranDf/annotations/train"


def _grounded(file_name):
    grounding = {"token_positives": [0, 5], "rle_masks": [box_rle(0, 0)]}
    entry = {"file_name": file_name, "image_id": "9", "height": SIZE[0], "width": SIZE[1], "caption": "A cat sits."}
    return entry | {"groundings": {"A cat": grounding}}


# --- where files and images lie ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["images/train2017", "train2017", "coco_2017/train2017"])
def test_open_psg_names_its_images_with_the_folder_of_coco(tmp_path, folder):
    write_images(tmp_path / folder, "000000000009.jpg")
    write_json(tmp_path / GCG / "OpenPsgGCG_train.json", [_grounded("train2017/000000000009.jpg")])
    source = open_named(tmp_path, "open_psg")
    assert source.problems == [] and draw_sample(source).image == tmp_path / folder / "000000000009.jpg"


def test_only_the_folders_of_coco_are_taken_off_a_name(tmp_path):
    write_images(tmp_path / "images/train2017", "9.jpg")
    for name in ("train2017/9.jpg", "coco/train2017/9.jpg", "val2014/9.jpg", "9.jpg"):
        assert ImageFinder(tmp_path).find(name, "key").name == "9.jpg"
    for name in ("VG_100K/9.jpg", "train2017/a/9.jpg", "mytrain2017/9.jpg"):
        with pytest.raises(BadSample, match="no image"):
            ImageFinder(tmp_path).find(name, "key")


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("grand_f", "GranDf_HA_GCG_train.json", "GranDf_HA_images/train"),
        ("grand_f", "GranDf_HA_GCG_train.json", "GranDf/GranDf_HA_images/train"),
        ("open_psg", "OpenPsgGCG_train.json", "coco_2017/train2017"),
        ("refcocog_gcg", "RefCOCOg_GCG_train.json", "coco_2014/train2014"),
        ("flickr_gcg", "flickr_mergedGT_GCG_train.json", "flikcr_30k/train"),
    ],
)
def test_the_folders_of_glamm_are_searched(tmp_path, name, file, folder):
    write_images(tmp_path / folder, "a.jpg")
    ref = {"sentence": "a cat", "bbox": [0, 0, 5, 5], "segmentation": box_polygon(0, 0)}
    image = {"id": 3, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1], "caption": "A cat sits."}
    flickr = {
        "images": [image],
        "annotations": [{"image_id": 3, "tokens_positive": [[0, 5]], "sam_mask": box_rle(0, 0)}],
    }
    referred = [{"77": {"img_file_name": "a.jpg", "caption": "A cat sits.", "refs": [ref]}}]
    values = {"refcocog_gcg": referred, "flickr_gcg": flickr}.get(name, [_grounded("a.jpg")])
    write_json(tmp_path / GCG / file, values)
    source = open_named(tmp_path, name)
    assert source.problems == [] and draw_sample(source).image == tmp_path / folder / "a.jpg"
    assert folder in source_record(name).image_folders


@pytest.mark.parametrize(
    ("source", "split", "file", "entry"),
    [
        (
            "sam_captions",
            "train",
            "sam_captions/object_caption_data_train_split.json",
            {"image_name": "0.jpg", "object_annotations": [{"segmentation": box_rle(0, 0), "caption": "A red cup."}]},
        ),
        *(
            (
                "muse",
                split,
                f"muse/{name}_{split}.json",
                {
                    **{"file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1], "ann_list": [], "questions": ["a?"]},
                    "answers": [[{"segmentation": box_polygon(0, 0), "category_name": "cup"}]],
                    "text_answers": [None],
                },
            )
            for split in ("train", "val", "test_less", "test_many")
            for name in ("MUSE", "muse")
        ),
    ],
)
def test_a_file_is_read_under_the_names_that_its_authors_give_it(tmp_path, source, split, file, entry):
    write_images(tmp_path / "images/train2017", "0.jpg")
    expected = source_record(source).files[0].where(tmp_path, split)
    assert " or " in expected and str(tmp_path / file) in expected
    (line,) = check.report(check.check_source(tmp_path, source, split, 3), 3)
    assert line.endswith(expected)  # the check and the error name the same places
    with pytest.raises(DatasetError) as error:
        open_named(tmp_path, source, split)
    assert str(error.value) == f"no file {expected}"
    write_json(tmp_path / file, [entry])
    finding = check.check_source(tmp_path, source, split, 3)
    assert (finding.samples, finding.decoded, finding.errors) == (1, 1, ())


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("osprey_short_form", ("osprey-724k/osprey_short_form.json", "Osprey-724K/osprey_short_form.json")),
        ("pix2cap_caption", ("pixel2cap/pix2cap_coco_train.json",)),
    ],
)
def test_the_folders_of_osprey_and_of_pixel_sails_authors_are_known(tmp_path, source, files):
    for file in files:
        write_json(tmp_path / file, [])
        assert source_record(source).files[0].path(tmp_path, "train") == tmp_path / file
        (tmp_path / file).unlink()


# --- RefCOCOg as one COCO-like file -----------------------------------------------------------------------------------


def _mdetr(*entries):
    """The file of GLaMM and Osprey: an image comes once for each of its expressions, and has one annotation."""
    images = [
        {"id": i, "original_id": 9, "file_name": file, "height": SIZE[0], "width": SIZE[1], "caption": caption}
        | {"dataset_name": "refcocog", "expression_id": i}
        for i, (file, caption, _) in enumerate(entries)
    ]
    annotations = [
        {"id": 100 + i, "image_id": i, "original_id": 5, "category_id": 1, "iscrowd": 0, "area": 25}
        | {"bbox": [0, 0, 5, 5], "tokens_positive": [[0, 5]], "segmentation": segmentation}
        for i, (_, _, segmentation) in enumerate(entries)
    ]
    return {"info": [], "licenses": [], "images": images, "annotations": annotations, "categories": []}


@pytest.mark.parametrize("folder", ["RefCoco_Reg/mdetr_annotations", "region_caption/refcocog", "region_caption"])
def test_expressions_of_one_image_are_turns_of_one_sample(tmp_path, folder):
    write_images(tmp_path / "coco_2014/train2014", *(f"COCO_train2014_00000000000{i}.jpg" for i in (1, 2)))
    first, second = (f"COCO_train2014_00000000000{i}.jpg" for i in (1, 2))
    values = _mdetr(
        (first, "the cup on the left", box_polygon(0, 0)),
        (second, "a dog", box_polygon(5, 5)),
        (first, "red cup", box_polygon(0, 0)),
        (first, "the lid", box_rle(10, 0)),
        ("gone.jpg", "a cat", box_polygon(0, 0)),
        (first, " ", box_polygon(0, 0)),
    )
    write_json(tmp_path / folder / "finetune_refcocog_train_with_mask.json", values)
    source = open_named(tmp_path, "refcocog_mdetr_captions")
    assert len(source) == 2 and [problem.split(": ")[0] for problem in source.problems] == [
        f"refcocog_mdetr_captions/train/id={i}" for i in (4, 5)
    ]
    sample = draw_sample(source)
    assert {turn.answer for turn in sample.turns} == {"the cup on the left", "red cup", "the lid"}
    assert len(sample.prompts) == 2  # two expressions of one object are one prompt
    for turn in sample.turns:
        k = int(turn.question.partition("<Prompt")[2][0])
        assert turn.question.replace(f"<Prompt{k}>", "{prompt}") in TELL_APART
        assert_mask(sample.prompts[k], box_mask(10 if turn.answer == "the lid" else 0, 0))
    assert draw_sample(source, 1).turns[0].answer == "a dog"
    assert check.check_source(tmp_path, "refcocog_mdetr_captions", "train", 3).decoded == 2


def test_two_entries_with_one_id_are_named(tmp_path):
    write_images(tmp_path / "images/train2017", "0.jpg", "1.jpg")
    values = _mdetr(*((f"{i}.jpg", text, box_polygon(0, 0)) for i, text in ((0, "a cup"), (1, "a lid"), (1, "a dog"))))
    values["images"][1]["id"] = 0
    write_json(tmp_path / "region_caption/finetune_refcocog_train_with_mask.json", values)
    source = open_named(tmp_path, "refcocog_mdetr_captions")
    assert [turn.answer for turn in draw_sample(source).turns] == ["a dog"]
    problem = "refcocog_mdetr_captions/train/id=0: 2 expressions have this id, so their masks are not known"
    assert source.problems == [problem] * 2

    images = [
        {"id": i, "file_name": f"{i % 2}.jpg", "height": SIZE[0], "width": SIZE[1], "caption": "A cat."}
        for i in (3, 3, 4)
    ]
    annotations = [{"image_id": i, "tokens_positive": [[0, 5]], "sam_mask": box_rle(0, 0)} for i in (3, 4)]
    write_json(tmp_path / GCG / "flickr_mergedGT_GCG_train.json", {"images": images, "annotations": annotations})
    source = open_named(tmp_path, "flickr_gcg")
    assert len(source) == 1 and source.key(0) == "flickr_gcg/train/image=4"
    assert source.problems == ["flickr_gcg/train/image=3: 2 images have this id, so their phrases are not known"] * 2


def test_a_file_of_expressions_that_is_none(tmp_path):
    write_images(tmp_path / "coco_2014/train2014", "0.jpg")
    write_json(tmp_path / "region_caption/finetune_refcocog_val_with_mask.json", {"images": []})
    with pytest.raises(DatasetError, match="is not a COCO-like file of expressions: no 'annotations'"):
        open_named(tmp_path, "refcocog_mdetr_captions", "val")


# --- ReasonSeg with explanations --------------------------------------------------------------------------------------


def test_an_explanation_stands_beside_its_mask(tmp_path):
    folder = tmp_path / "reason_seg/ReasonSeg"
    write_images(folder / "train", "1_a.jpg")
    points = [[0, 0], [9, 0], [9, 9], [0, 9]]
    shapes = [{"label": "target", "labels": ["target"], "shape_type": "polygon", "points": points}]
    write_json(folder / "train/1_a.json", {"text": ["What holds tea?"], "is_sentence": True, "shapes": shapes})
    entries = [
        {"image": "1_a.jpg", "query": "What holds tea?", "outputs": "The cup holds tea, because it is hollow."},
        {"image": "2_b.jpg", "query": "What holds tea?", "outputs": "The cup."},
        {"image": "1_a.jpg", "query": "What holds tea?", "outputs": ""},
    ]
    write_json(folder / "explanatory/train.json", entries)
    source = open_named(tmp_path, "reason_seg_explained")
    assert len(source) == 1 and len(source.problems) == 2
    assert source.problems[0].startswith("reason_seg_explained/1: no usable image '2_b.jpg' in ")
    assert source.problems[1] == "reason_seg_explained/2: its 'outputs' is empty"
    (turn,) = draw_sample(source).turns
    assert turn.question in {template.replace("{expression}", "What holds tea?") for template in QUESTIONS_EXPLAINED}
    assert "[SEG]" in turn.answer and turn.answer.endswith(" The cup holds tea, because it is hollow.")
    assert_mask(draw_sample(source).masks[0], box_mask(0, 0, 10))
    assert check.check_source(tmp_path, "reason_seg_explained", "train", 3).decoded == 1
