"""Clicks in the demo, without a browser: what a page refines is what the Python API refines."""

from __future__ import annotations

import pytest
import torch
from test_demo import BOX, SIZE_WH, image_file, rectangle, shape
from tiny_predictor import tiny_predictor

from pixel_sail.data.masks import encode_mask
from pixel_sail.errors import UserError
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.demo.findings import Finding
from pixel_sail.serve.demo.refine import CLICKED, MAX_READ, Refiner, without_clicks
from pixel_sail.serve.demo.regions import drawn_clicks, drawn_regions
from pixel_sail.serve.demo.session import Session, opened
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.session import Session as Refinement
from pixel_sail.types import Click

PLUS = shape("click", [[12.5, 7]], positive=True)
MINUS = shape("click", [[99, 30]], positive=False)  # moved to the border


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    predictor = tiny_predictor(architecture={"clicks": True})
    predictor.sampling = Sampling(4)  # tokens of an answer
    torch.manual_seed(1)
    torch.nn.init.normal_(predictor.model.fusion.clicks.weight)
    return predictor


def found() -> Session:
    session = opened(image_file(), "a.png")
    findings = (
        Finding("the mug", (), "[SEG]", asked="the mug"),
        Finding("left of region A", (), "It is [SEG].", asked="left of <Prompt0>"),
        Finding("mask 1", (), "It is [SEG]."),  # of a conversation
    )
    return Session(**{**vars(session), "findings": findings, "regions": drawn_regions([BOX], SIZE_WH)})


def test_clicks_are_no_regions() -> None:
    assert drawn_clicks([PLUS, BOX, MINUS], SIZE_WH) == (Click(12.5, 7, True), Click(59.999, 30, False))
    assert drawn_regions([PLUS, BOX, MINUS], SIZE_WH) == drawn_regions([BOX], SIZE_WH)
    assert without_clicks([PLUS, BOX, MINUS]) == [BOX] and without_clicks(None) == []
    for bad in (shape("click", [[1, 2]]), shape("click", [[1, 2]], positive=1), shape("click", [], positive=True)):
        with pytest.raises(UserError, match="the drawing is damaged"):
            drawn_clicks([bad], SIZE_WH)


def test_a_page_refines_as_the_python_api(predictor: Predictor) -> None:
    """The phrase, a phrase about a region, and a mask of a conversation, of which the clicks alone count."""
    refiner, session = Refiner(predictor), found()
    boxed = {0: rectangle(slice(5, 20), slice(10, 30))}
    for number, (expression, regions, answer) in enumerate(
        [("the mug", {}, "[SEG]"), ("left of <Prompt0>", boxed, "It is [SEG]."), (None, {}, "")]
    ):
        refined = refiner.refine(session, [BOX, PLUS, MINUS], number)
        expected = Refinement(predictor, image_file(), regions)
        if expression is not None:
            expected.segment(expression)
            expected.turns = (type(expected.turns[0])(expected.turns[0].question, answer),)
        expected.refine([(12.5, 7, True)])
        mask = expected.refine([(59.999, 30, False)]).masks[0]
        assert list(refined.findings[number].masks) == ([encode_mask(mask)] if mask.any() else [])
        others = [finding for i, finding in enumerate(refined.findings) if i != number]
        assert others == [finding for i, finding in enumerate(session.findings) if i != number]
        assert refined.findings[number].words == session.findings[number].words and refined.seconds > 0


def test_an_image_is_read_once_and_forgotten(predictor: Predictor) -> None:
    refiner, before = Refiner(predictor), predictor.images_encoded
    session = opened(image_file(), "a.png")
    for shapes in ([PLUS], [PLUS, MINUS], [MINUS]):
        refined = refiner.refine(session, shapes, None)
        assert [finding.phrase for finding in refined.findings] == [CLICKED]
    assert predictor.images_encoded == before + 1
    for width in range(8, 8 + MAX_READ):
        refiner.refine(opened(image_file((width, 8)), "b.png"), [shape("click", [[1, 1]], positive=True)], 0)
    assert len(refiner.read) == MAX_READ
    refiner.refine(session, [PLUS], 0)
    assert predictor.images_encoded == before + 2 + MAX_READ


def test_what_cannot_be_refined(predictor: Predictor) -> None:
    refiner = Refiner(predictor)
    with pytest.raises(UserError, match="there is no image yet"):
        refiner.refine(Session(), [PLUS], 0)
    with pytest.raises(UserError, match="there is no click yet"):
        refiner.refine(found(), [BOX], 0)
    with pytest.raises(UserError, match="this model takes no clicks"):
        Refiner(tiny_predictor()).refine(found(), [PLUS], 0)
