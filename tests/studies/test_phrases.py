"""Noun phrases by rules, against spaCy's rule on sentences that are tagged by hand, and against spaCy where it is."""

from __future__ import annotations

import pytest

from pixel_sail.studies.attend_segment.phrases import by_rules, by_spacy, open_chunker, spacy_model, used

# Word/part of speech/dependency/head (a place in the sentence from 1; 0: the root), by hand, in Universal tags and
# spaCy's English labels. What has no slashes is a mark; it has a place and hangs at the word before it.
TAGGED = """
The/DET/det/4 small/ADJ/amod/4 brown/ADJ/amod/4 dog/NOUN/nsubj/5 sits/VERB/ROOT/0 on/ADP/prep/5 the/DET/det/8 grass/NOUN/pobj/6 .
A/DET/det/2 man/NOUN/ROOT/0 riding/VERB/acl/2 a/DET/det/6 red/ADJ/amod/6 bicycle/NOUN/dobj/3 down/ADP/prep/3 the/DET/det/9 street/NOUN/pobj/7 .
There/PRON/expl/2 are/VERB/ROOT/0 two/NUM/nummod/4 cats/NOUN/attr/2 on/ADP/prep/4 the/DET/det/8 wooden/ADJ/amod/8 table/NOUN/pobj/5 and/CCONJ/cc/4 a/DET/det/11 dog/NOUN/conj/4 .
The/DET/det/2 butterfly/NOUN/poss/4 's/PART/case/2 wings/NOUN/nsubj/5 are/AUX/ROOT/0 open/ADJ/acomp/5 .
It/PRON/nsubj/2 has/VERB/ROOT/0 a/DET/det/7 large/ADJ/amod/7 , round/ADJ/amod/7 body/NOUN/dobj/2 with/ADP/prep/7 black/ADJ/amod/12 and/CCONJ/cc/9 white/ADJ/conj/9 stripes/NOUN/pobj/8 .
Her/PRON/poss/2 hair/NOUN/nsubj/3 is/AUX/ROOT/0 tied/VERB/acomp/3 in/ADP/prep/4 a/DET/det/8 very/ADV/advmod/8 long/ADJ/amod/9 braid/NOUN/pobj/5 .
The/DET/det/3 traffic/NOUN/compound/3 light/NOUN/nsubj/4 shows/VERB/ROOT/0 green/ADJ/acomp/4 .
In/ADP/prep/7 the/DET/det/3 image/NOUN/pobj/1 , we/PRON/nsubj/7 can/AUX/aux/7 see/VERB/ROOT/0 the/DET/det/10 coffee/NOUN/compound/10 cup/NOUN/dobj/7 that/PRON/nsubj/12 stands/VERB/relcl/10 near/ADP/prep/12 the/DET/det/15 window/NOUN/pobj/13 .
All/DET/predet/3 the/DET/det/3 apples/NOUN/nsubj/5 are/AUX/aux/5 lying/VERB/ROOT/0 in/ADP/prep/5 the/DET/det/8 bowl/NOUN/pobj/6 .
The/DET/det/3 running/VERB/amod/3 child/NOUN/nsubj/4 holds/VERB/ROOT/0 an/DET/det/6 umbrella/NOUN/dobj/4 , which/PRON/nsubj/9 protects/VERB/relcl/6 him/PRON/dobj/9 from/ADP/prep/9 the/DET/det/13 rain/NOUN/pobj/11 .
The/DET/det/2 building/NOUN/nsubj/8 behind/ADP/prep/2 the/DET/det/5 trees/NOUN/pobj/3 is/AUX/aux/8 being/AUX/auxpass/8 painted/VERB/ROOT/0 .
Its/PRON/poss/2 ears/NOUN/nsubj/4 are/AUX/ROOT/0 pointed/ADJ/acomp/3 , and/CCONJ/cc/3 the/DET/det/8 tip/NOUN/nsubj/12 of/ADP/prep/8 its/PRON/poss/11 tail/NOUN/pobj/9 is/AUX/conj/3 white/ADJ/acomp/12 .
A/DET/det/2 group/NOUN/nsubj/5 of/ADP/prep/2 people/NOUN/pobj/3 stand/VERB/ROOT/0 around/ADP/prep/5 a/DET/det/8 table/NOUN/pobj/6 eating/VERB/advcl/5 pizza/NOUN/dobj/9 .
The/DET/det/2 one/NOUN/nsubj/6 on/ADP/prep/2 the/DET/det/5 left/NOUN/pobj/3 looks/VERB/ROOT/0 older/ADJ/acomp/6 .
This/DET/det/2 picture/NOUN/nsubj/3 shows/VERB/ROOT/0 a/DET/det/7 glass/NOUN/compound/7 coffee/NOUN/compound/7 table/NOUN/dobj/3 next/ADV/advmod/3 to/ADP/prep/8 some/DET/det/12 old/ADJ/amod/12 books/NOUN/pobj/9 .
"""  # noqa: E501
NOUN_LABELS = {"oprd", "nsubj", "dobj", "nsubjpass", "pcomp", "pobj", "dative", "appos", "attr", "ROOT"}


def sentences() -> list[tuple[str, list[tuple[str, str, str, int]]]]:
    """(text, [(word, part of speech, dependency, head from 0; its own place: the root)])."""
    found = []
    for line in TAGGED.strip().splitlines():
        words: list[tuple[str, str, str, int]] = []
        for item in line.split():
            word, *tags = item.split("/")
            if tags:
                head = int(tags[2]) - 1
                words.append((word, tags[0], tags[1], len(words) if head < 0 else head))
            else:
                words.append((word, "PUNCT", "punct", max(0, len(words) - 1)))
        text = " ".join(word for word, *_ in words)
        found.append((text.replace(" ,", ",").replace(" .", ".").replace(" 's", "'s"), words))
    return found


def spacy_chunks(words: list[tuple[str, str, str, int]]) -> list[str]:
    """What spaCy's rule makes of tags: a noun with a nominal role, or coordinated with one, from its leftmost word on.

    Without pronouns, as our spaCy backend leaves them out.
    """
    chunks, last = [], -1
    for i, (_, part, label, head) in enumerate(words):
        left = min((j for j in range(len(words)) if part != "PUNCT" and _under(words, j, i)), default=i)
        if part not in ("NOUN", "PROPN", "PRON") or left <= last:
            continue
        while label == "conj" and words[head][2] == "conj" and words[head][3] < head:
            head = words[head][3]
        if label in NOUN_LABELS or (label == "conj" and words[head][2] in NOUN_LABELS):
            last = i
            if part != "PRON":
                chunks.append(
                    " ".join(word for word, *_ in words[left : i + 1]).replace(" ,", ",").replace(" 's", "'s")
                )
    return chunks


def _under(words: list[tuple[str, str, str, int]], j: int, i: int) -> bool:
    """Whether word j is i or hangs below it."""
    for _ in words:
        if j == i:
            return True
        j = words[j][3]
    return False


@pytest.mark.parametrize(("text", "words"), sentences(), ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_rules_agree_with_spacys_rule(text: str, words: list[tuple[str, str, str, int]]) -> None:
    assert [text[first:end] for first, end in by_rules(text)] == spacy_chunks(words)


def test_the_rule_of_the_reference() -> None:
    """The reference itself, by hand."""
    expected = ["The small brown dog", "the grass"], ["A man", "a red bicycle", "the street"]
    assert tuple(spacy_chunks(words) for _, words in sentences()[:2]) == expected
    with_pronouns_and_owner = [spacy_chunks(words) for _, words in sentences()[3:5]]
    assert with_pronouns_and_owner == [["The butterfly's wings"], ["a large, round body", "black and white stripes"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is [SEG].", []),
        ("", []),
        ("(a)", []),
        ("Yes.", []),
        ("The dog [SEG] is on <p>the left mat</p>[SEG], near <Prompt0>.", ["The dog", "the left mat"]),
        ("  two\nred mugs ", ["two\nred mugs"]),
        ("The café's old sign, and Zoë’s hat.", ["The café's old sign", "Zoë’s hat"]),
        ("a black-and-white t-shirt", ["a black-and-white t-shirt"]),
        ("!!! ??? 😀", []),
        ("She gives the man a hat.", ["the man", "a hat"]),
        ("The dog's two very long ears", ["The dog's two very long ears"]),
        ("The mug is the dog's.", ["The mug", "the dog"]),
        ("A soft, warm, and red hat, blue", ["A soft, warm, and red hat"]),
        ("red, " * 300, []),  # what a model says that does not stop
        ("a red, " * 300 + "hat", ["hat"]),
    ],
)
def test_texts_of_all_kinds(text: str, expected: list[str]) -> None:
    assert [text[first:end] for first, end in by_rules(text)] == expected


def test_which_chunker_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixel_sail.studies.attend_segment.phrases.spacy_model", lambda: None)
    assert open_chunker("auto") is by_rules and used("auto") == "rules"
    with pytest.raises(ValueError, match="need 'pip install pixel_sail\\[phrases\\]' and an English model"):
        open_chunker("spacy")
    with pytest.raises(ValueError, match="unknown chunker 'nltk'"):
        open_chunker("nltk")


def test_rules_agree_with_spacy_itself() -> None:
    model = spacy_model()
    if model is None:
        pytest.skip("needs spaCy and an English model of it (pip install 'pixel_sail[phrases]', en_core_web_sm)")
    texts = [text for text, _ in sentences()]
    ours, theirs = ({(text, *span) for text in texts for span in chunk(text)} for chunk in (by_rules, _by(model)))
    assert 2 * len(ours & theirs) / (len(ours) + len(theirs)) > 0.9


def _by(model: str):
    return lambda text: by_spacy(text, model)
