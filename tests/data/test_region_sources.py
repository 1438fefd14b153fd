"""The readers of region formats: every fixture is written here in the format of the real file."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from conftest import edit_refs
from PIL import Image
from pycocotools import mask as coco_mask
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

from pixel_sail.config import ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px, decode_mask, encode_mask
from pixel_sail.data.options import parse_options, stated_letter
from pixel_sail.data.sources import RECORDS, coco_panoptic, pix2cap
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.perbench import read_perbench
from pixel_sail.data.sources.refer import read_refer
from pixel_sail.data.sources.region_turns import RegionTurn, compose
from pixel_sail.data.templates import (
    ANSWERS,
    ANSWERS_SEVERAL,
    CLASSIFY,
    DESCRIBE,
    TELL_APART,
    about,
    classify,
)
from pixel_sail.tokens import prompt_names
from pixel_sail.types import BadSample, NoPixels


@pytest.fixture
def root(tmp_path):
    """A data root with images 0.jpg to 3.jpg in train2017 and nothing else."""
    write_images(tmp_path / "images/train2017", *(f"{i}.jpg" for i in range(4)))
    return tmp_path


# --- images -------------------------------------------------------------------------------------------------------


def test_an_image_is_looked_up_in_the_folders_in_their_order(tmp_path):
    folders = ImageFinder.FOLDERS
    assert folders == (
        *("images/train2017", "images/val2017", "train2017", "val2017", "images/train2014"),
        *("images/mscoco/images/train2014", "images/sam", "images"),
    )
    for folder in reversed(folders):
        write_images(tmp_path / folder, "a.jpg")
        assert ImageFinder(tmp_path).find("a.jpg", "key") == tmp_path / folder / "a.jpg"
    assert ImageFinder(tmp_path).find("sam/a.jpg", "key") == tmp_path / "images/sam/a.jpg"


def test_an_image_of_coco_2014_is_found_under_its_name_of_2017(root):
    write_images(root / "images/train2017", "000000000009.jpg")
    path = ImageFinder(root).find("COCO_train2014_000000000009.jpg", "key")
    assert path == root / "images/train2017/000000000009.jpg"
    write_images(root / "images/train2014", "COCO_train2014_000000000009.jpg")
    assert (
        ImageFinder(root).find("COCO_train2014_000000000009.jpg", "key").parent.name == "train2014"
    )  # its own name first


def test_a_missing_image_names_the_folders(root, tmp_path_factory):
    (root / "images/sam").mkdir()
    with pytest.raises(BadSample, match="key/3: no image 'x.jpg' in .*images/train2017, .*images/sam, .*images$"):
        ImageFinder(root).find("x.jpg", "key/3")
    with pytest.raises(DatasetError, match="no images under .*: expected one of the folders images/train2017, "):
        ImageFinder(tmp_path_factory.mktemp("empty"))


# --- turns about regions --------------------------------------------------------------------------------------------


def test_composing_renumbers_by_first_mention_and_unites_equal_regions():
    a, b, c = box_rle(0, 0), box_rle(5, 0), box_rle(10, 0)
    turns = [
        RegionTurn("Is <Prompt1> like <Prompt0>?", "<Prompt0> is [SEG].", {0: a, 1: b}, (c,)),
        RegionTurn("And <Prompt0>?", "It is <Prompt1>.", {0: c, 1: b}),
    ]
    sample = compose("key", None, turns)
    assert [(t.question, t.answer) for t in sample.turns] == [
        ("Is <Prompt0> like <Prompt1>?", "<Prompt1> is [SEG]."),
        ("And <Prompt2>?", "It is <Prompt0>."),
    ]
    assert sample.prompts == {0: b, 1: a, 2: c} and sample.masks == (c,)


def test_a_turn_beyond_fifteen_regions_is_left_out_with_its_masks_and_the_next_that_fits_stays():
    cells = [box_rle(x, y) for y in range(0, 30, 5) for x in range(0, 40, 5)]
    singles = [RegionTurn("<Prompt0>?", f"{i} [SEG]", {0: cell}, (cell,)) for i, cell in enumerate(cells[:14])]
    double = RegionTurn("<Prompt0> or <Prompt1>?", "two [SEG]", dict(enumerate(cells[14:16])), (cells[14],))
    last = RegionTurn("<Prompt0>?", "last [SEG]", {0: cells[16]}, (cells[16],))
    sample = compose("key", None, [*singles, double, last])
    assert sample.turns[-1].answer == "last [SEG]" and len(sample.turns) == 15 == len(sample.masks)
    assert [sample.prompts[k] for k in range(15)] == [*cells[:14], cells[16]] == list(sample.masks)


def test_a_name_without_region_and_an_empty_region_are_refused():
    with pytest.raises(BadSample, match="key: <Prompt1> is named, but no such region is drawn"):
        compose("key", None, [RegionTurn("<Prompt0> and <Prompt1>", "x", {0: box_rle(0, 0)})])
    with pytest.raises(BadSample, match="key: the region of <Prompt0> is empty"):
        compose("key", None, [RegionTurn("<Prompt0>", "x", {0: box_rle(0, 0, side=0)})])


def test_a_turn_with_an_empty_region_or_mask_is_left_out_and_counted():
    whole, empty = box_rle(0, 0), box_rle(0, 0, side=0)
    turns = [
        RegionTurn("<Prompt0>", "x", {0: empty}),
        RegionTurn("<Prompt0>", "[SEG]", {0: whole}, (empty,)),
        RegionTurn("<Prompt0>", "y", {0: whole}),
    ]
    sample = compose("key", None, turns)
    assert [turn.answer for turn in sample.turns] == ["y"] and sample.masks == () and sample.dropped_turns == 2
    with pytest.raises(NoPixels, match="key: the region of <Prompt0> is empty"):
        compose("key", None, turns[:2])


# --- Osprey ---------------------------------------------------------------------------------------------------------


def _osprey_entry(*texts, regions=3, **changes):
    return {
        "id": "1",
        "file_name": "0.jpg",
        "height": SIZE[0],
        "width": SIZE[1],
        "annotation": [{"bbox": [], "segmentation": box_polygon(5 * (i % 8), 5 * (i // 8))} for i in range(regions)],
        "conversations": messages(*texts),
    } | changes


def _osprey(root, *entries, kind="conversation"):
    write_json(root / f"osprey/osprey_{kind}.json", [*entries, _osprey_entry("Good <region1>?", "Yes.")])
    return open_named(root, f"osprey_{kind}")


def test_osprey_regions_are_prompts_by_first_mention_with_the_mask_of_their_number(root):
    texts = ("Is <region3> larger than <region1>?", "No, <region1> is.", "And <region2>, next to <region3>?", "Small.")
    source = _osprey(root, _osprey_entry(*texts))
    sample = draw_sample(source)
    assert sample.key == "osprey_conversation/0" and sample.image == root / "images/train2017/0.jpg"
    assert [text for turn in sample.turns for text in (turn.question, turn.answer)] == [
        *("Is <Prompt0> larger than <Prompt1>?", "No, <Prompt1> is.", "And <Prompt2>, next to <Prompt0>?", "Small.")
    ]
    for k, number in enumerate((3, 1, 2)):
        assert_mask(sample.prompts[k], box_mask(5 * (number - 1), 0))


@pytest.mark.parametrize(
    "written, read",
    [
        ("<region1>", "<Prompt0>"),
        ("region1", "<Prompt0>"),
        ("<region 1>", "<Prompt0>"),
        ("<Region1>", "<Prompt0>"),
        ('"<region1>"<mask><pos>', '"<Prompt0>"'),
        ("<region1><mask><pos>", "<Prompt0>"),
        ("region1<mask><pos>,region2<mask><pos>", "<Prompt0>,<Prompt1>"),
        ("<region1]", "<Prompt0>"),
        ("<region1 here", "<Prompt0> here"),
        ("<regin1>", "<Prompt0>"),
        ("<region of1>", "<Prompt0>"),
        ("<region1>'s", "<Prompt0>'s"),
        ("<region10>, <region1>", "<Prompt0>, <Prompt1>"),
        ("<region1>, <region10>", "<Prompt0>, <Prompt1>"),
        ("<region1> in a subregion1 of the regions", "<Prompt0> in a subregion1 of the regions"),
    ],
)
def test_the_ways_in_which_osprey_writes_a_region(root, written, read):
    source = _osprey(root, _osprey_entry(f"What is {written}?", f"It is {written}.", regions=12))
    assert source.problems == []
    sample = draw_sample(source)
    assert (sample.turns[0].question, sample.turns[0].answer) == (f"What is {read}?", f"It is {read}.")
    if "10" in written:
        number = {"<region10>, <region1>": (10, 1), "<region1>, <region10>": (1, 10)}[written]
        for k, n in enumerate(number):
            assert_mask(sample.prompts[k], box_mask(5 * ((n - 1) % 8), 5 * ((n - 1) // 8)))


def test_a_lone_region_needs_no_number_and_no_name(root):
    source = _osprey(
        root, _osprey_entry("What is <region>?", "A cup.", regions=1), _osprey_entry("Why?", "So.", regions=1)
    )
    assert draw_sample(source, 0).turns[0].question == "What is <Prompt0>?"
    assert draw_sample(source, 1).turns[0].question == "<Prompt0> Why?"


def test_osprey_descriptions_as_published_have_no_conversation(root):
    entry = _osprey_entry(description=["<region2>: A cup.\nOf tin.", " <Region1>:  A lid. "])
    del entry["conversations"]
    sample = draw_sample(_osprey(root, entry, kind="detail_description"))
    assert [(t.question, t.answer) for t in sample.turns] == [
        ("Describe <Prompt0> in detail.", "A cup.\nOf tin."),
        ("Describe <Prompt1> in detail.", "A lid."),
    ]
    assert_mask(sample.prompts[0], box_mask(5, 0))


def test_turns_beyond_the_fifteenth_region_are_left_out_and_counted(root):
    texts = [text for n in range(1, 18) for text in (f"<region{n}>?", "Yes.")]
    source = _osprey(root, _osprey_entry(*texts, "<region1> again?", "Yes.", regions=17))
    assert [turn.question for turn in draw_sample(source).turns][-2:] == ["<Prompt14>?", "<Prompt0> again?"]
    assert source.problems == [
        "osprey_conversation/0: 2 of its 18 turns are left out: a sample holds at most 15 regions"
    ]


def test_masks_are_polygons_or_either_rle(root):
    kinds = [{"segmentation": make(5 * i, 10)} for i, make in enumerate((box_polygon, box_runs, box_rle))]
    entry = _osprey_entry("<region1> <region2> <region3>?", "Yes.", annotation=kinds)
    for k, region in draw_sample(_osprey(root, entry)).prompts.items():
        assert_mask(region, box_mask(5 * k, 10))


def test_a_damaged_rle_is_found_when_it_is_decoded_and_not_before(root):
    annotations = [{"segmentation": {"size": [9, 9], "counts": "Q3"}}]
    source = _osprey(root, _osprey_entry("<region1>?", "Yes.", annotation=annotations))
    assert source.problems == [] and len(source) == 2
    with pytest.raises(BadSample, match=r"^osprey_conversation/0: the region of .*is of size \[9, 9\]"):
        draw_sample(source)


def test_bad_osprey_entries_are_listed_and_the_others_stay(root):
    good = ("<region1>?", "Yes.")
    not_alternating = _osprey_entry(*good, *good)
    not_alternating["conversations"][2]["from"] = "gpt"
    bad = {
        "<region4> is named, but the entry has 3 annotations": _osprey_entry("<region4>?", "Yes."),
        "<region0> is named, but": _osprey_entry("<region1>?", "<region0>."),
        "'<region>?' is not understood": _osprey_entry("<region>?", "Yes."),
        "none of its 16 regions is named, and 16 can be drawn": _osprey_entry("Why?", "So.", regions=16),
        "message 2 is from 'gpt', expected 'human'": not_alternating,
        "its conversation is empty": _osprey_entry(),
        "turn 0 has an empty question or answer": _osprey_entry("<region1>?", " "),
        "answer 0: the text contains [SEG], but there is no mask for it": _osprey_entry("<region1>?", "[SEG]"),
        "question 0: the text contains <Prompt2>, but": _osprey_entry("<Prompt2>?", "No."),
        "no image 'x.jpg' in ": _osprey_entry(*good, file_name="x.jpg"),
        "its 'height' is '30'; expected int": _osprey_entry(*good, height="30"),
        "the description 'A cup' is not of the form '<regionN>: text'": {
            k: v for k, v in _osprey_entry(description=["A cup"]).items() if k != "conversations"
        },
        "it has no 'annotation'": "text",
    }
    source = _osprey(root, *bad.values())
    assert len(source) == 1 and draw_sample(source).turns[0].question == "Good <Prompt0>?"
    assert len(source.problems) == len(bad)
    for number, (problem, message) in enumerate(zip(source.problems, bad, strict=True)):
        assert problem.startswith(f"osprey_conversation/{number}: ") and message in problem, problem


# --- LLaVA ----------------------------------------------------------------------------------------------------------


def _llava(root, *entries, split="train"):
    good = {"id": "last", "conversations": messages("Hi", "Hello")}
    write_json(root / f"llava/{split}.json", [*entries, good])
    return open_named(root, "llava", split)


@pytest.mark.parametrize("question", ["<image>\nWhy?", "Why?\n<image>", "<image>Why?", "Why?"])
def test_the_image_marker_goes_with_its_newline(root, question):
    sample = draw_sample(
        _llava(root, {"image": "0.jpg", "conversations": messages(question, "So.", "And\nhow?", "Thus.")})
    )
    assert [turn.question for turn in sample.turns] == ["Why?", "And\nhow?"]
    sample = draw_sample(_llava(root, {"image": "0.jpg", "conversations": messages("Look:\n<image>\nWhy?", "So.")}))
    assert sample.turns[0].question == "Look:\nWhy?"
    assert sample.image == root / "images/train2017/0.jpg" and not sample.prompts and not sample.masks


def test_llava_images_may_be_named_from_the_root_and_text_has_none(root):
    write_images(root / "coco/train", "a.jpg")
    source = _llava(root, {"image": "coco/train/a.jpg", "conversations": messages("<image>\nWhy?", "So.")}, split="val")
    assert source.problems == [] and draw_sample(source, 0).image == root / "coco/train/a.jpg"
    assert draw_sample(source, 1).image is None and source.key(1) == "llava/val/1"


def test_text_alone_needs_no_folder_of_images(tmp_path):
    assert len(_llava(tmp_path)) == 1


def test_bad_llava_entries_are_listed(root):
    bad = {
        "it has the marker <image>, but no image": {"conversations": messages("<image>\nWhy?", "So.")},
        "its conversation has 2 <image> markers": {
            "image": "0.jpg",
            "conversations": messages("<image><image>Why?", "So."),
        },
        "a question is empty but for its <image> marker": {
            "image": "0.jpg",
            "conversations": messages("<image>\n", "So."),
        },
        "no image 'gone.jpg' in ": {"image": "gone.jpg", "conversations": messages("<image>\nWhy?", "So.")},
        "its 'image' is ['0.jpg']; expected str": {"image": ["0.jpg"], "conversations": messages("Why?", "So.")},
        "answer 0: the text contains [SEG]": {"conversations": messages("Segment it.", "It is [SEG].")},
        "message 0 is from 'system'": {"conversations": [{"from": "system", "value": "Be good."}]},
        "it has no 'conversations'": {"image": "0.jpg"},
    }
    source = _llava(root, *bad.values())
    assert len(source) == 1 and len(source.problems) == len(bad)
    for number, (problem, message) in enumerate(zip(source.problems, bad, strict=True)):
        assert problem.startswith(f"llava/train/{number}: ") and message in problem, problem
    asked = draw_sample(_llava(root, {"conversations": messages("What is [SEG]?", "A token.")}))
    assert asked.turns[0].question == "What is [SEG]?"  # in a question it is no answer


# --- panoptic and Pix2Cap -------------------------------------------------------------------------------------------

CLASSES = ["cup", "lid", "tree-merged", "wall-other-merged", "wall", "door-stuff", "fish"]
SEGMENTS = {  # id -> (x, y of its box, category): ids that need all three bytes
    1: (0, 0, 1),
    256: (5, 0, 2),
    65536: (10, 0, 3),
    3937500: (15, 0, 4),
    16777215: (20, 0, 6),
}


def _panoptic(root, path, change=lambda values: None, described=False, split="train"):
    """One image with SEGMENTS, its PNG, and the JSON at `path` after `change(values)`."""
    ids = np.zeros(SIZE, dtype=np.int64)
    infos = []
    for segment_id, (x, y, category) in SEGMENTS.items():
        ids[box_mask(x, y)] = segment_id
        infos.append({"id": segment_id, "category_id": category, "area": 25, "iscrowd": 0, "bbox": [x, y, 5, 5]})
        if described:
            infos[-1]["description"] = f"The thing number {segment_id}."
    folder = root / f"annotations/panoptic_{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(
        folder / "0.png"
    )
    values = {
        "images": [{"id": 7, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"image_id": 7, "file_name": "0.png", "segments_info": infos}],
        "categories": [{"id": i, "name": name, "isthing": 1} for i, name in enumerate(CLASSES, 1)],
    }
    change(values)
    write_json(root / path, values)


CATEGORY_FILE, CAPTION_FILE = "annotations/panoptic_train2017.json", "pix2cap/pix2cap_coco_train.json"
NAME_OF = {1: "cup", 256: "lid", 65536: "tree", 3937500: "wall-other-merged", 16777215: "door"}


def _segment_of(rle):
    return next(i for i, (x, y, _) in SEGMENTS.items() if np.array_equal(decode_mask(rle), box_mask(x, y)))


def test_a_segment_is_the_pixels_of_its_id_and_its_class_the_answer(root):
    _panoptic(root, CATEGORY_FILE)
    source = open_named(root, "panoptic_category", count=4)
    assert source.problems == [] and source.key(0) == "panoptic_category/train/image=7"
    seen, templates, answers = set(), set(), Counter()
    for seed in range(200):
        sample = draw_sample(source, seed=seed)
        assert len(sample.turns) == 4 == len(sample.prompts)
        for k, turn in enumerate(sample.turns):
            true = NAME_OF[_segment_of(sample.prompts[k])]
            template = next(t for t in CLASSIFY if turn.question.startswith(t.split("{prompt}")[0]))
            classes = re.search(r": ([^:]*)[.?]$", turn.question)[1].split(", ")
            assert turn.question == classify(f"<Prompt{k}>", classes[:-1], template)
            assert classes[-1] == "others" and len(set(classes)) == 4
            assert turn.answer == (true if true in classes else "others")
            # Three of the other four classes here fill the places: the image alone never tells the answer.
            assert set(classes[:-1]) <= set(NAME_OF.values())
            seen.add(true), templates.add(template), answers.update(["others"] * (turn.answer == "others"))
            answers[classes.index(true) if true in classes else "left out"] += 1
    assert seen == set(NAME_OF.values()) and templates == set(CLASSIFY)
    assert 0.15 < answers["others"] / 800 < 0.25  # OTHERS_RATE
    assert all(answers[place] > 150 for place in (0, 1, 2))  # the right class has no favourite place


def test_an_image_of_one_class_is_asked_with_classes_from_elsewhere(root):
    _panoptic(
        root, CATEGORY_FILE, lambda values: values["annotations"][0].update(segments_info=[{"id": 1, "category_id": 1}])
    )
    source = open_named(root, "panoptic_category")
    questions = "".join(draw_sample(source, seed=seed).turns[0].question for seed in range(60))
    assert all(name in questions for name in ("cup", "lid", "tree", "wall-other-merged", "wall", "door", "fish"))


def test_class_names_are_shortened_unless_two_would_be_one():
    assert coco_panoptic._class_names(dict(enumerate(CLASSES))) == dict(
        enumerate(["cup", "lid", "tree", "wall-other-merged", "wall", "door", "fish"])
    )


def test_crowds_are_left_out_and_counted(root):
    def crowd(values):
        for info in values["annotations"][0]["segments_info"][:2]:
            info["iscrowd"] = 1

    _panoptic(root, CATEGORY_FILE, crowd)
    source = open_named(root, "panoptic_category", count=10)
    assert source.problems == ["panoptic_category/train: 2 crowd segments are left out"]
    assert {_segment_of(rle) for rle in draw_sample(source).prompts.values()} == {65536, 3937500, 16777215}


def test_contradictions_of_png_and_annotation_are_found_when_it_is_decoded(root):
    def change(key, value):
        return lambda values: values["annotations"][0]["segments_info"][1].update({key: value})

    for key, value, message in (
        ("id", 77, "77 has no pixel in .*0.png"),
        ("area", 26, "256 has 25 pixels in .*area is 26"),
    ):
        _panoptic(root, CATEGORY_FILE, change(key, value))
        source = open_named(root, "panoptic_category")
        for seed in range(5):  # whichever segments are drawn
            with pytest.raises(BadSample, match=f"^panoptic_category/train/image=7: segment {message}"):
                draw_sample(source, seed=seed)
    (root / "annotations/panoptic_train2017/0.png").write_bytes(b"no image")
    with pytest.raises(BadSample, match="image=7: cannot decode the image .*0.png"):
        draw_sample(source)


def test_semantic_classes(root):
    """Every class once; all its segments are one mask."""

    def two_cups(values):
        values["annotations"][0]["segments_info"][1]["category_id"] = 1

    _panoptic(root, CATEGORY_FILE, two_cups)
    source = open_named(root, "coco_semantic", count=10, questions=["{expression}"])
    sample = draw_sample(source)
    shown = {turn.question: decode_mask(rle) for turn, rle in zip(sample.turns, sample.masks, strict=True)}
    assert set(shown) == {*NAME_OF.values()} - {"lid"} and sample.prompts == {}
    (x, y, _), (u, v, _) = SEGMENTS[1], SEGMENTS[256]
    assert np.array_equal(shown["cup"], box_mask(x, y) | box_mask(u, v))
    assert all(mask.sum() == 25 for name, mask in shown.items() if name != "cup")
    several = {turn.question for turn in sample.turns if turn.answer in ANSWERS_SEVERAL}
    assert several == {"cup"}
    assert len(draw_sample(open_named(root, "coco_semantic", count=2)).turns) == 2


def test_a_class_with_a_crowd_is_not_asked_for(root):
    """One cup is left out as a crowd: the mask of the other would not be all the cups."""

    def a_cup_and_a_crowd(values):
        infos = values["annotations"][0]["segments_info"]
        infos[1] |= {"category_id": 1, "iscrowd": 1}

    _panoptic(root, CATEGORY_FILE, a_cup_and_a_crowd)
    source = open_named(root, "coco_semantic", count=10, questions=["{expression}"])
    assert {turn.question for turn in draw_sample(source).turns} == {*NAME_OF.values()} - {"lid", "cup"}
    assert source.problems == ["coco_semantic/train: 1 crowd segments are left out"]


def test_bad_panoptic_annotations_are_listed(root):
    def spoil(values):
        good = values["annotations"][0]
        values["images"] += [{"id": 8, "file_name": "gone.jpg"}]
        values["annotations"] += [
            good | {"image_id": 8},
            good | {"image_id": 9, "file_name": "none.png"},
            {"image_id": 10, "file_name": "0.png"},
            good | {"image_id": 11, "segments_info": [{"id": 1, "category_id": 99}]},
            good | {"image_id": 12, "segments_info": [{"id": 1, "iscrowd": 1}]},
            {"file_name": "0.png"},
        ]

    _panoptic(root, CATEGORY_FILE, spoil)
    source = open_named(root, "panoptic_category")
    expected = [
        "image=8: no image 'gone.jpg' in ",
        "image=9: no file ",
        "image=10: it has no 'segments_info'",
        "image=11: segment 1: category 99 is not in the list of categories",
        "image=12: no segment is left",
        "6: it has no 'image_id'",
        "1 crowd segments are left out",
    ]
    assert len(source) == 1 and len(source.problems) == len(expected)
    for problem, message in zip(source.problems, expected, strict=True):
        assert problem.startswith("panoptic_category/train") and message in problem, problem


def test_pix2cap_goes_from_region_to_description_and_back(root):
    _panoptic(root, CAPTION_FILE, described=True)
    captions, segments = (
        open_named(root, name, count=3, questions=["{expression}"]) for name in ("pix2cap_caption", "pix2cap_segment")
    )
    asked, drawn = set(), set()
    for seed in range(60):
        sample = draw_sample(captions, seed=seed)
        assert len(sample.turns) == 3 and sample.masks == ()
        for k, turn in enumerate(sample.turns):
            assert turn.answer == f"The thing number {_segment_of(sample.prompts[k])}."
            asked.add(turn.question.replace(f"<Prompt{k}>", "{prompt}"))
            drawn.add(turn.answer)
        sample = draw_sample(segments, seed=seed)
        assert len(sample.turns) == 3 == len(sample.masks) and sample.prompts == {}
        for turn, mask in zip(sample.turns, sample.masks, strict=True):
            assert turn.question == f"the thing number {_segment_of(mask)}" and turn.answer in ANSWERS
    assert asked == set(DESCRIBE) and len(drawn) == len(SEGMENTS)
    assert DESCRIBE[0] == "Describe {prompt} in detail."


def test_a_description_stands_inside_a_question():
    for text, expression in {
        "A red cup.": "a red cup",
        "An ink pot. The lid is off.": "an ink pot. The lid is off",
        "Anna's cup": "Anna's cup",
        "The": "the",
    }.items():
        assert pix2cap._expression(text) == expression


def test_pix2cap_without_image_list_is_found_by_its_png_and_missing_descriptions_are_counted(root):
    def change(values):
        del values["images"], values["categories"]
        infos = values["annotations"][0]["segments_info"]
        infos[0]["description"] = ""
        del infos[1]["description"]
        values["annotations"].append(values["annotations"][0] | {"image_id": 8, "segments_info": infos[:2]})

    _panoptic(root, CAPTION_FILE, change, described=True)
    source = open_named(root, "pix2cap_caption")
    assert len(draw_sample(source).turns) == 3
    assert source.problems == [
        "pix2cap_caption/train/image=8: no segment with a description is left",
        "pix2cap_caption/train: 4 segments have no description",
    ]


def test_a_description_with_a_mask_token_is_refused(root):
    def change(values):
        second = dict(values["annotations"][0]["segments_info"][0], description="It is [SEG].")
        values["annotations"].append(values["annotations"][0] | {"image_id": 8, "segments_info": [second]})

    _panoptic(root, CAPTION_FILE, change, described=True)
    (problem,) = open_named(root, "pix2cap_segment").problems
    assert problem == "pix2cap_segment/train/image=8: segment 1: the text contains [SEG], but there is no mask for it"


# --- captions of objects --------------------------------------------------------------------------------------------


def _captioned(*captions, image="0.jpg"):
    objects = [{"segmentation": box_rle(5 * i, 5), "caption": caption} for i, caption in enumerate(captions)]
    return {"image_name": image, "object_annotations": objects}


def test_sam_captions_belong_to_their_region(root):
    write_json(root / "sam_captions/val.json", [_captioned("zero", "one", "two", "three", image="1.jpg")])
    source = open_named(root, "sam_captions", "val", count=3)
    order = set()
    for seed in range(30):
        sample = draw_sample(source, seed=seed)
        assert sample.key == "sam_captions/val/0" and sample.image == root / "images/train2017/1.jpg"
        for k, turn in enumerate(sample.turns):
            assert_mask(sample.prompts[k], box_mask(5 * ["zero", "one", "two", "three"].index(turn.answer), 5))
        order.add(tuple(turn.answer for turn in sample.turns))
        assert len(sample.turns) == 3
    assert len(order) > 15
    assert draw_sample(source, seed=3) == draw_sample(open_named(root, "sam_captions", "val", count=3), seed=3)


def test_bad_captions_are_listed_and_bad_masks_found_when_drawn(root):
    entries = [_captioned("a", "b", "c", "d"), _captioned("x"), _captioned("x", image="x.jpg"), {"image_name": "0.jpg"}]
    objects = entries[0]["object_annotations"]
    objects[0]["caption"] = " "
    del objects[1]["caption"]
    objects[2]["segmentation"] = box_polygon(0, 0)
    entries[1]["object_annotations"][0]["segmentation"]["size"] = [30, "40"]
    write_json(root / "sam_captions/train.json", entries)
    source = open_named(root, "sam_captions")
    expected = [
        "0/0: its 'caption' is empty",
        "0/1: it has no 'caption'",
        "0/2: its 'segmentation' is [[0, 0, 5, 0, 5, 5, ...]]; expected dict",
        "2: no image 'x.jpg' in",
        "3: it has no 'object_annotations'",
    ]
    assert len(source.problems) == len(expected) and len(source) == 2
    for problem, message in zip(source.problems, expected, strict=True):
        assert problem.startswith(f"sam_captions/train/{message}"), problem
    assert [turn.answer for turn in draw_sample(source).turns] == ["d"]
    with pytest.raises(BadSample, match="sam_captions/train/1/0: .* is no RLE"):
        draw_sample(source, 1)


# --- expressions the other way round --------------------------------------------------------------------------------


def test_every_expression_of_a_referent_is_a_caption_of_its_region(dataset):
    source = open_named(dataset, "refcoco_captions", count=2)
    image = next(image for image in read_refer(dataset, "refcoco", "train").images if image.image_id == 11)
    masks = {sentence: referent.mask for referent in image.referents for _, sentence in referent.sentences}
    asked, answered = set(), set()
    for seed in range(60):
        sample = draw_sample(source, 1, seed)
        assert sample.key == "refcoco_captions/train/image=11" and len(sample.turns) == 2 == len(sample.prompts)
        for k, turn in enumerate(sample.turns):
            assert sample.prompts[k] == masks[turn.answer]
            asked.add(turn.question.replace(f"<Prompt{k}>", "{prompt}"))
            answered.add(turn.answer)
    assert asked == set(TELL_APART) and answered == set(masks)
    assert TELL_APART[0] == "Write a short phrase that tells {prompt} apart."


def test_two_refs_of_one_object_are_one_prompt(dataset):
    edit_refs(dataset, lambda refs: refs[1].update(ann_id=refs[0]["ann_id"]))
    sample = draw_sample(open_named(dataset, "refcoco_captions"))
    assert len(sample.turns) == 3 and len(sample.prompts) == 2


# --- PerBench -------------------------------------------------------------------------------------------------------

QUESTION = "What colour is <Prompt0>?\nA. red\nB. blue\nC. green\nD. black"


def _perbench(root, task, *entries, folder="perbench_train"):
    write_json(root / folder / FILES[f"perbench_{task}"].rpartition("/")[2], list(entries))
    return root / folder


def _mcq(question=QUESTION, answer="B", region=None, image="0.jpg"):
    return {"image_name": image, "mcqs": [{"object": region or box_rle(5, 5), "question": question, "answer": answer}]}


def _vres(question="Segment what is left of <obj0>.", answer="It is <obj1>.", tags=("<obj0>", "<obj1>"), image="0.jpg"):
    segmentations = {tag: box_rle(5 * (i % 8), 5 * (i // 8)) for i, tag in enumerate(tags)}
    return {"image_name": image, "question": question, "answer": answer, "segmentations": segmentations}


def test_perbench_captions(root):
    folder = _perbench(root, "caption", _captioned("zero", "one"), _captioned("two", image="1.jpg"), folder="perbench")
    read = read_perbench(folder, "caption")
    assert read.problems == () and [case.id for case in read.cases] == ["caption/0/0", "caption/0/1", "caption/1/0"]
    assert [case.reference for case in read.cases] == ["zero", "one", "two"]
    case = read.cases[1]
    assert case.question == "Describe <Prompt0> in detail." and case.size_hw == SIZE
    assert case.image == root / "images/train2017/0.jpg" and list(case.prompts) == [0]
    assert_mask(case.prompts[0], box_mask(5, 5))


def test_perbench_mcq(root):
    folder = _perbench(root, "mcq", _mcq(), _mcq("Which one? (A) cup (B) lid", "lid"))
    cases = read_perbench(folder, "mcq").cases
    assert [(case.id, case.question, case.reference, case.reply) for case in cases] == [
        ("mcq/0/0", QUESTION, "B", "blue"),
        ("mcq/1/0", "<Prompt0> Which one? (A) cup (B) lid", "B", "lid"),
    ]
    assert_mask(cases[0].prompts[0], box_mask(5, 5))


@pytest.mark.parametrize("tag", ["<object>", "<region>", "<region1>", "<obj0>", "<region 1>", "<Prompt3>"])
def test_the_one_region_of_an_mcq_is_prompt_0_whatever_its_name(root, tag):
    folder = _perbench(root, "mcq", _mcq(QUESTION.replace("<Prompt0>", tag) + f" like {tag}"))
    assert read_perbench(folder, "mcq").cases[0].question == QUESTION + " like <Prompt0>"


def test_perbench_vres_tags_become_prompts_and_masks_by_order_of_mention(root):
    tags = ("<obj1>", "<obj10>", "<obj2>", "<obj3>")
    entry = _vres("Between <obj10> and <obj2>, not <obj10>?", "They are <obj3> and <obj1>, near <obj2>.", tags)
    (case,) = read_perbench(_perbench(root, "vtres", entry), "vtres").cases
    assert case.question == "Between <Prompt0> and <Prompt1>, not <Prompt0>?"
    assert case.reply == "They are [SEG] and [SEG], near <Prompt1>."
    at = {tag: box_mask(5 * i, 0) for i, tag in enumerate(tags)}
    for rle, tag in zip([*case.prompts.values(), *case.masks], ("<obj10>", "<obj2>", "<obj3>", "<obj1>"), strict=True):
        assert_mask(rle, at[tag])
    for rle, tag in zip(case.reference, ("<obj1>", "<obj3>"), strict=True):  # scored in the order of the file
        assert_mask(rle, at[tag])
    assert list(case.prompts) == [0, 1] and case.id == "vtres/0"


def test_vres_tags_without_brackets_are_whole_words(root):
    entry = _vres("What is near obj1 and obj10?", "It is obj2. obj2 is red.", ("obj1", "obj10", "obj2"))
    (case,) = read_perbench(_perbench(root, "vtres", entry), "vtres").cases
    assert case.question == "What is near <Prompt0> and <Prompt1>?" and case.reply == "It is [SEG]. [SEG] is red."
    assert len(case.reference) == 1 and case.masks == case.reference * 2
    entry = _vres("What is near obj_1, not obj_10 or myobj_1?", "It is obj_2.", ("obj_1", "obj_2"))
    (case,) = read_perbench(_perbench(root, "vtres", entry), "vtres").cases
    assert case.question == "What is near <Prompt0>, not obj_10 or myobj_1?"


def test_perbench_training_samples_are_the_cases_of_an_image(root):
    other = box_rle(10, 10)
    _perbench(root, "mcq", _mcq(), _mcq(region=other), _mcq(answer="(C)"), _mcq(image="1.jpg"))
    source = open_named(root, "perbench_mcq")
    assert [source.key(i) for i in range(len(source))] == ["perbench_train/mcq/0/0", "perbench_train/mcq/3/0"]
    sample = draw_sample(source)
    assert Counter(turn.answer for turn in sample.turns) == {"blue": 2, "green": 1}
    assert len(sample.prompts) == 2 and all(rle in sample.prompts.values() for rle in (other, box_rle(5, 5)))
    first = next(t for t in sample.turns if t.answer == "green")
    assert_mask(sample.prompts[prompt_names(first.question)[0]], box_mask(5, 5))
    _perbench(
        root,
        "vtres",
        _vres(),
        _vres("Segment <obj0> again.", "<obj2> it is.", ("<obj0>", "<x>", "<obj2>"))
        | {"segmentations": {"<obj0>": box_rle(20, 0), "<obj2>": box_rle(25, 0)}},
    )
    sample = draw_sample(open_named(root, "perbench_vtres"))
    assert {t.answer for t in sample.turns} == {"It is [SEG].", "[SEG] it is."} and len(sample.prompts) == 2
    for k, (turn, mask) in enumerate(zip(sample.turns, sample.masks, strict=True)):
        anchor, target = ((0, 5), (20, 25))["again" in turn.question]
        assert_mask(mask, box_mask(target, 0))
        assert_mask(sample.prompts[k], box_mask(anchor, 0))
    _perbench(root, "caption", _captioned("zero", "one"))
    asked = {
        t.question[:12]
        for seed in range(40)
        for t in draw_sample(open_named(root, "perbench_caption"), seed=seed).turns
    }
    assert asked == {about("<Prompt0>", template)[:12] for template in DESCRIBE}


def test_bad_perbench_entries_are_listed(root):
    two_sizes = _vres()
    two_sizes["segmentations"]["<obj1>"] = dict(encode_mask(np.ones((3, 3), dtype=bool)))
    sixteen = tuple(f"<o{i}>" for i in range(17))
    bad = {
        "mcq": {
            "0: its question has no options; they are written": _mcq("What is it?"),
            "0: its answer 'E' is not one of the options A, B, C, D": _mcq(answer="E"),
            "0: its answer 'B. red' is not one of the options": _mcq(answer="B. red"),
            "0: its question names ['<a>', '<b>']; a multiple": _mcq("<a> or <b>? A. x B. y"),
            "0: its mask has no pixel": _mcq(region=box_rle(0, 0, side=0)),
            "0: [] is no RLE": _mcq() | {"mcqs": [{"object": [], "question": QUESTION, "answer": "B"}]},
            ": it has no question": _mcq() | {"mcqs": []},
            ": no image 'x.jpg' in ": _mcq(image="x.jpg"),
        },
        "vtres": {
            ": <obj2> is named, but has no segmentation": _vres("Segment it, <obj0>, not <obj2>."),
            ": <obj3> is named, but has no segmentation": _vres(answer="It is <obj1>, not <obj3>."),
            ": the segmentations ['<obj2>'] are named neither": _vres(tags=("<obj0>", "<obj1>", "<obj2>")),
            ": its answer names no segmentation that": _vres(answer="It is <obj0>.", tags=("<obj0>",)),
            ": its answer contains [SEG]": _vres(answer="It is <obj1>. [SEG]"),
            ": its segmentations are of several sizes": two_sizes,
            ": its question names 16 regions, at most 15": _vres(" ".join(sixteen[:16]), sixteen[16], sixteen),
            ": its 'segmentations' is []; expected dict": _vres() | {"segmentations": []},
            ": it has no 'question'": {"image_name": "0.jpg"},
        },
        "caption": {
            "0: its mask has no pixel": {
                "image_name": "0.jpg",
                "object_annotations": [
                    {"segmentation": box_rle(0, 0, side=0), "caption": "x"},
                    {"segmentation": box_rle(0, 0), "caption": "y"},
                ],
            },
            "0: its 'caption' is empty": _captioned("", "good"),
        },
    }
    good = {"mcq": _mcq(), "vtres": _vres(), "caption": _captioned("good")}
    for task, entries in bad.items():
        read = read_perbench(_perbench(root, task, *entries.values(), good[task]), task)
        assert read.cases[-1].id.startswith(f"{task}/{len(entries)}")
        problems = sorted(read.problems, key=lambda line: int(re.match(rf"perbench_train/{task}/(\d+)", line)[1]))
        assert len(problems) == len(entries)
        for number, (problem, message) in enumerate(zip(problems, entries, strict=True)):
            slash = "" if message.startswith(":") else "/"
            assert f"perbench_train/{task}/{number}{slash}{message}" in problem, problem


# --- multiple choice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question, options",
    [
        ("Which?\nA. red\nB. blue", {"A": "red", "B": "blue"}),
        ("Which?\n A) red one \n(B) blue, and dark\nC. no", {"A": "red one", "B": "blue, and dark", "C": "no"}),
        ("Which? A. red B. blue C. green D. black", {"A": "red", "B": "blue", "C": "green", "D": "black"}),
        ("Which? (A) red, (B) blue; (C) green", {"A": "red", "B": "blue", "C": "green"}),
        ("Which? A) red\nB) blue", {"A": "red", "B": "blue"}),
        ("Which?\nA. red\nB. blue\nSelect a correct choice.", {"A": "red", "B": "blue"}),
        ("Does it have vitamin A. or B.? What is it?\nA. cup\nB. lid\nC. ink", {"A": "cup", "B": "lid", "C": "ink"}),
        ("A. B. Smith wrote it. A. yes B. no", {"A": "yes", "B": "no"}),
        ("Is it made in the U.S.A.? A. yes B. no", {"A": "yes", "B": "no"}),
        ("Which?\nA. red B. blue\nC. green D. black", {"A": "red", "B": "blue", "C": "green", "D": "black"}),
        ("Which?\nA. vitamin A.\nB. vitamin C.", {"A": "vitamin A.", "B": "vitamin C."}),
        ("Where? A. here B. in D.C. C. there", {"A": "here", "B": "in D.C.", "C": "there"}),
        ("How much? A. 5 MB. B. 6 GB.", {"A": "5 MB.", "B": "6 GB."}),
        ("Which?(A)red(B)blue", {"A": "red", "B": "blue"}),
        ("What is it?", {}),
        ("Plan A. only", {}),
        ("Which?\nA.\nB. blue", {}),
        ("Which?\nB. red\nC. blue", {}),
    ],
)
def test_options(question, options):
    assert parse_options(question) == options


def test_the_stated_letter():
    options = {"A": "a red mug", "B": "blue", "C": "B"}
    for answer in ("B", "b", "(B)", "B.", "B)", " B. blue ", "(B) Blue", "blue"):
        assert stated_letter(answer, options) == "B", answer
    assert stated_letter("A red mug", options) == "A" and stated_letter("C. B", options) == "C"
    assert [stated_letter(answer, options) for answer in ("D", "", "A. blue", "bluee")] == [None] * 4


# --- files that cannot be read at all -------------------------------------------------------------------------------

FILES = {
    "osprey_short_form": "osprey/osprey_short_form.json",
    "osprey_conversation": "osprey/osprey_conversation.json",
    "osprey_detail_description": "osprey/osprey_detail_description.json",
    "osprey_part_level": "osprey/osprey_part_level.json",
    "osprey_lvis_positive_negative": "osprey/osprey_lvis_positive_negative.json",
    "pix2cap_caption": CAPTION_FILE,
    "pix2cap_segment": CAPTION_FILE,
    "sam_captions": "sam_captions/train.json",
    "perbench_caption": "perbench_train/STBench_Detailed_Caption.json",
    "perbench_mcq": "perbench_train/STBench_MCQ.json",
    "perbench_vtres": "perbench_train/STBench_VRES.json",
    "panoptic_category": CATEGORY_FILE,
    "llava": "llava/train.json",
}


@pytest.mark.parametrize("source, file", FILES.items(), ids=FILES)
def test_a_missing_a_misshapen_and_an_unusable_file_are_explained(root, source, file):
    with pytest.raises(DatasetError, match=f"no file {root}/{re.escape(file)}"):
        open_named(root, source)
    panoptic = source.startswith(("panoptic", "pix2cap"))
    write_json(root / file, [] if panoptic else {"annotations": []})
    expected = "is not a COCO panoptic file: no" if panoptic else "holds a dict; expected a list of entries"
    with pytest.raises(DatasetError, match=f"{re.escape(file)} {expected}"):
        open_named(root, source)
    write_json(root / file, {"annotations": [{"a": 1}], "categories": []} if panoptic else [{"a": 1}])
    with pytest.raises(DatasetError, match=f"nothing of .*{re.escape(file)} can be used; first: .*0: it has no '"):
        open_named(root, source)


def test_all_names_are_known_and_the_train_only_ones_have_no_other_split(root):
    grounded = ("grand_f", "open_psg", "refcocog_gcg", "flickr_gcg", "muse", "reason_seg", "choices", "shards")
    classes = ("coco_instance", "concepts", "coco_panoptic_segments", "coco_semantic")
    classes += ("reason_seg_explained", "refcocog_mdetr_captions", "llava_mix665k")
    classes += ("ade20k", "coco_stuff", "mapillary", "paco_lvis", "pascal_part")
    assert {record.name for record in RECORDS} == {
        "refcoco",
        "refcoco+",
        "refcocog",
        "grefcoco",
        *FILES,
        *grounded,
        *classes,
    } | {f"{name}_captions" for name in ("refcoco", "refcoco+", "refcocog")} | {"jsonl", "hf", "image_text", "text"}
    with pytest.raises(ConfigError, match="unknown source 'x'; known: refcoco, .*osprey_short_form.*llava"):
        open_named(root, "x")
    for name in ("osprey_part_level", "perbench_mcq"):
        with pytest.raises(ConfigError, match=f"source '{name}' has only the split 'train', got 'val'"):
            open_named(root, name, "val")
    with pytest.raises(DatasetError, match="no dataset refcocog under "):
        open_named(root, "refcocog_captions")


# --- real samples ---------------------------------------------------------------------------------------------------


def test_the_real_panoptic_sample(real_data):
    root = real_data / "panoptic_sample"
    values = json.loads((root / "annotations/panoptic_train2017.json").read_text())
    names = coco_panoptic._class_names({c["id"]: c["name"] for c in values["categories"]})
    source = open_named(root, "panoptic_category", count=15)
    assert len(source) == 2 and source.problems == ["panoptic_category/train: 3 crowd segments are left out"]
    for index, annotation in enumerate(values["annotations"]):
        png = np.asarray(Image.open(root / "annotations/panoptic_train2017" / annotation["file_name"])).astype(int)
        ids = png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2]
        by_area = {s["area"]: s for s in annotation["segments_info"] if not s["iscrowd"]}
        sample = draw_sample(source, index, seed=1)
        with Image.open(sample.image) as image:
            assert image.size[::-1] == ids.shape
        assert len(sample.turns) == 15
        for k, region in sample.prompts.items():
            area = int(coco_mask.area({"size": region["size"], "counts": region["counts"].encode()}))
            assert_mask(region, ids == by_area[area]["id"])
            question, answer = sample.turns[k].question, sample.turns[k].answer
            offered = re.search(r": ([^:]*)[.?]$", question)[1].split(", ")
            name = names[by_area[area]["category_id"]]
            assert answer == (name if name in offered else "others") and len(set(offered)) == 4


def test_the_real_classes_keep_133_names(real_data):
    values = json.loads((real_data / "panoptic_sample/annotations/panoptic_train2017.json").read_text())
    names = coco_panoptic._class_names({c["id"]: c["name"] for c in values["categories"]})
    assert len(set(names.values())) == 133 and {"wall", "tree", "door", "window", "sky"} <= set(names.values())
    assert not any(name.endswith(("merged", "other", "stuff")) for name in names.values())


def test_real_refs_as_region_captions(real_data):
    root = real_data / "mini_coco"
    coco = json.loads((root / "refcoco/instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    masks: dict[int, list[np.ndarray]] = {}
    for a in coco["annotations"]:
        size, segmentation = sizes[a["image_id"]], a["segmentation"]
        rles = coco_mask.frPyObjects(segmentation, *size)
        merged = coco_mask.merge(rles) if isinstance(rles, list) else rles
        masks.setdefault(a["image_id"], []).append(coco_mask.decode(merged).astype(bool))
    source = open_named(root, "refcoco_captions", "val", count=15)
    images = read_refer(root, "refcoco", "val").images
    sentences = {(i.image_id, text) for i in images for referent in i.referents for _, text in referent.sentences}
    assert source.problems == [] and len(source) == len(images) > 0
    for index in range(len(source)):
        sample = draw_sample(source, index)
        image_id = int(sample.key.rpartition("=")[2])
        assert all((image_id, turn.answer) in sentences for turn in sample.turns)
        for region in sample.prompts.values():
            assert area_px(region) and any(np.array_equal(decode_mask(region), mask) for mask in masks[image_id])
