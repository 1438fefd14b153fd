"""Noun phrases of an answer: by spaCy where it and a model of it are installed, else by rules of our own.

Both follow spaCy's English noun chunks: a noun with what stands to its left in its phrase (articles, possessors,
numbers, adjectives, nouns), nothing to its right. Pronouns alone ("it", "which"), chunks for spaCy, are none here: they
name nothing. The rules find 94 % of spaCy's chunks (en_core_web_sm 3.8) in 510 human captions of COCO, to the letter,
and 92 % of theirs are spaCy's; in the 150 questions of PixMMVP 89 % and 87 %. Some of these texts were looked at while
the word lists were made.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pixel_sail.studies.attend_segment.word_classes import Tagged, tag

Span = tuple[int, int]  # characters [first, end)
Chunker = Callable[[str], list[Span]]  # text -> its noun phrases, in order, never overlapping

CHUNKERS = ("auto", "rules", "spacy")
SPACY_MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_core_web_trf")
# [SEG], <p>, (a): tokens of ours and letters of options are no words. Blanked, so that characters keep their places.
_MARKS = re.compile(r"\[SEG\]|</?p>|<Prompt\d+>|\([a-zA-Z]\)")
_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]|_")
_OWNER = re.compile(r"['’]s?$")
_JOINERS = (",", "and", "or", "&")
# May stand before the noun; a phrase may begin with any of them.
_BEFORE = frozenset(("DET", "POSS", "NUM", "ADJ", "NOUN"))


def open_chunker(name: str = "auto") -> Chunker:
    """`rules`; `spacy`: ValueError where it is not installed; `auto`: spaCy where it is, else the rules."""
    if name not in CHUNKERS:
        raise ValueError(f"unknown chunker {name!r}; known: {', '.join(CHUNKERS)}")
    model = None if name == "rules" else spacy_model()
    if name == "spacy" and model is None:
        raise ValueError(
            "noun phrases by spaCy need 'pip install pixel_sail[phrases]' and an English model (one of "
            f"{', '.join(SPACY_MODELS)}, installed as a package); or take --phrases rules"
        )
    return by_rules if model is None else lambda text: by_spacy(text, model)


def used(name: str) -> str:
    """What `open_chunker(name)` takes on this machine: "rules" or the name of the spaCy model."""
    return "rules" if name == "rules" else spacy_model() or "rules"


@lru_cache(1)
def spacy_model() -> str | None:
    """The first of `SPACY_MODELS` that is installed with spaCy."""
    if importlib.util.find_spec("spacy") is None:
        return None
    return next((name for name in SPACY_MODELS if importlib.util.find_spec(name) is not None), None)


@lru_cache(1)
def _load(model: str) -> Any:
    return importlib.import_module(model).load()


def by_spacy(text: str, model: str) -> list[Span]:
    """spaCy's noun chunks without those that are a pronoun."""
    chunks = _load(model)(_blanked(text)).noun_chunks
    return [(chunk.start_char, chunk.end_char) for chunk in chunks if chunk.root.pos_ != "PRON"]


def by_rules(text: str) -> list[Span]:
    """The longest runs of words that may form a noun phrase, each up to its last noun."""
    words = tag(_tokens(_blanked(text)))
    spans, i = [], 0
    while i < len(words):
        end, last_noun = _run(words, i)
        if last_noun is None:
            i = max(end, i + 1)
        else:
            spans.append((words[i].first, words[last_noun].end))
            i = last_noun + 1
    return spans


def _run(words: list[Tagged], start: int) -> tuple[int, int | None]:
    """Where the run that begins at `start` ends, and its last noun."""
    if not (words[start].tag in _BEFORE or _modifies(words, start)):
        return start, None
    i, noun, owner = start, None, None
    while i < len(words) and _goes_on(words, start, i, noun):
        if words[i].tag == "OWNER":  # "the dog's tail": the owner is part of what is owned
            noun, owner = None, noun
        elif words[i].tag == "NOUN":
            noun = i
        i += 1
    return i, owner if noun is None else noun  # "the dog's.": the phrase ends with the owner


def _goes_on(words: list[Tagged], start: int, i: int, noun: int | None) -> bool:
    """Whether word `i` belongs to the run from `start`, whose last noun so far is `noun`."""
    kind = words[i].tag
    if kind == "DET":
        return i == start or _predeterminer(words[i - 1])
    if noun is None:
        return kind in _BEFORE or _modifies(words, i) or _joins(words, i)
    return kind in ("NOUN", "OWNER") or (kind == "ADJ" and _reaches_noun(words, i))


def _predeterminer(word: Tagged) -> bool:
    return word.low in ("all", "both", "half", "such", "quite", "what", "not")


def _modifies(words: list[Tagged], i: int) -> bool:
    """An adverb that belongs to an adjective or number: "very large dogs", "about two dogs"; after "a" to anything."""
    if words[i].tag != "ADV" or i + 1 == len(words):
        return False
    return words[i + 1].tag in ("ADJ", "NUM", "ADV") or (i > 0 and words[i - 1].tag == "DET")


def _joins(words: list[Tagged], i: int) -> bool:
    """A comma or "and" between two adjectives of one phrase: "a large, brown dog", "black and white stripes"."""
    if i == 0 or words[i].low not in _JOINERS:
        return False
    before = i - 2 if words[i - 1].low == "," and words[i].low != "," else i - 1  # "warm, and red"
    if before < 0 or words[before].tag != "ADJ":
        return False
    both = words[i].low == "," and i + 1 < len(words) and words[i + 1].low in ("and", "or")
    return _reaches_noun(words, i + 2 if both else i + 1)


def _reaches_noun(words: list[Tagged], i: int) -> bool:
    """Whether adjectives from `i` on, with commas and "and" between them, lead to a noun."""
    before = ""
    while i < len(words):
        word = words[i]
        joined = word.low in _JOINERS and (before == "ADJ" or (before == "," and word.low != ","))
        if word.tag != "ADJ" and not joined:
            return word.tag == "NOUN" and before == "ADJ"
        before, i = word.tag if word.tag == "ADJ" else word.low, i + 1
    return False


def _blanked(text: str) -> str:
    return _MARKS.sub(lambda match: "." + " " * (len(match[0]) - 1), text)


def _tokens(text: str) -> list[Tagged]:
    """Words and marks with their places; the 's of an owner or of "it's" is a token of its own."""
    found = []
    for match in _TOKEN.finditer(text):
        owner = _OWNER.search(match[0]) if len(match[0]) > 1 else None
        cut = match.end() - (len(owner[0]) if owner else 0)
        found.append(Tagged(text[match.start() : cut], match.start(), cut))
        if owner:
            found.append(Tagged(owner[0], cut, match.end()))
    return found
