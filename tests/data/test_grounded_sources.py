"""The readers of answers with several masks: GCG, MUSE, ReasonSeg, COCO instances and panoptic segments.

Every fixture of the first part is written here in the format of the real file; the second part reads those of `scenes`
and checks what they say on the masks, by code that shares nothing with the generator but the words.
"""

import json
import re

import numpy as np
import pytest
from opencv_rasters import OPENCV
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
    open_named,
    write_images,
    write_json,
)

from pixel_sail import scenes
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.sources import RECORDS, gcg
from pixel_sail.data.sources.coco_instance import MAX_OBJECTS
from pixel_sail.data.sources.grounded import find_phrase, tag
from pixel_sail.data.sources.reason_seg import read_reason_seg, target_and_ignored
from pixel_sail.data.templates import ANSWERS_SEVERAL, GROUNDED_CAPTION, QUESTIONS, QUESTIONS_EACH, QUESTIONS_REASON
from pixel_sail.evaluate.referring import open_image
from pixel_sail.evaluate.runner import open_benchmark
from pixel_sail.scenes.outline import coco_polygons, labelme_polygons
from pixel_sail.types import BadSample, NoPixels

GCG = "GranDf/annotations/train"


@pytest.fixture
def root(tmp_path):
    """A data root with images 0.jpg to 3.jpg in train2017 and nothing else."""
    write_images(tmp_path / "images/train2017", *(f"{i}.jpg" for i in range(4)))
    return tmp_path


def _read(root, name, split="train"):
    problems = []
    return gcg.read_gcg(root, name, split, problems), problems


# --- grounded captions ----------------------------------------------------------------------------------------------


def _entry(caption, groundings, **changes):
    masks = {phrase: {"token_positives": span, "rle_masks": rles} for phrase, (span, rles) in groundings.items()}
    entry = {"file_name": "0.jpg", "image_id": 5, "height": SIZE[0], "width": SIZE[1]}
    return entry | {"caption": caption, "groundings": masks} | changes


def test_phrases_are_tagged_in_place():
    assert tag("A cat on a mat.", [(0, 5), (9, 14)]) == "<p> A cat </p> [SEG] on <p> a mat </p> [SEG]."
    assert tag("A cat.", []) == "A cat."


def test_a_phrase_is_found_as_whole_words_nearest_to_its_place():
    caption = "A woman and a man, and a Man"
    assert find_phrase(caption, "man") == (14, 17) and find_phrase(caption, "man", 20) == (25, 28)
    assert find_phrase(caption, "ma") is None and find_phrase(caption, "") is None
    assert find_phrase("Is it (a+b)?", "(a+b)") == (6, 11)


@pytest.mark.parametrize(
    ("name", "file"), [("grand_f", "GranDf_HA_GCG_train.json"), ("open_psg", "OpenPsgGCG_train.json")]
)
def test_groundings_become_phrases_with_masks_in_the_order_of_the_caption(root, name, file):
    caption = "Two cats near a red mat."
    groundings = {"a red mat": ([14, 23], [box_rle(20, 5)]), "Two cats": ([0, 8], [box_rle(0, 0), box_rle(5, 0)])}
    quoted = {
        "a red mat": ([14, 23], [box_rle(20, 5)]),
        "two cats": ([1, 9], [box_rle(0, 0)]),
    }  # positions as in the file
    write_json(root / GCG / file, [_entry(caption, groundings), _entry(f'"{caption}"', quoted)])
    source = open_named(root, name)
    assert source.problems == [] and len(source) == 2
    sample = draw_sample(source)
    (turn,) = sample.turns
    assert turn.question in GROUNDED_CAPTION
    assert turn.answer == "<p> Two cats </p> [SEG] near <p> a red mat </p> [SEG]."
    assert_mask(sample.masks[0], box_mask(0, 0) | box_mask(5, 0))  # several masks of a phrase are united
    assert_mask(sample.masks[1], box_mask(20, 5))
    assert sample.key == f"{name}/train/0" and sample.image == root / "images/train2017/0.jpg"
    assert draw_sample(source, 1).turns[0].answer == turn.answer
    asked = {source.sample(0, np.random.default_rng(seed)).turns[0].question for seed in range(30)}
    assert asked == set(GROUNDED_CAPTION)


def test_overlapping_phrases_are_trimmed_and_nothing_goes_silently(root):
    caption = "A man with a hat on a horse."
    groundings = {
        "A man with a hat on a horse": ([0, 27], [box_rle(0, 0)]),
        "a hat": ([11, 16], [box_rle(5, 0)]),
        "a hat on": ([11, 19], [box_rle(10, 0)]),
        "a zebra": ([-1, -1], [box_rle(15, 0)]),
        "a horse": ([20, 27], []),
    }
    write_json(root / GCG / "OpenPsgGCG_train.json", [_entry(caption, groundings), _entry("Two.", {"a": ([0, 1], [])})])
    source = open_named(root, "open_psg")
    sample = draw_sample(source)
    assert sample.turns[0].answer == "<p> A man with </p> [SEG] <p> a hat on </p> [SEG] a horse."
    assert_mask(sample.masks[1], box_mask(10, 0))
    assert source.problems == [
        "open_psg/train/0: the phrase 'a horse' has no mask",
        "open_psg/train/0: the phrase 'a zebra' is not in its caption",
        "open_psg/train/0: overlapping phrases leave no word of 'a hat'",
        "open_psg/train/1: the phrase 'a' has no mask",
        "open_psg/train/1: no phrase of its caption has a mask",
    ]


def test_phrases_of_refcocog_are_looked_for_in_the_caption(root):
    refs = [
        {"sentence": "the mat", "bbox": [20, 5, 5, 5], "segmentation": box_polygon(20, 5)},
        {"sentence": "a cat on the mat", "bbox": [0, 0, 5, 5], "segmentation": box_polygon(0, 0)},
        {"sentence": "the mat", "bbox": [25, 5, 5, 5], "segmentation": box_polygon(25, 5)},
        {"sentence": "a dog", "bbox": [0, 5, 5, 5], "segmentation": box_polygon(0, 5)},
    ]
    values = {"img_file_name": "1.jpg", "caption": "There is a cat on the mat.", "refs": refs}
    write_json(root / GCG / "RefCOCOg_GCG_train.json", [{"77": values}])
    source = open_named(root, "refcocog_gcg")
    sample = draw_sample(source)  # the size is not in the file: it is that of the image
    assert sample.turns[0].answer == "There is <p> a cat on </p> [SEG] <p> the mat </p> [SEG]."
    assert_mask(sample.masks[0], box_mask(0, 0))
    assert_mask(sample.masks[1], box_mask(20, 5) | box_mask(25, 5))
    assert source.problems == ["refcocog_gcg/train/0: the phrase 'a dog' is not in its caption"]


def test_flickr_annotations_of_one_phrase_are_united(root):
    (root / "images/flickr30k").mkdir()
    (root / "images/train2017/2.jpg").rename(root / "images/flickr30k/99.jpg")
    image = {"id": 3, "file_name": "99.jpg", "height": SIZE[0], "width": SIZE[1], "caption": " Two men by a car ."}
    annotations = [
        {"image_id": 3, "tokens_positive": [[1, 8]], "sam_mask": box_rle(0, 0)},
        {"image_id": 3, "tokens_positive": [[1, 8]], "sam_mask": box_rle(10, 0)},
        {"image_id": 3, "tokens_positive": [[12, 17]], "sam_mask": box_rle(20, 0)},
        {"image_id": 3, "tokens_positive": [[12, 17]], "sam_mask": box_rle(30, 0), "ignore": 1},
        {"image_id": 3, "tokens_positive": [[12, 99]], "sam_mask": box_rle(30, 0)},
    ]
    write_json(root / GCG / "flickr_mergedGT_GCG_val.json", {"images": [image], "annotations": annotations})
    source = open_named(root, "flickr_gcg", "val")
    sample = draw_sample(source)
    assert sample.turns[0].answer == "<p> Two men </p> [SEG] by <p> a car </p> [SEG] ."
    assert_mask(sample.masks[0], box_mask(0, 0) | box_mask(10, 0))
    assert_mask(sample.masks[1], box_mask(20, 0))
    assert sample.key == "flickr_gcg/val/image=3"
    assert source.problems == [
        "flickr_gcg/val: 1 annotations of flickr_mergedGT_GCG_val.json are marked to be ignored and left out",
        "flickr_gcg/val/image=3: the phrase '[[12, 99]]' is not in its caption",
    ]


def test_grand_f_is_held_out_in_two_files(root):
    (root / "GranDf_HA_images/val_test").mkdir(parents=True)
    (root / "images/train2017/3.jpg").rename(root / "GranDf_HA_images/val_test/sa_7.jpg")
    known = {"images": [{"id": "sa_7"}, {"id": "sa_8"}]}
    captions = [
        {"image_id": "sa_7", "caption": "A cup and a cup.", "labels": ["A cup", "a cup"]},
        {"image_id": "sa_8", "caption": "A cup.", "labels": ["A cup"]},
    ]
    masks = [{"image_id": "sa_7", "segmentation": box_rle(x, 0)} for x in (0, 10)]
    folder = root / "GranDf/annotations/val_test"
    write_json(folder / "val_gcg_coco_caption_gt.json", known | {"annotations": captions})
    write_json(folder / "val_gcg_coco_mask_gt.json", known | {"annotations": masks})
    source = open_named(root, "grand_f", "val")
    sample = draw_sample(source)
    assert sample.turns[0].answer == "<p> A cup </p> [SEG] and <p> a cup </p> [SEG]."
    assert_mask(sample.masks[1], box_mask(10, 0))
    assert len(source) == 1 and "grand_f/val/image=sa_8: 1 phrases in " in source.problems[0]
    with pytest.raises(DatasetError, match="open_psg has the splits train, val, got 'test'"):
        open_named(root, "open_psg", "test")


def test_bad_captions_are_listed(root):
    good = _entry("A cat.", {"A cat": ([0, 5], [box_rle(0, 0)])})
    bad = {
        ": the caption contains <p>": _entry("A <p> cat", {}),
        ": the text contains [SEG]": _entry("A [SEG]", {}),
        ": its 'caption' is empty": _entry('""', {}),
        ": the phrase 'a': the positions [0] are not": _entry(
            "a cat", {"a": ([0], [box_rle(0, 0)]), "cat": ([2, 5], [box_rle(0, 0)])}
        ),
        ": no image 'gone.jpg'": good | {"file_name": "gone.jpg"},
        ": it has no 'groundings'": {"caption": "a"},
    }
    write_json(root / GCG / "OpenPsgGCG_train.json", [*bad.values(), good])
    source = open_named(root, "open_psg")
    assert len(source) == 2 and len(source.problems) == len(bad)  # a phrase without positions does not take the image
    for number, (problem, message) in enumerate(zip(source.problems, bad, strict=True)):
        assert problem.startswith(f"open_psg/train/{number}{message}"), problem
    torn = _entry("A cat.", {"A cat": ([0, 5], [box_rle(0, 0) | {"counts": "0"}])})
    write_json(root / GCG / "OpenPsgGCG_train.json", [torn])
    with pytest.raises(BadSample, match="^open_psg/train/0: the mask of 'A cat'.*the run lengths"):
        draw_sample(open_named(root, "open_psg"))


# --- MUSE -----------------------------------------------------------------------------------------------------------


def _muse(questions, answers, texts, **changes):
    entry = {"file_name": "train2017/0.jpg", "height": SIZE[0], "width": SIZE[1], "ann_list": []}
    return entry | {"questions": questions, "answers": answers, "text_answers": texts} | changes


def test_muse_answers_have_a_mask_for_each_object(root):
    cup = {"segmentation": box_polygon(0, 0), "category_name": "cup", "rephrased_name": "red cup"}
    lid = {"segmentation": box_rle(10, 0), "category_name": "lid"}
    pot = {"segmentation": box_runs(20, 0), "category_name": "pot"}
    entries = [
        _muse(["What to drink from?", "What else?"], [[cup], [cup, lid, pot]], ["The cup {seg}, I say.", None]),
        _muse(["Which?"], [[lid, cup]], ["{seg} and {seg}"]) | {"coco_url": "http://x.org/train2017/1.jpg"},
    ]
    del entries[1]["file_name"]
    write_json(root / "muse/MUSE_train.json", entries)
    source = open_named(root, "muse")
    sample = draw_sample(source)
    answers = {turn.question: turn.answer for turn in sample.turns}
    assert answers == {
        "What to drink from?": "The cup [SEG], I say.",
        "What else?": "red cup [SEG], lid [SEG] and pot [SEG].",
    }
    first = [turn.question for turn in sample.turns].index("What else?")
    masks = sample.masks[first : first + 3]
    for mask, x in zip(masks, (0, 10, 20), strict=True):
        assert_mask(mask, box_mask(x, 0))
    other = draw_sample(source, 1)
    assert other.image.name == "1.jpg" and other.turns[0].answer == "[SEG] and [SEG]"
    assert_mask(other.masks[0], box_mask(10, 0))
    assert len(draw_sample(open_named(root, "muse", count=1)).turns) == 1


def test_bad_muse_entries_are_listed(root):
    cup = {"segmentation": box_rle(0, 0), "category_name": "cup"}
    entry = _muse(["a", "b", "c", "d"], [[cup], [cup], [], [cup]], ["{seg}", "{seg} {seg}", None, "[SEG] {seg}"])
    none = _muse(["a"], [[{"segmentation": box_rle(0, 0)}]], [None])
    short = _muse(["a", "b"], [[cup]], [None])
    write_json(root / "muse/MUSE_val.json", [entry, none, short])
    source = open_named(root, "muse", "val")
    expected = [
        "0/1: its answer '{seg} {seg}' needs a {seg} for each of 1 objects",
        "0/2: it needs a question and a list of the objects that answer it",
        "0/3: the text contains [SEG]",
        "1/0: it has no 'category_name'",
        "1: no question is left",
        "2: 2 questions, 1 answers, 1 text_answers",
    ]
    assert len(source) == 1 and len(source.problems) == len(expected)
    for problem, start in zip(source.problems, expected, strict=True):
        assert problem.startswith(f"muse/val/{start}"), problem


# --- ReasonSeg ------------------------------------------------------------------------------------------------------


def _square(x, y, side):
    return [[x, y], [x + side - 1, y], [x + side - 1, y + side - 1], [x, y + side - 1]]


def _reason(root, stem, shapes, text=("What is it?",), sentence=True, split="train", encoding="utf-8"):
    values = {"text": list(text), "is_sentence": sentence}
    values["shapes"] = [{"label": label, "points": points} for label, points in shapes]
    folder = root / "reason_seg/ReasonSeg" / split
    write_images(folder, f"{stem}.jpg")
    (folder / f"{stem}.json").write_text(json.dumps(values, ensure_ascii=False), encoding=encoding)


def test_polygons_are_filled_largest_first_and_flags_mean_nothing(root):
    shapes = [
        ("ignore_part", _square(5, 5, 3)),  # the smallest: it lies over the others, though it comes first
        ("target", _square(0, 0, 10)),
        ("flag", _square(0, 0, 30)),
        ("target", _square(20.9, 0.2, 5)),  # coordinates are cut to whole pixels
        ("ignore", _square(20, 10, 8)),
    ]
    _reason(root, "a", shapes, ("What is it?", "Où est-ce ?"), encoding="cp1252")
    source = open_named(root, "reason_seg")
    sample = draw_sample(source)
    assert {turn.question for turn in sample.turns} <= {
        template.replace("{expression}", text)
        for text in ("What is it?", "Où est-ce ?")
        for template in QUESTIONS_REASON
    }
    expected = box_mask(0, 0, 10) | box_mask(20, 0, 5)
    expected[5:8, 5:8] = False
    for mask in sample.masks:
        assert_mask(mask, expected)
    (image,) = read_reason_seg(root, "train", [])
    ignored = np.zeros(SIZE, dtype=bool)
    ignored[5:8, 5:8] = ignored[10:18, 20:28] = True
    assert_mask(target_and_ignored(image)[1], ignored)


def test_polygons_have_their_outline_as_in_lisas_reader(root):
    """The rasters are those of OpenCV's polylines and fillPoly."""
    for number, corners in enumerate(OPENCV):
        _reason(root, f"{number}", [("target", [list(corner) for corner in corners]), ("flag", [[0, 0]])])
    images = read_reason_seg(root, "train", problems := [])
    assert len(images) + len(problems) == len(OPENCV)
    for image in images:
        rows = OPENCV[tuple(image.shapes[0][1])]
        height, width = len(rows), len(rows[0])
        Image.new("RGB", (width, height)).save(image.path)
        target, _ = target_and_ignored(image)
        assert_mask(target, np.array([[pixel == "#" for pixel in row] for row in rows]))


@pytest.mark.parametrize(("orientation", "shown_hw"), [(1, (30, 40)), (3, (30, 40)), (6, (40, 30)), (8, (40, 30))])
def test_polygons_follow_the_image_as_it_is_shown(root, orientation, shown_hw):
    """A red square on the shown image, found at its polygon in the pixels of the sample."""
    _reason(root, "a", [("target", _square(4, 2, 8))])
    shown = np.zeros((*shown_hw, 3), dtype=np.uint8)
    shown[2:10, 4:12, 0] = 255
    back = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarter turns to the left that EXIF takes back
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = root / "reason_seg/ReasonSeg/train/a.jpg"
    Image.fromarray(np.rot90(shown, back)).save(path, exif=exif, quality=95, subsampling=0)
    sample = draw_sample(open_named(root, "reason_seg"))
    pixels = np.asarray(load_image(sample.image)).astype(int)
    assert pixels.shape[:2] == shown_hw == tuple(sample.masks[0]["size"])
    assert_mask(sample.masks[0], pixels[..., 0] > 128)
    case, *_ = open_benchmark("reasonseg:train", root).cases
    assert case.size_hw == shown_hw
    assert_mask(case.mask, np.asarray(open_image(case.image, case.size_hw, orient=True))[..., 0] > 128)


def test_phrases_are_asked_for_as_in_referring_segmentation(root):
    _reason(root, "a", [("target", _square(0, 0, 5))], ["the cup"], sentence=False)
    turn = draw_sample(open_named(root, "reason_seg")).turns[0]
    assert turn.question in {template.replace("{expression}", "the cup") for template in QUESTIONS}


def test_bad_reason_files_are_listed(root):
    _reason(root, "a", [("target", _square(0, 0, 5))])
    _reason(root, "b", [("target", [[0, 0], [1, 1]])])
    _reason(root, "c", [], text=[" "])
    _reason(root, "d", [])
    folder = root / "reason_seg/ReasonSeg/train"
    (folder / "d.jpg").unlink()
    (folder / "e.json").write_text("{")
    _reason(root, "f", [("ignore", _square(0, 0, 5))])
    _reason(root, "g", [("ignore", _square(0, 0, 5)), ("target", _square(0, 0, 5))])
    _reason(root, "h", [("target", _square(0, 0, 5)), ("target", [[9, 9], [20, 20]])])
    _reason(root, "i", [("target", [["0", "0"], ["9", "0"], ["9", "9"]])])
    source = open_named(root, "reason_seg")
    assert [re.sub(r": .*", "", problem) for problem in source.problems] == [f"reason_seg/train/{c}" for c in "bcdefhi"]
    words = (
        "at least three",
        "'text' is",
        "no image",
        "not valid JSON",
        "none of its shapes",
        "at least three",
        "no polygon",
    )
    for problem, expected in zip(source.problems, words, strict=True):
        assert expected in problem
    with pytest.raises(NoPixels, match="^reason_seg/train/g: no pixel of the image is marked"):
        draw_sample(source, 1)
    assert_mask(draw_sample(source, 2).masks[0], box_mask(0, 0, 5))
    with pytest.raises(DatasetError, match="no folder .*reason_seg/ReasonSeg/val; its splits are train, val, test"):
        open_named(root, "reason_seg", "val")


# --- classes with a mask for each object ----------------------------------------------------------------------------


def _instances(root, annotations):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
    categories = [{"id": 4, "name": "cup"}, {"id": 9, "name": "lid"}]
    numbered = [{"id": i, "iscrowd": 0, **annotation} for i, annotation in enumerate(annotations)]
    write_json(
        root / "annotations/instances_train2017.json",
        {"images": images, "categories": categories, "annotations": numbered},
    )


def test_each_object_of_a_class_has_its_mask_from_left_to_right(root):
    cups = [
        {"image_id": 1, "category_id": 4, "segmentation": segmentation}
        for segmentation in (box_rle(20, 0), box_polygon(0, 5), box_rle(10, 10))
    ]
    lid = {"image_id": 1, "category_id": 9, "segmentation": box_polygon(30, 0)}
    crowd = {"image_id": 2, "category_id": 4, "segmentation": box_runs(0, 0), "iscrowd": 1}
    many = [{"image_id": 2, "category_id": 9, "segmentation": box_rle(0, 0)}] * (MAX_OBJECTS + 1)
    _instances(root, [*cups, lid, crowd, *many])
    source = open_named(root, "coco_instance")
    assert len(source) == 1
    assert source.problems == ["coco_instance/train: 2 classes of an image have a crowd or over 20 objects"]
    wordings = {template.replace("{expression}", name): name for template in QUESTIONS_EACH for name in ("cup", "lid")}
    for seed in range(5):
        sample = draw_sample(source, seed=seed)
        named = [wordings[turn.question] for turn in sample.turns]
        assert sorted(named) == ["cup", "lid"]
        masks = list(sample.masks)
        for name, turn in zip(named, sample.turns, strict=True):
            if name == "lid":
                assert turn.answer.count("[SEG]") == 1
                assert_mask(masks.pop(0), box_mask(30, 0))
                continue
            several = {answer.replace("[SEG]", "[SEG], [SEG] and [SEG]") for answer in ANSWERS_SEVERAL}
            assert turn.answer in several
            for x, y in ((0, 5), (10, 10), (20, 0)):
                assert_mask(masks.pop(0), box_mask(x, y))
    plain = draw_sample(open_named(root, "coco_instance", answers=["[SEG]"]))
    assert {turn.answer for turn in plain.turns} == {"[SEG]", "[SEG], [SEG] and [SEG]"}
    hidden = draw_sample(open_named(root, "coco_instance", hide="text"))
    assert all("cup" not in turn.question and "lid" not in turn.question for turn in hidden.turns)


def test_bad_instances_are_explained(root):
    _instances(root, [{"image_id": 1, "category_id": 4, "segmentation": [[1, 1, 5, 5, 6]]}])
    with pytest.raises(BadSample, match="^coco_instance/train/image=1: annotation 0, polygon 0: .* is no polygon"):
        draw_sample(open_named(root, "coco_instance"))
    _instances(root, [{"image_id": "1", "category_id": 4, "segmentation": box_rle(0, 0)}])
    with pytest.raises(
        DatasetError, match="nothing of .*instances_train2017.json can be used; first: .*image '1' is not in"
    ):
        open_named(root, "coco_instance")
    _instances(root, [{"image_id": 1, "category_id": 5, "segmentation": box_rle(0, 0)}])
    with pytest.raises(DatasetError, match="instances_train2017.json is not a COCO instances file: no 5"):
        open_named(root, "coco_instance")
    with pytest.raises(DatasetError, match="no file .*annotations/instances_val2017.json"):
        open_named(root, "coco_instance", "val")


def test_instances_without_pixels_are_left_out_and_the_others_stay(root):
    degenerate = [[1, 1, 5, 5]], [], [[3, 3, 3, 3, 3, 3]], [[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]], box_rle(0, 0, side=0)
    cups = [{"image_id": 1, "category_id": 4, "segmentation": s} for s in (box_rle(0, 0), *degenerate)]
    piece = {"image_id": 1, "category_id": 9, "segmentation": [[1, 1, 2, 2], *box_polygon(10, 10)], "area": 25.0}
    late = {"image_id": 2, "category_id": 9, "segmentation": box_rle(0, 0, side=0), "area": 25}  # a wrong area
    _instances(root, [*cups, piece, late, {"image_id": 2, "category_id": 4, "segmentation": box_rle(5, 5)}])
    source = open_named(root, "coco_instance", answers=["[SEG]"])
    assert [
        re.match("coco_instance/train/image=1: annotation ([0-9]),? ?(polygon 0)?:", p)[1] for p in source.problems
    ] == list("123456")
    sample = draw_sample(source, 0)
    assert sorted(turn.answer for turn in sample.turns) == ["[SEG]", "[SEG]"] and sample.dropped_turns == 0
    sample = draw_sample(source, 1)
    assert [turn.answer for turn in sample.turns] == ["[SEG]"] and sample.dropped_turns == 1
    assert_mask(sample.masks[0], box_mask(5, 5))


def test_two_instances_with_one_id_are_named(root):
    boxes = [{"image_id": 1, "category_id": c, "segmentation": box_rle(x, 0)} for c, x in ((4, 0), (4, 10), (9, 20))]
    _instances(root, boxes)
    path = root / "annotations/instances_train2017.json"
    values = json.loads(path.read_text())
    values["annotations"][1]["id"] = values["annotations"][0]["id"]
    write_json(path, values)
    source = open_named(root, "coco_instance")
    assert source.problems == [
        f"coco_instance/train/image=1: {path} has several annotations with the id 0; 'cup' is left out"
    ]
    assert len(draw_sample(source).turns) == 1
    write_json(path, values | {"categories": [*values["categories"], values["categories"][0] | {"name": "twin"}]})
    with pytest.raises(DatasetError, match="has several categories with one id"):
        open_named(root, "coco_instance")
    write_json(path, values | {"images": values["images"] * 2})
    with pytest.raises(DatasetError, match="image=1: .* has several images with the id 1"):
        open_named(root, "coco_instance")


@pytest.mark.parametrize("height", ["30", -30, 0, 30.5, True, None, float("nan")])
def test_a_size_that_is_no_number_of_pixels_is_named(root, height):
    _instances(root, [{"image_id": n, "category_id": 4, "segmentation": box_rle(0, 0)} for n in (1, 2)])
    path = root / "annotations/instances_train2017.json"
    values = json.loads(path.read_text())
    next(image for image in values["images"] if image["id"] == 1)["height"] = height
    write_json(path, values)
    (problem,) = open_named(root, "coco_instance").problems
    assert problem.startswith("coco_instance/train/image=1: its 'height' is ")


def test_panoptic_segments_one_by_one(root):
    ids = np.zeros((*SIZE, 3), np.uint8)
    boxes = {1: (20, 0), 2: (0, 0), 3: (10, 10), 4: (30, 0)}
    for number, (x, y) in boxes.items():
        ids[y : y + 5, x : x + 5, 0] = number
    folder = root / "annotations/panoptic_train2017"
    folder.mkdir(parents=True)
    Image.fromarray(ids).save(folder / "1.png")
    infos = [{"id": n, "category_id": c, "area": 25, "iscrowd": 0} for n, c in ((1, 4), (2, 4), (3, 7), (4, 9))]
    infos.append({"id": 5, "category_id": 9, "area": 25, "iscrowd": 1})  # so lids are not all there
    categories = [{"id": 4, "name": "cup", "isthing": 1}, {"id": 7, "name": "wall-other-merged", "isthing": 0}]
    categories.append({"id": 9, "name": "lid", "isthing": 1})
    values = {"categories": categories, "images": [{"id": 1, "file_name": "1.jpg"}]}
    values["annotations"] = [{"image_id": 1, "file_name": "1.png", "segments_info": infos}]
    write_json(root / "annotations/panoptic_train2017.json", values)
    source = open_named(root, "coco_panoptic_segments", answers=["[SEG]"])
    assert source.problems[-1] == "coco_panoptic_segments/train: 1 classes of an image have a crowd or over 20 segments"
    sample = draw_sample(source)
    answers = {next(n for n in ("cup", "wall", "lid") if n in turn.question): turn.answer for turn in sample.turns}
    assert answers == {"cup": "[SEG] and [SEG]", "wall": "[SEG]"}
    asked = {turn.answer: turn.question for turn in sample.turns}
    assert asked["[SEG]"] in {template.replace("{expression}", "wall") for template in QUESTIONS}
    assert asked["[SEG] and [SEG]"] in {template.replace("{expression}", "cup") for template in QUESTIONS_EACH}
    cups = sample.masks[:2] if "cup" in sample.turns[0].question else sample.masks[1:]
    assert_mask(cups[0], box_mask(0, 0))
    assert_mask(cups[1], box_mask(20, 0))


@pytest.mark.parametrize("source_name", ["coco_panoptic_segments", "coco_semantic", "panoptic_category"])
def test_panoptic_segments_without_pixels_and_with_one_id(root, source_name):
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[:5, :5, 0] = 1
    folder = root / "annotations/panoptic_train2017"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        Image.fromarray(ids).save(folder / f"{number}.png")
    whole = {"id": 1, "category_id": 4, "area": 25, "iscrowd": 0}
    infos = {1: [whole, whole | {"id": 2, "area": 0}], 2: [whole, whole | {"category_id": 7}]}
    lost = {"id": 2, "category_id": 7, "iscrowd": 0}  # no area: only the PNG can tell
    infos[3] = [whole, lost]
    categories = [{"id": 4, "name": "cup", "isthing": 1}, {"id": 7, "name": "wall", "isthing": 0}]
    values = {"categories": categories, "images": [{"id": i, "file_name": f"{i}.jpg"} for i in infos]}
    values["annotations"] = [{"image_id": i, "file_name": f"{i}.png", "segments_info": infos[i]} for i in infos]
    path = root / "annotations/panoptic_train2017.json"
    write_json(path, values)
    source = open_named(root, source_name)
    assert source.problems == [
        f"{source_name}/train/image=1: segment 2: its area is 0 pixels",
        f"{source_name}/train/image=2: several of its segments have the id 1",
    ]
    assert len(source) == 2 and len(draw_sample(source, 0).turns) == 1
    sample = draw_sample(source, 1)
    assert len(sample.turns) == 1 and sample.dropped_turns == 1
    twice = values | {"annotations": values["annotations"] + values["annotations"][:1]}
    write_json(path, twice)
    assert any("image=1: several annotations have this image" in p for p in open_named(root, source_name).problems)
    write_json(path, values | {"categories": [*categories, categories[0] | {"name": "lid"}]})
    with pytest.raises(DatasetError, match="several categories with one id"):
        open_named(root, source_name)


def test_the_real_panoptic_sample_one_by_one(real_data):
    root = real_data / "panoptic_sample"
    values = json.loads((root / "annotations/panoptic_train2017.json").read_text())
    source = open_named(root, "coco_panoptic_segments", count=50)
    assert len(source) == 2
    for index, annotation in enumerate(values["annotations"]):
        infos = annotation["segments_info"]
        crowds = {info["category_id"] for info in infos if info["iscrowd"]}
        whole = [info for info in infos if info["category_id"] not in crowds]
        sample = draw_sample(source, index)
        assert len(sample.masks) == len(whole) and len(sample.turns) == len({i["category_id"] for i in whole})
        assert sorted(decode_mask(mask).sum() for mask in sample.masks) == sorted(i["area"] for i in whole)


def test_the_real_instances_one_by_one(real_data, tmp_path):
    (tmp_path / "images").symlink_to(real_data / "mini_coco/images")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").symlink_to(real_data / "mini_coco/refcoco/instances.json")
    values = json.loads((tmp_path / "annotations/instances_train2017.json").read_text())
    source = open_named(tmp_path, "coco_instance", count=100)
    assert len(source) > 0.9 * len(values["images"]) and len(source.problems) == 1
    sizes = {image["id"]: (image["height"], image["width"]) for image in values["images"]}
    for index in range(0, len(source), len(source) // 20 + 1):
        sample = draw_sample(source, index)
        annotations = [
            annotation
            for annotation in values["annotations"]
            if annotation["image_id"] == int(sample.key.rpartition("=")[2])
        ]
        crowds = {annotation["category_id"] for annotation in annotations if annotation["iscrowd"]}
        whole = [annotation for annotation in annotations if annotation["category_id"] not in crowds]
        areas = []
        for annotation in whole:
            assert isinstance(annotation["segmentation"], list)  # only crowds are RLEs
            rles = coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
            areas.append(int(coco_mask.area(coco_mask.merge(rles))))
        assert sorted(int(decode_mask(mask).sum()) for mask in sample.masks) == sorted(areas)


# --- outlines -------------------------------------------------------------------------------------------------------


def test_outlines_mean_the_mask_or_are_not_given():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :60]
    disc, ring = np.hypot(x - 30, y - 20) < 15, (np.hypot(x - 30, y - 20) < 15) & (np.hypot(x - 30, y - 20) > 7)
    bar = disc & ((x < 25) | (x > 28))  # two pieces
    for mask in (disc, bar, np.ones((5, 7), bool), disc & (rng.random(disc.shape) > 0.02)):
        polygons = coco_polygons(mask)
        if polygons is not None:
            decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
            np.testing.assert_array_equal(decoded, mask)
    assert len(coco_polygons(disc)) == 1 and len(coco_polygons(bar)) == 2
    assert coco_polygons(ring) is None and coco_polygons(np.zeros((4, 4), bool)) is None
    assert len(labelme_polygons(ring)["ignore"]) == 1 and labelme_polygons(disc)["ignore"] == []
    assert labelme_polygons(rng.random((40, 60)) > 0.5) is None


# --- the fixtures of scenes -----------------------------------------------------------------------------------------

IMAGES, SEED = 75, 5
OTHERS = ("muse", "reason_seg", "coco_instance", "coco_panoptic_segments")
SPLITS = {record.name: record.splits for record in RECORDS if record.name in (*gcg.NAMES, *OTHERS)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("grounded") / "data"
    scenes.generate(out, IMAGES, SEED, 112, workers=1)
    return out


@pytest.fixture(scope="module")
def things(drawn):
    """File name of an image -> its objects: colour, kind, and mask (H, W) bool."""
    known = json.loads((drawn / "scenes.json").read_text())["images"]
    instances = json.loads((drawn / "refcoco/instances.json").read_text())
    masks = {
        annotation["id"]: coco_mask.decode(annotation["segmentation"]).astype(bool)
        for annotation in instances["annotations"]
    }
    return {
        image["file_name"]: [{**thing, "mask": masks[thing["ann_id"]]} for thing in image["objects"]] for image in known
    }


@pytest.fixture(scope="module")
def split_of(drawn):
    return {i["file_name"]: i["split"] for i in json.loads((drawn / "scenes.json").read_text())["images"]}


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in SPLITS for split in SPLITS[name]])
def test_every_fixture_is_read_whole_and_keeps_the_splits(drawn, split_of, name, split):
    source = open_named(drawn, name, split)
    assert len(source) > (0 if split == "test_many" else 2)
    kinds = "is not in its caption|marked to be ignored|overlapping"
    assert not [problem for problem in source.problems if not re.search(kinds, problem)]
    for index in range(len(source)):
        sample = draw_sample(source, index)
        assert all(decode_mask(mask).any() for mask in sample.masks) and sample.masks
        assert (split_of[sample.image.name] == "train") == (split == "train")


def _words(text):
    return re.sub(r"^(?:an?|the) ", "", text.lower()).split()


def _named(words, objects):
    """Indices of what words such as "large plain red mug" or "two red mugs" name: the colour and the kind count."""
    kinds = {"boxes": "box", "leaves": "leaf"}
    kind = [kinds.get(w, w) for w in words]
    return [i for i, o in enumerate(objects) if o["colour"] in words and (o["kind"] in kind or o["kind"] + "s" in kind)]


@pytest.mark.parametrize("name", ["grand_f", "open_psg", "refcocog_gcg", "flickr_gcg"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_phrase_of_a_drawn_caption_means_its_mask_and_no_other(drawn, things, name, split):
    sides = {"to the left of": (1, -1), "to the right of": (1, 1), "above": (0, -1), "below": (0, 1)}
    related = shown = 0
    for image in _read(drawn, name, split)[0]:
        objects, text = things[image.path.name], image.caption
        centres = [np.argwhere(thing["mask"]).mean(axis=0) for thing in objects]
        for phrase in image.phrases:
            assert phrase.span and text[slice(*phrase.span)].lower() == phrase.text.lower()
            head = re.split(" to the | above | below ", phrase.text)[0]
            named = _named(_words(head), objects)
            if phrase.text.startswith("two") or phrase.text.startswith("Two"):
                assert len(named) == 2
            assert named, phrase.text
            size = objects[0]["mask"].shape
            mask = decode_mask(image.mask(phrase, size))
            whole = np.logical_or.reduce([objects[i]["mask"] for i in named])
            if name == "flickr_gcg":  # one annotation an object
                assert not (mask & ~whole).any() and any(np.array_equal(mask, objects[i]["mask"]) for i in named)
            else:
                np.testing.assert_array_equal(mask, whole)
            shown += 1
        pattern = r"(an? [^.,]*?) (?:is )?(to the left of|to the right of|above|below) (an? [^.,]*?)(?=\.|,| and )"
        for first, side, second in re.findall(pattern, text.lower()):
            (i,), (j,) = _named(first.split(), objects), _named(second.split(), objects)
            axis, sign = sides[side]
            assert sign * (centres[i] - centres[j])[axis] > 0, text
            related += 1
    assert shown > 15 and related > 3


def test_the_questions_of_muse_are_answered_by_all_objects_that_fit(drawn, things):
    asked = 0
    for split in ("train", "val"):
        for entry in json.loads((drawn / f"muse/MUSE_{split}.json").read_text()):
            name = entry.get("file_name") or entry["coco_url"].rsplit("/", 1)[-1]
            for question, answer, text in zip(entry["questions"], entry["answers"], entry["text_answers"], strict=True):
                kinds = [target["category_name"] for target in answer]
                colour = re.search(r"that is (\w+)\?", question)
                fitting = [o for o in things[name] if colour and o["colour"] == colour[1]]
                if colour:
                    assert sorted(kinds) == sorted(o["kind"] for o in fitting)
                    assert [k for k in re.findall(r"(\w+) \{seg\}", text)] == kinds
                else:
                    assert text is None and set(kinds) <= ANSWERS_TO[question]
                    assert len(kinds) == sum(o["kind"] in ANSWERS_TO[question] for o in things[name])
                asked += 1
    assert asked > IMAGES
    sizes = {}
    for split in ("val", "test_less", "test_many"):
        entries = json.loads((drawn / f"muse/MUSE_{split}.json").read_text())
        sizes[split] = [len(answer) for entry in entries for answer in entry["answers"]]
    assert max(sizes["test_less"]) <= 3 < min(sizes["test_many"])
    assert sorted(sizes["test_less"] + sizes["test_many"]) == sorted(sizes["val"])


ANSWERS_TO = {
    "What could somebody drink from?": {"mug", "bottle"},
    "What would you need to open a locked door?": {"key"},
    "Where could a tired person sit down?": {"chair"},
    "What keeps the rain off somebody who walks?": {"umbrella"},
    "What would take somebody along a road?": {"car", "bicycle"},
    "Where do people live?": {"house"},
    "What makes a dark room bright?": {"lamp"},
    "What can breathe under water?": {"fish"},
    "What has roots or grows on something that has?": {"tree", "flower"},
    "What helps to reach a high roof?": {"ladder"},
    "What do children kick in a game?": {"ball"},
    "What is worn on a finger?": {"ring"},
    "What flies at the end of a string?": {"kite"},
    "What shows a direction?": {"arrow"},
}


def test_the_polygons_of_reason_seg_are_the_objects_that_are_meant(drawn, things):
    sentences = ignored_px = 0
    for split in SPLITS["reason_seg"]:
        for image in read_reason_seg(drawn, split, []):
            objects = things[image.path.name]
            target, ignored = (decode_mask(rle) for rle in target_and_ignored(image))
            if image.is_sentence:
                kinds = ANSWERS_TO[image.texts[0]]
                true = np.logical_or.reduce([o["mask"] for o in objects if o["kind"] in kinds])
                wrong = (true ^ target) & ~ignored
                assert wrong.sum() <= 0.05 * true.sum(), image.key
                sentences += 1
            ignored_px += ignored.sum()
            original = (drawn / "images/train2014" / image.path.name).read_bytes()
            assert image.path.read_bytes() == original
    assert sentences > 20 and ignored_px > 0


def test_drawn_instances_are_the_masks(drawn, things):
    for split in ("train", "val"):
        data = json.loads((drawn / f"annotations/instances_{split}2017.json").read_text())
        names = {image["id"]: image for image in data["images"]}
        kinds = {c["id"]: c["name"] for c in data["categories"]}
        polygons = 0
        for annotation in data["annotations"]:
            image, seg = names[annotation["image_id"]], annotation["segmentation"]
            polygons += isinstance(seg, list)
            if isinstance(seg, list):
                seg = coco_mask.merge(coco_mask.frPyObjects(seg, image["height"], image["width"]))
            (true,) = (o for o in things[image["file_name"]] if o["ann_id"] == annotation["id"])
            np.testing.assert_array_equal(coco_mask.decode(seg).astype(bool), true["mask"])
            assert kinds[annotation["category_id"]] == true["kind"]
        assert polygons > 0.5 * len(data["annotations"])
