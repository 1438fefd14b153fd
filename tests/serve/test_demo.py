"""The demo without a browser: drawings become regions, and the page shows what the Python API gives, in words."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from tiny_predictor import tiny_predictor

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.regions import Box, Points, Scribble, draw_region
from pixel_sail.errors import UserError
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.demo.conversation import Turn, answer_findings, conversation_html, mask_names, remembered
from pixel_sail.serve.demo.examples import FILE, box, image_example, read_examples
from pixel_sail.serve.demo.findings import SHOWN_PX, Finding, coco_json, legend, masks_zip, picture, shown_mask
from pixel_sail.serve.demo.regions import MAX_SHAPES, MAX_VERTICES, drawn_regions, model_words, page_words
from pixel_sail.serve.demo.session import Session, ask, canvas_value, opened, segment
from pixel_sail.serve.demo.streaming import stream
from pixel_sail.serve.demo.uploads import check_upload
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.serve.visualize import colour

SIZE_WH = (60, 40)
HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Its answers have 16 tokens at most."""
    predictor = tiny_predictor()
    predictor.chat = partial(predictor.chat, sampling=Sampling(16))
    return predictor


def image_file(size_wh: tuple[int, int] = SIZE_WH) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shape(kind: str, xy: Any, region: Any = 0, **more: Any) -> dict[str, Any]:
    return {"region": region, "kind": kind, "xy": xy, **more}


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((SIZE_WH[1], SIZE_WH[0]), dtype=bool)
    mask[rows, columns] = True
    return mask


BOX = shape("box", [[30, 20], [10, 5]])  # drawn from its lower right corner
STROKE = shape("brush", [[5, 30], [20, 30], [40, 35]], region=2, width=4)


def test_shapes_are_the_regions_of_the_python_api() -> None:
    drawn = drawn_regions([STROKE, BOX, shape("point", [[50, 10]])], SIZE_WH)
    stroke = draw_region(Scribble(((5, 30), (20, 30), (40, 35)), 4), (40, 60), "")
    parts = (draw_region(Box(10, 5, 30, 20), (40, 60), ""), draw_region(Points(((50, 10),)), (40, 60), ""))
    assert list(drawn) == [0, 2] and drawn[2] == stroke
    assert (decode_mask(drawn[0]) == decode_mask(parts[0]) | decode_mask(parts[1])).all()  # one region, two shapes


def test_what_is_drawn_beside_the_image_is_moved_to_its_border() -> None:
    (corner,) = drawn_regions([shape("point", [[-5, 99]])], SIZE_WH).values()
    assert np.argwhere(decode_mask(corner)).tolist() == [[39, 0]]
    (flat,) = drawn_regions([shape("box", [[70, 5], [70, 5]])], SIZE_WH).values()
    (dab,) = drawn_regions([shape("brush", [[30, 20]], width=6)], SIZE_WH).values()
    assert decode_mask(flat).sum() == 1 and 30 <= decode_mask(dab).sum() <= 49


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "the drawing"),
        ([BOX] * (MAX_SHAPES + 1), f"more than {MAX_SHAPES} shapes"),
        ([shape("brush", [[1, 1]] * (MAX_VERTICES + 1), width=3)], "more than 5,000 points"),
        ([shape("polygon", [[1, 1]])], "damaged"),
        ([shape("box", [[1, 1]])], "damaged"),
        ([shape("point", [[1, float("nan")]])], "damaged"),
        ([shape("point", [[1, "2"]])], "damaged"),
        ([shape("point", [[1, 2]], region=5)], "damaged"),
        ([shape("point", [[1, 2]], region=True)], "damaged"),
        ([shape("brush", [[1, 1]], width=0)], "damaged"),
        (["box"], "damaged"),
    ],
)
def test_a_bad_drawing_is_refused(shapes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn_regions(shapes, SIZE_WH)


@pytest.mark.parametrize(
    ("written", "drawn", "asked"),
    [
        ("What is this?", [0], "What is <Prompt0>?"),
        ("What colour is it", [1], "What colour is <Prompt1>"),
        ("Describe the painted region in detail.", [0], "Describe <Prompt0> in detail."),
        ("the mug left of this thing", [0], "the mug left of <Prompt0>"),
        ("Is region A larger than Region B?", [0, 1], "Is <Prompt0> larger than <Prompt1>?"),
        ("What is this?", [0, 1], "What is this?"),  # which?
        ("What is this?", [], "What is this?"),
        ("Is this region left of region B?", [1], "Is this region left of <Prompt1>?"),
        ("Describe this image.", [0], "Describe this image."),
        ("What is the thing to the left of this?", [0], "What is the thing to the left of <Prompt0>?"),
        ("Is it red?", [0], "Is it red?"),
        ("What is <region>?", [0], "What is <region>?"),
        ("the region a person walks in", [], "the region a person walks in"),
    ],
)
def test_regions_are_named_in_plain_words(written: str, drawn: list[int], asked: str) -> None:
    assert model_words(written, drawn) == asked


def test_an_answer_names_regions_as_the_page_does() -> None:
    assert page_words("<Prompt1> is larger. <Prompt0> is not.") == "Region B is larger. Region A is not."
    assert page_words("It is <Prompt2>.") == "It is region C."


def test_uploads_are_looked_at_before_they_are_decoded(tmp_path: Path) -> None:
    assert check_upload(image_file()) == image_file()
    bomb = io.BytesIO()
    Image.new("1", (5000, 5000)).save(bomb, "PNG")
    os.mkfifo(tmp_path / "pipe")
    for upload, message in (
        (image_file()[:200], "cannot decode the image"),
        (b"<svg onload=alert(1)>", "cannot decode the image"),
        (b"", "cannot decode the image"),
        (bomb.getvalue(), "5000 x 5000 pixels; at most 20,000,000"),
        (image_file() + bytes(8 * 2**20), "8,388,608 are accepted"),
        (tmp_path / "pipe", "is a named pipe"),
    ):
        with pytest.raises(UserError, match=message):
            opened(upload, "a.png")


def test_a_photo_is_turned_and_shown_in_a_moderate_size() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 1000)).save(file, "JPEG", exif=exif)
    session = opened(file.getvalue(), "photo.jpg")
    value = canvas_value(session, [BOX])
    assert (value["width"], value["height"]) == session.size_wh == (1000, 3000)
    assert session.shown.size == (round(SHOWN_PX / 3), SHOWN_PX) and value["image"].startswith("data:image/jpeg;")
    assert opened(image_file(), "small.png").shown.size == (540, 360)
    assert canvas_value(Session(), []) == {"image": "", "width": 0, "height": 0, "shapes": []}


def test_segment_gives_what_the_python_api_gives(predictor: Predictor) -> None:
    session = opened(image_file(), "a.png")
    lines = ["the red mug", "the ball left of region A", "the mug"]
    found = segment(predictor, session, [BOX], "\n the red mug\n\nthe ball left of region A \nthe mug")
    regions = {0: rectangle(slice(5, 20), slice(10, 30))}
    plain = predictor.segment(image_file(), ["the red mug", "the mug"])  # as if nothing was drawn
    (beside,) = predictor.segment(image_file(), ["the ball left of <Prompt0>"], regions)
    for finding, line, answer in zip(found.findings, lines, (plain[0], beside, plain[1]), strict=True):
        masks = [encode_mask(mask) for mask in answer.masks if mask.any()]
        assert (finding.phrase, finding.words, list(finding.masks)) == (line, answer.text, masks)
    assert {k: decode_mask(region).tolist() for k, region in found.regions.items()} == {0: regions[0].tolist()}
    assert found.seconds > 0 and found.image == session.image


def test_an_answer_grows_and_ends_as_the_python_api_gives_it(predictor: Predictor) -> None:
    steps = list(ask(predictor, opened(image_file(), "a.png"), [BOX], " What is this? "))
    (answer,) = predictor.chat(image_file(), "What is <Prompt0>?", {0: rectangle(slice(5, 20), slice(10, 30))})
    texts = [step.turns[-1].answer for step in steps]
    assert texts[0] == "" and texts[-1] == answer.text and len(steps) > 4
    assert all(answer.text.startswith(text.rstrip("�")) for text in texts)
    assert [step.turns[-1].seconds is None for step in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].turns[-1].question == "What is this?"
    assert [list(finding.masks) for finding in steps[-1].findings] == [[encode_mask(mask)] for mask in answer.masks]


def test_the_model_remembers_the_turns_about_one_drawing(predictor: Predictor, monkeypatch) -> None:
    given = []
    chat = predictor.chat

    def recorded(*arguments: Any, history: Any, **more: Any) -> list[Answer]:
        given.append(list(history))
        return chat(*arguments, history=history, **more)

    monkeypatch.setattr(predictor, "chat", recorded)
    session = opened(image_file(), "a.png")
    for question, shapes in (("What is red?", []), ("And blue?", []), ("What is this?", [BOX]), ("And now?", [BOX])):
        *_, session = ask(predictor, session, shapes, question)
    first, _, third, _ = [turn.answer for turn in session.turns]
    assert given == [[], [("What is red?", first)], [], [("What is <Prompt0>?", third)]]
    assert "another drawing" in conversation_html(session.turns)
    assert remembered(session.turns, session.turns[-1].drawing, at_most=1) == [("And now?", session.turns[3].answer)]
    assert remembered([Turn("a", "b", "c<vpatch> d")], "", 1) == [("b", "c d")]  # which would be refused


@pytest.mark.parametrize("act", [segment, lambda *given: list(ask(*given))])
def test_errors_say_what_is_wrong(predictor: Predictor, act) -> None:
    session = opened(image_file(), "a.png")
    for state, text, message in (
        (Session(), "mug", "there is no image yet"),
        (session, " \n ", "there is nothing to answer"),
        (session, "x" * 2001, "2,001 characters; at most 2,000"),
        (session, "<region> and <region>", "the question has 2 <region> and 1 regions"),
    ):
        with pytest.raises(UserError, match=message):
            act(predictor, state, [BOX], text)
    with pytest.raises(UserError, match="17 lines; at most 16"):
        segment(predictor, session, [], "mug\n" * 17)


def test_nobody_waits_for_an_answer_that_is_left(predictor: Predictor) -> None:
    image = Image.open(io.BytesIO(image_file()))
    whole = [text for text in stream(predictor, image, "What is red?", {}, []) if isinstance(text, str)]
    answers = stream(predictor, image, "What is red?", {}, [])
    put, seen = predictor.encoder.answer_text, []
    predictor.encoder.answer_text = lambda ids: seen.append(len(ids)) or put(ids)
    try:
        next(answers)
        answers.close()  # returns when the model has stopped
    finally:
        del predictor.encoder.answer_text
    assert len(whole) > 10 and len(seen) < len(whole)


A, B = rectangle(slice(5, 20), slice(10, 30)), rectangle(slice(25, 35), slice(40, 60))


def findings() -> list[Finding]:
    return [
        Finding(f"the {HTML} mug", (encode_mask(A), encode_mask(B)), "[SEG][SEG]"),
        Finding("the lamp", (), f"There is no {HTML} lamp."),
        Finding("the ball", (encode_mask(rectangle(slice(0, 0), slice(0, 0))),), "It is [SEG]."),
        Finding("the dot", (encode_mask(rectangle(slice(0, 1), slice(0, 1))),), "[SEG]", (0.875,)),
    ]


def test_the_legend_says_in_words_what_was_found() -> None:
    shown = legend(findings(), SIZE_WH, 1.24)
    rows = [re.sub("<[^>]*>", "|", row) for row in shown.split("</tr>")]
    assert "20.8 % of the image, 2 masks" in rows[0] and "the &lt;img src=x onerror=alert(1)&gt; mug" in rows[0]
    assert "nothing found: “There is no &lt;img" in rows[1]
    assert rows[2].rstrip("|").endswith("nothing found")  # an empty mask
    assert "score" not in rows[0] and rows[3].rstrip("|").endswith(", score 0.88")
    assert "0.0 %" not in rows[3] and "answered in 1.2 s" in rows[4] and legend([], SIZE_WH, 0.0) == ""
    assert [f"rgb{colour(i)}".replace(" ", "") in shown for i in range(4)] == [True, False, False, True]
    assert HTML not in shown


def test_the_opacity_changes_the_inside_of_masks_alone() -> None:
    session = opened(image_file(), "a.png")
    found, regions = [Finding("the mug", (encode_mask(A),))], {1: encode_mask(B)}
    clear, strong = (np.asarray(picture(session.shown, found, regions, opacity)).astype(int) for opacity in (0, 1))
    changed = np.any(clear != strong, axis=2)
    inside, shown = shown_mask(encode_mask(A)), np.asarray(session.shown)
    assert changed.any() and not changed[~inside].any()
    assert (strong[12 * 9, 20 * 9] == colour(0)).all() and (clear[12 * 9, 20 * 9] == shown[12 * 9, 20 * 9]).all()
    assert np.any(clear != shown, axis=2)[~inside].any()  # the outline of region B


def test_the_json_is_read_by_cocos_own_code(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_bytes(coco_json([*findings(), Finding("the lamp", (encode_mask(B),))], "a.png", SIZE_WH))
    coco = COCO(path)
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == [f.phrase for f in findings()]
    assert coco.loadImgs(1)[0] == {"id": 1, "file_name": "a.png", "width": 60, "height": 40}
    entries = coco.loadAnns(coco.getAnnIds())
    assert [entry["category_id"] for entry in entries] == [1, 1, 4, 2]  # an empty mask is no annotation
    assert (coco.annToMask(entries[1]) == B).all() and entries[1]["area"] == B.sum()
    assert entries[0]["bbox"] == [10, 5, 20, 15]
    assert [entry.get("score") for entry in entries] == [None, None, 0.875, None]


def test_the_zip_has_a_png_for_each_mask() -> None:
    archive = zipfile.ZipFile(io.BytesIO(masks_zip(findings())))
    names = archive.namelist()
    assert names == [
        "01_the_img_src_x_onerror_alert_1_mug_1.png",
        "01_the_img_src_x_onerror_alert_1_mug_2.png",
        "03_the_ball_1.png",
        "04_the_dot_1.png",
    ]
    assert (np.asarray(Image.open(archive.open(names[1]))) == 255 * B).all()


def test_the_conversation_shows_marks_and_no_tokens() -> None:
    answer = f"<p> the mug </p> [SEG] is left of <Prompt0> [SEG]. {HTML}"
    assert mask_names(answer) == ["the mug", "mask 2"]
    named = answer_findings(answer, [encode_mask(A), encode_mask(B)])
    assert [finding.phrase for finding in named] == mask_names(answer)
    turns = [Turn(f"{HTML}?", "", answer, 0.5), Turn("And?", "", "So [SEG] f", None), Turn("x", "", "", 1.0)]
    shown = conversation_html(turns)
    words = re.sub("<[^>]*>", "", shown)
    assert "the mug  is left of region A mask 2." in words and "So mask 1 f" in words and "no words" in words
    assert not re.search(r"SEG|</?p>|Prompt|<img", shown) and shown.count("&lt;img") == 2
    assert shown.count("ps-swatch") == 3 and shown.count("ps-cursor") == 1 and "0.5 s" in words


def test_examples_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_file())
    listed = tmp_path / FILE
    listed.write_text(
        json.dumps(
            [{"image": "a.png", "segment": ["mug", "all"]}, {"image": "a.png", "ask": "What?", "box": [1, 2, 3, 4]}]
        )
    )
    several, question = read_examples(tmp_path)
    assert (several.task, several.text, several.shapes, several.image) == ("segment", "mug\nall", [], image_file())
    assert (question.task, question.text, question.shapes) == ("ask", "What?", [box((1, 2, 3, 4))])
    assert image_example(tmp_path / "a.png").text == ""
    for entry in (
        {"image": "a.png"},
        {"image": "a.png", "segment": "mug"},
        {"image": "a.png", "segment": ["mug"], "ask": "What?"},
        {"image": "a.png", "segment": ["mug"], "point": [1, 2]},
        {"image": "a.png", "ask": "What?", "box": [1, 2, 3]},
        {"image": "../a.png", "ask": "What?"},
        {"image": "b.png", "ask": "What?"},
    ):
        listed.write_text(json.dumps([{"image": "a.png", "ask": "?"}, entry]))
        with pytest.raises(UserError, match="example 2|b.png"):
            read_examples(tmp_path)
    listed.write_text("{}")
    with pytest.raises(UserError, match="no list of examples"):
        read_examples(tmp_path)
