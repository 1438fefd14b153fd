"""Masks of the page that are refined by clicks. The images of the last visitors who did so stay read."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.regions import names_region
from pixel_sail.errors import UserError
from pixel_sail.serve import session as serving
from pixel_sail.serve.demo.findings import Finding
from pixel_sail.serve.demo.regions import CLICK_KIND, drawn_clicks
from pixel_sail.serve.demo.session import Session
from pixel_sail.serve.predictor import Predictor
from pixel_sail.tokens import CLICK, SEG
from pixel_sail.types import RLE, Turn

MAX_READ = 4  # images whose keys and values are kept
CLICKED = "what is clicked"  # the phrase of a mask that is made of clicks alone


class Refiner:
    """Refines what a page has found, with one model for all visitors."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.read: OrderedDict[str, serving.Session] = OrderedDict()

    def refine(self, session: Session, shapes: Any, number: int | None) -> Session:
        """The session with the mask of its number-th finding as the clicks among the shapes want it.

        All clicks count, in order; with none before, they alone say what is meant. Raises UserError for bad input.
        """
        serving.refuse_without_clicks(self.predictor)
        session.pixels()
        clicks = drawn_clicks(shapes, session.size_wh)
        if not clicks:
            raise UserError("there is no click yet: take “+ click” or “− click”, and click on the image")
        findings = list(session.findings) or [Finding(CLICKED, ())]
        number = number if isinstance(number, int) and 0 <= number < len(findings) else 0
        finding, started = findings[number], time.perf_counter()
        regions = session.regions if names_region(finding.asked) else {}
        opened = self._opened(session, regions)
        turns = [Turn(CLICK, SEG, (click,)) for click in clicks]
        if finding.asked:
            turns.insert(0, Turn(self.predictor.segment_questions([finding.asked])[0], finding.words))
        (answer,) = opened.answers([[*turns[:-1], replace(turns[-1], answer="")]])
        masks = tuple(encode_mask(mask) for mask in answer.masks if mask.any())
        findings[number] = replace(finding, masks=masks, scores=tuple(answer.scores or ())[: len(masks)])
        return replace(session, findings=tuple(findings), seconds=time.perf_counter() - started)

    def _opened(self, session: Session, regions: dict[int, RLE]) -> serving.Session:
        """The image of a session with these regions, read now or before."""
        drawing = json.dumps(regions, sort_keys=True)
        key = hashlib.sha256(session.image + drawing.encode()).hexdigest()
        if key not in self.read:
            drawn = {k: decode_mask(region) for k, region in regions.items()}
            self.read[key] = serving.Session(self.predictor, session.pixels(), drawn)
        self.read.move_to_end(key)
        while len(self.read) > MAX_READ:
            self.read.popitem(last=False)
        return self.read[key]


def without_clicks(shapes: Any) -> list[dict[str, Any]]:
    """The shapes of a drawing that was read before, without its clicks."""
    return [shape for shape in shapes or [] if shape.get("kind") != CLICK_KIND]
