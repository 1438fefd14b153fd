"""Noun phrases: the input of spaCy and the chunks that are kept, with a stand-in; and spaCy itself, if installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from needs_spacy import needs_spacy

from pixel_sail.config import ConfigError
from pixel_sail.studies.attend_segment import phrases
from pixel_sail.studies.attend_segment.phrases import noun_phrases, open_chunker, spacy_model


def parsed(*chunks: tuple[int, int, str]) -> SimpleNamespace:
    """A spaCy Doc with chunks of (first character, end, part of speech of the root)."""
    spans = [SimpleNamespace(start_char=a, end_char=b, root=SimpleNamespace(pos_=pos)) for a, b, pos in chunks]
    return SimpleNamespace(noun_chunks=spans)


def test_special_tokens_and_option_letters_are_blanked_in_place() -> None:
    texts: list[str] = []

    def language(text: str) -> SimpleNamespace:
        texts.append(text)
        return parsed()

    text = "(a) The dog [SEG] is on <p>the mat</p>[SEG], near <Prompt0> and (the) cat."
    assert noun_phrases(text, language) == []
    assert texts == [".   The dog .     is on .  the mat.   .    , near .         and (the) cat."]
    assert len(texts[0]) == len(text)


def test_chunks_that_are_pronouns_are_dropped() -> None:
    text = "It is the dog, which a man walks."
    document = parsed((0, 2, "PRON"), (6, 13, "NOUN"), (15, 20, "PRON"), (21, 26, "NOUN"))
    assert [text[a:b] for a, b in noun_phrases(text, lambda _: document)] == ["the dog", "a man"]


def test_without_spacy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases.importlib.util, "find_spec", lambda name: None)
    assert spacy_model() is None
    with pytest.raises(ConfigError, match=r"pip install 'pixel_sail\[phrases\]', then python -m spacy download"):
        open_chunker()


def test_a_model_without_spacy_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"en_core_web_sm", "en_core_web_md"}
    monkeypatch.setattr(phrases.importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert spacy_model() is None
    installed.add("spacy")
    assert spacy_model() == "en_core_web_md"  # the better one


@needs_spacy
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is [SEG].", []),
        ("", []),
        ("(a)", []),
        ("Yes.", []),
        ("The small brown dog sits on the grass.", ["The small brown dog", "the grass"]),
        ("The butterfly's wings are open.", ["The butterfly's wings"]),
        ("A man riding a red bicycle down the street.", ["A man", "a red bicycle", "the street"]),
        ("The running child holds an umbrella, which protects him.", ["The running child", "an umbrella"]),
        ("The dog [SEG] is on <p>the left mat</p>[SEG], near <Prompt0>.", ["The dog", "the left mat"]),
        ("She gives the man a hat.", ["the man", "a hat"]),
    ],
)
def test_texts_of_all_kinds_by_spacy(text: str, expected: list[str]) -> None:
    assert [text[first:end] for first, end in open_chunker()(text)] == expected
