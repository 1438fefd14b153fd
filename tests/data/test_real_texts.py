"""What the texts of published files contain and a model must not be taught: every fixture has the official shape."""

import numpy as np
import pytest
from PIL import Image
from source_fixtures import (
    SIZE,
    assert_mask,
    box_mask,
    box_polygon,
    box_rle,
    draw_sample,
    messages,
    open_named,
    write_images,
    write_json,
)

from pixel_sail.data.errors import DatasetError


@pytest.fixture
def root(tmp_path):
    """A data root with images 0.jpg to 3.jpg in train2017 and nothing else."""
    write_images(tmp_path / "images/train2017", *(f"{i}.jpg" for i in range(4)))
    return tmp_path


# --- SAM captions -----------------------------------------------------------------------------------------------------


def _captions(root, *captions):
    objects = [{"segmentation": box_rle(5 * i, 5), "caption": caption} for i, caption in enumerate(captions)]
    entry = {"image_name": "0.jpg", "object_annotations": objects}
    write_json(root / "sam_captions/train.json", [entry])
    return open_named(root, "sam_captions", count=9)


@pytest.mark.parametrize(
    ("written", "taught"),
    [
        ("The highlighted object is a red cup.", "The object is a red cup."),
        ("The object highlighted by a yellow edge is a cup.", "The object is a cup."),
        ("A cup, highlighted by a yellow contour, stands on a table.", "A cup stands on a table."),
        ("The cup, which is outlined in a yellow edge, is red.", "The cup is red."),
        ("A cup is red and is highlighted by a yellow edge.", "A cup is red."),
        ("It is a cup. The cup is highlighted with a yellow outline. It is red.", "It is a cup. It is red."),
        ("A highlighted orange.", "An orange."),
        ("Highlighted is a cup.", "A cup."),
        ("the cup by a yellow edge", "the cup"),
        ("A yellow bus beside a road with yellow lines.", "A yellow bus beside a road with yellow lines."),
        ("A woman with  blond highlights.", "A woman with  blond highlights."),
    ],
)
def test_a_caption_does_not_speak_of_the_marking_of_its_region(root, written, taught):
    source = _captions(root, written)
    assert source.problems == [] and draw_sample(source).turns[0].answer == taught


def test_a_caption_about_nothing_but_the_marking_is_left_out_and_listed(root):
    source = _captions(root, "A cup.", "It is highlighted by a yellow edge.", "The yellow contour surrounds a dog.")
    assert [turn.answer for turn in draw_sample(source).turns] == ["A cup."]
    assert source.problems == [
        "sam_captions/train/0/1: its caption 'It is highlighted by a yellow edge.' is about the marking of the region",
        "sam_captions/train/0/2: its caption 'The yellow contour surrounds a dog.' is about the marking of the region",
    ]


# --- Pix2Cap ----------------------------------------------------------------------------------------------------------


def _pix2cap(root, *images):
    """One image for each list of descriptions; the PNG of COCO panoptic has a segment for each."""
    folder, annotations = root / "annotations/panoptic_train2017", []
    folder.mkdir(parents=True)
    for number, descriptions in enumerate(images):
        ids = np.zeros((*SIZE, 3), np.uint8)
        infos = []
        for i, description in enumerate(descriptions, 1):
            ids[box_mask(5 * i, 0), 0] = i
            infos.append({"id": i, "category_id": 1, "area": 25, "iscrowd": 0, "description": description})
        Image.fromarray(ids).save(folder / f"{number}.png")
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    write_json(root / "pix2cap/pix2cap_coco_train.json", {"annotations": annotations})


@pytest.mark.parametrize("name", ["pix2cap_caption", "pix2cap_segment"])
def test_descriptions_of_fewer_than_six_characters_say_nothing(root, name):
    _pix2cap(root, ["A red cup.", "N/A", " None. ", "12345", "123456"], ["N/A"])
    source = open_named(root, name, count=9, questions=["{expression}"])
    texts = [turn.answer if name.endswith("caption") else turn.question for turn in draw_sample(source).turns]
    assert len(source) == 1 and {text.lower().rstrip(".") for text in texts} == {"a red cup", "123456"}
    assert source.problems == [
        f"{name}/train/image=0: segment 2: its description 'N/A' is too short",
        f"{name}/train/image=0: segment 3: its description 'None.' is too short",
        f"{name}/train/image=0: segment 4: its description '12345' is too short",
        f"{name}/train/image=1: segment 1: its description 'N/A' is too short",
        f"{name}/train/image=1: no segment with a description is left",
    ]


def test_a_segment_without_a_pixel_leaves_the_other_segments(root):
    _pix2cap(root, ["A red cup.", "A lid of tin."])
    path = root / "pix2cap/pix2cap_coco_train.json"
    path.write_text(path.read_text().replace('"area": 25', '"area": 0', 1))
    source = open_named(root, "pix2cap_caption")
    assert source.problems == ["pix2cap_caption/train/image=0: segment 1: its area is 0 pixels"]
    assert [turn.answer for turn in draw_sample(source).turns] == ["A lid of tin."]


def test_a_file_of_short_descriptions_alone_is_refused(root):
    _pix2cap(root, ["N/A"])
    with pytest.raises(DatasetError, match="pix2cap_coco_train.json can be used; first: .*'N/A' is too short"):
        open_named(root, "pix2cap_caption")


# --- Osprey -----------------------------------------------------------------------------------------------------------

SHORT = "Answer the question using a single word or phrase."


def _osprey(root, kind, *talks, regions=3):
    entries = [
        {"id": "1", "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1], "conversations": talk}
        | {"annotation": [{"bbox": [], "segmentation": box_polygon(5 * (i % 8), 5 * (i // 8))} for i in range(regions)]}
        for talk in talks
    ]
    write_json(root / f"osprey/osprey_{kind}.json", entries)
    return open_named(root, f"osprey_{kind}")


def test_the_short_forms_of_osprey_ask_for_a_word_or_a_phrase(root):
    talk = messages("What is <region1>?", "A cup.", "And <region2>?", "A lid.")
    for kind, said in (("short_form", f" {SHORT}"), ("part_level", f" {SHORT}"), ("conversation", "")):
        sample = draw_sample(_osprey(root, kind, talk))
        assert [turn.question for turn in sample.turns] == [f"What is <Prompt0>?{said}", f"And <Prompt1>?{said}"]
    again = draw_sample(_osprey(root, "short_form", messages(f"What is <region1>? {SHORT}", "A cup.")))
    assert again.turns[0].question.count(SHORT) == 1


def test_texts_that_name_no_region_have_all_of_them_announced(root):
    source = _osprey(root, "conversation", messages("What do they share?", "Their colour.", "Which is red?", "None."))
    sample = draw_sample(source)
    assert source.problems == []
    assert [turn.question for turn in sample.turns] == [
        "<Prompt0> <Prompt1> <Prompt2> What do they share?",
        "Which is red?",
    ]
    for k in range(3):
        assert_mask(sample.prompts[k], box_mask(5 * k, 0))
    assert len(draw_sample(_osprey(root, "conversation", messages("Why?", "So."), regions=15)).prompts) == 15


@pytest.mark.parametrize("source", ["osprey_conversation", "llava"])
def test_a_conversation_goes_from_the_first_question_to_the_last_answer(root, source):
    whole = messages("What is <region1>?", "A cup.")
    odd = [*whole, {"from": "human", "value": "And?"}]
    gpt_first = [{"from": "gpt", "value": "Hello."}, {"from": "gpt", "value": "I see."}, *whole]
    both = [gpt_first[0], *odd]
    never = [odd[2]]
    if source == "llava":
        name, file = "llava/train", root / "llava/train.json"
        write_json(file, [{"image": "0.jpg", "conversations": talk} for talk in (odd, gpt_first, both, never)])
        opened = open_named(root, source)
    else:
        name, opened = source, _osprey(root, "conversation", odd, gpt_first, both, never)
    assert len(opened) == 3
    for index in range(3):
        (turn,) = draw_sample(opened, index).turns if source != "llava" else opened.sample(index, None).turns
        assert turn.answer == "A cup."
    assert opened.problems == [
        f"{name}/0: 1 of its messages, after the last answer, left out",
        f"{name}/1: 2 of its messages, before the first question, left out",
        f"{name}/2: 1 of its messages, before the first question, left out",
        f"{name}/2: 1 of its messages, after the last answer, left out",
        f"{name}/3: 1 of its messages, after the last answer, left out",
        f"{name}/3: its conversation is empty",
    ]
