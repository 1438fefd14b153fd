"""A conversation about an image, as the page shows it: text only, with coloured marks in the place of [SEG]."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pixel_sail.serve.demo.findings import Finding, mark
from pixel_sail.serve.demo.regions import page_words
from pixel_sail.tokens import IMAGE_TOKENS, PHRASE_END, PHRASE_START, SEG
from pixel_sail.types import RLE

_TAGS = re.compile(rf"{PHRASE_START}\s*|\s*{PHRASE_END}")
_IMAGE = re.compile("|".join(map(re.escape, IMAGE_TOKENS)))  # refused in texts
_PHRASE_OF_MASK = re.compile(rf"{PHRASE_START}\s*([^<\[]+?)\s*{PHRASE_END}\s*$")
MASK = "mask {}"  # what a mask without a phrase is called


@dataclass(frozen=True)
class Turn:
    """A question as written and in the words of the model, its answer with [SEG] in place, and how long it took."""

    question: str
    asked: str
    answer: str
    seconds: float | None = None  # None: the answer is still being written
    drawing: str = ""  # what was drawn; the model remembers turns about the same drawing


def mask_names(answer: str) -> list[str]:
    """A name for each [SEG]: the phrase <p>...</p> before it, else "mask 1", "mask 2", ..."""
    before = answer.split(SEG)[:-1]
    phrases = [_PHRASE_OF_MASK.search(text) for text in before]
    return [found[1] if found else MASK.format(i + 1) for i, found in enumerate(phrases)]


def answer_findings(answer: str, masks: Sequence[RLE]) -> tuple[Finding, ...]:
    """A finding for each mask of an answer."""
    return tuple(Finding(name, (mask,), answer) for name, mask in zip(mask_names(answer), masks, strict=False))


def answer_html(answer: str) -> str:
    """The answer with a coloured mark for each [SEG], everything else escaped."""
    names, parts, i = mask_names(answer), [], 0
    text = re.sub(rf"\s*{re.escape(SEG)}", SEG, answer)  # the mark brings its own space
    for piece in re.split(f"({re.escape(SEG)})", text):
        if piece == SEG:
            said = names[i] != MASK.format(i + 1)  # the phrase stands in the text already
            parts.append(" " + mark(i, "" if said else names[i]))
            i += 1
        else:
            parts.append(html.escape(page_words(_TAGS.sub("", piece))))
    return "".join(parts).strip()


def conversation_html(turns: Sequence[Turn]) -> str:
    """Bubbles, oldest first. A line says where the drawing changed, from where on the model remembers nothing."""
    if not turns:
        return '<div class="ps-chat ps-empty">Ask something about the image, or about a region that you draw.</div>'
    parts: list[str] = []
    for number, turn in enumerate(turns):
        if number and turn.drawing != turns[number - 1].drawing:
            parts.append('<div class="ps-divider">another drawing: the model starts afresh</div>')
        parts.append(f'<div class="ps-turn ps-user">{html.escape(turn.question)}</div>')
        words = answer_html(turn.answer)
        if turn.seconds is None:
            words += '<span class="ps-cursor"></span>'
        else:
            words = (words or "<i>no words</i>") + f'<span class="ps-note">{turn.seconds:.1f} s</span>'
        parts.append(f'<div class="ps-turn ps-model">{words}</div>')
    return f'<div class="ps-chat" role="log" aria-label="conversation">{"".join(parts)}</div>'


def remembered(turns: Sequence[Turn], drawing: str, at_most: int) -> list[tuple[str, str]]:
    """The turns (question, answer) that a question about this drawing goes on from, the latest `at_most`."""
    history: list[tuple[str, str]] = []
    for turn in reversed(turns):
        if turn.drawing != drawing or len(history) == at_most:
            break
        history.insert(0, (turn.asked, _IMAGE.sub("", turn.answer)))  # a poor model says anything
    return history
