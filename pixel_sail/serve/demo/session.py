"""What the page knows of a visitor, and what the model answers: every step makes a new Session from the one before."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.errors import UserError
from pixel_sail.serve.demo.conversation import Turn, answer_findings, remembered
from pixel_sail.serve.demo.findings import Finding, shown_image
from pixel_sail.serve.demo.regions import drawn_regions, model_words
from pixel_sail.serve.demo.streaming import stream
from pixel_sail.serve.demo.uploads import check_upload
from pixel_sail.serve.images import as_image
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.types import RLE

MAX_CHARACTERS = 2_000  # of what is asked
MAX_LINES = 16  # objects to segment at once
MAX_REMEMBERED = 8  # turns of a conversation that the model is given
MAX_TURNS = 50  # of a conversation that are kept


@dataclass(frozen=True)
class Session:
    """An image, what was found on it last, and the conversation about it. `image`: the bytes of its file."""

    image: bytes | None = None
    shown: Image.Image | None = None  # in the size in which the page shows it
    name: str = ""
    size_wh: tuple[int, int] = (0, 0)
    findings: tuple[Finding, ...] = ()
    regions: dict[int, RLE] = field(default_factory=dict)  # that were drawn when it was found
    seconds: float = 0.0  # that it took
    turns: tuple[Turn, ...] = ()

    def pixels(self) -> Image.Image:
        """The image itself. Raises UserError if there is none yet."""
        if self.image is None:
            raise UserError("there is no image yet: choose one, drop one on the page, or take an example")
        return as_image(self.image)


def opened(source: Path | bytes, name: str) -> Session:
    """A session about another image. Raises UserError for what is no image, is damaged, or is too large."""
    data = check_upload(source)
    image = as_image(data)  # turned as its EXIF says
    return Session(data, shown_image(image), name, image.size)


def canvas_value(session: Session, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the canvas shows of a session; see canvas.py."""
    image, file = session.shown, io.BytesIO()
    if image is None:
        return {"image": "", "width": 0, "height": 0, "shapes": []}
    image.save(file, "JPEG", quality=90)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"image": uri, "width": session.size_wh[0], "height": session.size_wh[1], "shapes": shapes}


def segment(predictor: Predictor, session: Session, shapes: Any, text: str) -> Session:
    """The session with what the model finds for each line of `text`.

    A line that names no region is asked as if none was drawn. Raises UserError for bad input.
    """
    image, lines = session.pixels(), _lines(text)
    regions = drawn_regions(shapes, session.size_wh)
    asked, started = [model_words(line, regions) for line in lines], time.perf_counter()
    answers = predictor.segment(image, asked, _masks(regions))
    seconds = time.perf_counter() - started
    findings = tuple(map(_finding, lines, answers, asked))
    return replace(session, findings=findings, regions=regions, seconds=seconds)


def _finding(line: str, answer: Answer, asked: str) -> Finding:
    drawn = [j for j, mask in enumerate(answer.masks) if mask.any()]
    scores = tuple(answer.scores[j] for j in drawn) if answer.scores else ()
    return Finding(line, tuple(encode_mask(answer.masks[j]) for j in drawn), answer.text, scores, asked)


def ask(predictor: Predictor, session: Session, shapes: Any, question: str) -> Iterator[Session]:
    """The session with a question and as much of its answer as there is, again and again; at last with its masks.

    The model is given the turns before that were about the same drawing. Raises UserError for bad input.
    """
    image, question = session.pixels(), _checked(question)
    regions = drawn_regions(shapes, session.size_wh)
    drawing = json.dumps(regions) if regions else ""
    turn = Turn(question, model_words(question, regions), "", drawing=drawing)
    before = session.turns[1 - MAX_TURNS :]
    yield replace(session, turns=(*before, turn))
    history, started = remembered(before, drawing, MAX_REMEMBERED), time.perf_counter()
    answer = Answer("", [])
    for answer in stream(predictor, image, turn.asked, _masks(regions), history):
        if isinstance(answer, str):
            yield replace(session, turns=(*before, replace(turn, answer=answer)))
    seconds = time.perf_counter() - started
    session = replace(session, turns=(*before, replace(turn, answer=answer.text, seconds=seconds)))
    if answer.masks:
        masks = [encode_mask(mask) for mask in answer.masks]
        findings = answer_findings(answer.text, masks)
        session = replace(session, findings=findings, regions=regions, seconds=seconds)
    yield session


def _masks(regions: dict[int, RLE]) -> dict[int, np.ndarray]:
    return {k: decode_mask(region) for k, region in regions.items()}


def _checked(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are answered")
    if not text.strip():
        raise UserError("there is nothing to answer: write what to segment, or a question")
    return text.strip()


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in _checked(text).splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        raise UserError(f"there are {len(lines)} lines; at most {MAX_LINES} objects are segmented at once")
    return lines
