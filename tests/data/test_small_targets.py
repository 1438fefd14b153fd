"""A mask that shows nothing takes its phrase, question or turn with it, never the image, and is listed on reading."""

import pytest
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

from pixel_sail.data import check
from pixel_sail.data.sources.targets import refuse_empty
from pixel_sail.types import BadSample

GCG = "GranDf/annotations/train"
EMPTY = {
    "null": None,
    "a list of nothing": [],
    "smaller than a pixel": [[10.1, 10.1, 10.2, 10.1, 10.2, 10.2, 10.1, 10.2]],
    "two points": [[1, 1, 9, 9]],
    "a degenerate piece": [*box_polygon(0, 0), [1, 1, 9, 9]],
    "outside the image": [[-9, -9, -5, -9, -5, -5, -9, -5]],
    "an RLE of no pixel": box_rle(0, 0, side=0),
    "runs of no pixel": {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]},
}
IDS = list(EMPTY)


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "images/train2017", "0.jpg", "1.jpg")
    return tmp_path


@pytest.mark.parametrize("segmentation", EMPTY.values(), ids=IDS)
def test_what_shows_nothing(segmentation):
    with pytest.raises(BadSample, match="^key(, polygon|: it has no mask|: its mask has no pixel)"):
        refuse_empty(segmentation, SIZE, "key")


def test_what_shows_something_or_is_an_error_of_the_file():
    damaged = ({"size": list(SIZE), "counts": "0"}, {"size": [9, 9]}, {"size": [30, "40"], "counts": "Q3"})
    for segmentation in (box_polygon(0, 0), box_rle(0, 0), box_runs(0, 0), *damaged):
        refuse_empty(segmentation, SIZE, "key")
        refuse_empty(segmentation, None, "key")
    with pytest.raises(BadSample, match="no pixel"):
        refuse_empty(EMPTY["smaller than a pixel"], None, "key")  # whatever the size of the image


def _one_decoded(root, source, problems):
    """The sample; what is left out is listed on reading, so that a run never meets it as a bad sample."""
    opened = open_named(root, source)
    assert len(opened) == 1 and len(opened.problems) == problems, opened.problems
    finding = check.check_source(root, source, "train", 3)
    assert (finding.decoded, finding.errors, len(finding.left_out)) == (1, (), problems)
    return draw_sample(opened)


@pytest.mark.parametrize("bad", EMPTY.values(), ids=IDS)
def test_a_phrase_without_a_mask_leaves_the_other_phrases(root, bad):
    good = {"token_positives": [0, 5], "rle_masks": [box_rle(0, 0), bad]}
    entry = {"file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1], "caption": "A cat on a mat by a dog."}
    entry["groundings"] = {"A cat": good, "a mat": {"token_positives": [9, 14], "rle_masks": [bad]}, "a dog": None}
    write_json(root / GCG / "OpenPsgGCG_train.json", [entry])
    sample = _one_decoded(
        root, "open_psg", problems=4
    )  # a piece of the cat, the piece and the phrase of the mat, the dog
    assert sample.turns[0].answer == "<p> A cat </p> [SEG] on a mat by a dog."
    assert_mask(sample.masks[0], box_mask(0, 0))


@pytest.mark.parametrize("bad", EMPTY.values(), ids=IDS)
def test_a_phrase_of_refcocog_and_flickr_without_a_mask_leaves_the_others(root, bad):
    refs = [
        {"sentence": "a cat", "bbox": [], "segmentation": box_polygon(0, 0)},
        {"sentence": "a mat", "bbox": [], "segmentation": bad},
    ]
    values = {"img_file_name": "0.jpg", "caption": "A cat on a mat.", "refs": refs}
    write_json(root / GCG / "RefCOCOg_GCG_train.json", [{"77": values}])
    if bad != EMPTY["outside the image"]:  # the file has no sizes
        sample = _one_decoded(root, "refcocog_gcg", problems=2)
        assert sample.turns[0].answer == "<p> A cat </p> [SEG] on a mat."
    image = {"id": 3, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1], "caption": "A cat on a mat."}
    annotations = [
        {"image_id": 3, "tokens_positive": [[0, 5]], "sam_mask": box_rle(0, 0)},
        {"image_id": 3, "tokens_positive": [[9, 14]], "sam_mask": bad},
        {"image_id": 3, "tokens_positive": None, "sam_mask": box_rle(0, 0)},
    ]
    write_json(root / GCG / "flickr_mergedGT_GCG_train.json", {"images": [image], "annotations": annotations})
    assert _one_decoded(root, "flickr_gcg", problems=3).turns[0].answer == "<p> A cat </p> [SEG] on a mat."


@pytest.mark.parametrize("bad", EMPTY.values(), ids=IDS)
def test_a_question_without_a_mask_leaves_the_other_questions(root, bad):
    cup, none = ({"segmentation": item, "category_name": "cup"} for item in (box_polygon(0, 0), bad))
    entry = {"file_name": "train2017/0.jpg", "height": SIZE[0], "width": SIZE[1], "ann_list": []}
    entry |= {"questions": ["a?", "b?"], "answers": [[cup], [cup, none]], "text_answers": ["{seg}", None]}
    write_json(root / "muse/MUSE_train.json", [entry])
    assert [turn.question for turn in _one_decoded(root, "muse", problems=1).turns] == ["a?"]


@pytest.mark.parametrize("bad", [EMPTY[name] for name in IDS if isinstance(EMPTY[name], dict)])
def test_an_object_without_a_mask_leaves_the_other_objects(root, bad):
    objects = [{"segmentation": box_rle(0, 0), "caption": "A red cup."}, {"segmentation": bad, "caption": "A lid."}]
    write_json(root / "sam_captions/train.json", [{"image_name": "0.jpg", "object_annotations": objects}])
    assert [turn.answer for turn in _one_decoded(root, "sam_captions", problems=1).turns] == ["A red cup."]


@pytest.mark.parametrize("bad", EMPTY.values(), ids=IDS)
def test_a_turn_about_a_region_without_a_mask_leaves_the_other_turns(root, bad):
    annotations = [{"segmentation": bad}, {"segmentation": box_polygon(5, 0)}]
    entry = {"file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1], "annotation": annotations}
    talk = messages("<region1>?", "A cup.", "<region2>?", "A lid.", "Which is red?", "<region1>.")
    write_json(root / "osprey/osprey_conversation.json", [entry | {"conversations": talk}])
    sample = _one_decoded(root, "osprey_conversation", problems=2)
    assert [(turn.question, turn.answer) for turn in sample.turns] == [("<Prompt0>?", "A lid.")]
    assert_mask(sample.prompts[0], box_mask(5, 0))
    write_json(root / "osprey/osprey_conversation.json", [entry | {"conversations": messages("Why?", "So.")}])
    assert _one_decoded(root, "osprey_conversation", problems=1).turns[0].question == "<Prompt0> Why?"


@pytest.mark.parametrize("bad", EMPTY.values(), ids=IDS)
def test_an_expression_without_a_mask_leaves_the_others(root, bad):
    images = [
        {"id": i, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1], "caption": text}
        for i, text in enumerate(("a cup", "a lid"))
    ]
    annotations = [{"image_id": i, "segmentation": item} for i, item in enumerate((box_polygon(0, 0), bad))]
    write_json(
        root / "RefCoco_Reg/mdetr_annotations/finetune_refcocog_train_with_mask.json",
        {"images": images, "annotations": annotations},
    )
    assert [turn.answer for turn in _one_decoded(root, "refcocog_mdetr_captions", problems=1).turns] == ["a cup"]
