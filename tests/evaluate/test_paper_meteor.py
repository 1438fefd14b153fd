"""The METEOR of PerBench's authors: NLTK's, with prediction and reference exchanged."""

from __future__ import annotations

import importlib.util

import pytest

from pixel_sail.evaluate import paper_meteor
from pixel_sail.evaluate.paper_meteor import missing_requirement

needs_wordnet = pytest.mark.skipif(missing_requirement() is not None, reason=str(missing_requirement()))


def meteor(matches: int, prediction_words: int, reference_words: int, chunks: int) -> float:
    """Banerjee and Lavie 2005 with NLTK's alpha 0.9, beta 3, gamma 0.5; the prediction stands for the reference."""
    precision, recall = matches / reference_words, matches / prediction_words
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return 100 * mean * (1 - 0.5 * (chunks / matches) ** 3)


@needs_wordnet
@pytest.mark.parametrize(
    ("prediction", "reference", "counts"),
    [
        ("a red mug", "a red mug", (3, 3, 3, 1)),
        ("a red mug on the table", "a red mug", (3, 6, 3, 1)),  # a long prediction costs recall: 0.9 of the weight
        ("a red mug", "a red mug on the table", (3, 3, 6, 1)),
        ("A Red Mug", "a red mug", (3, 3, 3, 1)),  # in lower case
        ("red mug.", "red mug", (1, 2, 2, 1)),  # tokens end at white space only
        ("two dogs", "two dog", (2, 2, 2, 1)),  # by their stems
        ("a car", "a auto", (2, 2, 2, 1)),  # by WordNet
        ("a car", "a automobile", (1, 2, 2, 1)),  # NLTK looks words up by their stems, and "automobil" is no word
        ("mug red", "red mug", (2, 2, 2, 2)),  # out of order: two chunks
    ],
)
def test_closed_form(prediction: str, reference: str, counts: tuple[int, int, int, int]) -> None:
    assert paper_meteor.paper_meteor([prediction], [reference])["meteor"] == pytest.approx(meteor(*counts))


@needs_wordnet
def test_the_mean_over_captions_and_nothing_in_common() -> None:
    both = paper_meteor.paper_meteor(["a red mug", "sky"], ["a red mug", "a dog"])["meteor"]
    assert both == pytest.approx(meteor(3, 3, 3, 1) / 2)
    assert paper_meteor.paper_meteor([], []) == {"meteor": None}
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        paper_meteor.paper_meteor(["a"], ["a", "b"])


def test_without_wordnet_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("nltk") is None:
        assert "install NLTK" in missing_requirement()
        return
    monkeypatch.setattr(paper_meteor, "_wordnet", lambda: None)
    assert "Install Debian's package wordnet-base" in missing_requirement()
    assert paper_meteor.paper_meteor(["a red mug"], ["a red mug"])["meteor"] is None
