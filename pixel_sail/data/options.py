"""Multiple choice: the options in the text of a question, and the option that an answer chooses."""

from __future__ import annotations

import re
from string import ascii_uppercase

_MARK = r"\(([A-Z])\)|(?<![\w.])([A-Z])[.)]"  # "(A)", "A." or "A)", but not the end of "U.S.A."
_AT_LINE_START = re.compile(rf"^[ \t]*(?:{_MARK})", re.MULTILINE)
_ANYWHERE = re.compile(_MARK)


def parse_options(question: str) -> dict[str, str]:
    """ "What is it?\\nA. a cup\\nB. a plate" -> {"A": "a cup", "B": "a plate"}; empty without options.

    Options are marked "A. x", "A) x" or "(A) x": two or more, from A on, without a gap. Each is on its own line (and
    ends with it), or they follow each other. If such a row could begin in several places, the longest counts; of
    equally long ones, the last.
    """
    options = _between(question, _row(list(_AT_LINE_START.finditer(question))))
    if options:
        return {letter: text.splitlines()[0].strip() for letter, text in options.items()}
    return _between(question, _row(list(_ANYWHERE.finditer(question))))


def stated_letter(answer: str, options: dict[str, str]) -> str | None:
    """The letter of an annotated answer: "B", "(B)", "B.", "B. red" or the text of an option; otherwise None."""
    said = answer.strip().casefold()
    for letter, text in options.items():
        marks = (letter, f"({letter})", f"{letter}.", f"{letter})")
        if said in {form.casefold() for form in (text, *marks, *(f"{mark} {text}" for mark in marks))}:
            return letter
    return None


def _row(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """The longest row of marks A, B, C, ... in order; the last of equally long ones. Empty for fewer than two."""
    best: list[re.Match[str]] = []
    for start in range(len(marks)):
        row: list[re.Match[str]] = []
        for mark in marks[start:]:
            if (mark[1] or mark[2]) == ascii_uppercase[len(row) : len(row) + 1]:
                row.append(mark)
        best = row if len(row) >= max(2, len(best)) else best
    return best


def _between(question: str, row: list[re.Match[str]]) -> dict[str, str]:
    """Letter -> the text up to the next mark; {} if one of the texts is empty."""
    ends = [mark.start() for mark in row[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip(" \t\n,;") for mark, end in zip(row, ends, strict=False)]
    return dict(zip(ascii_uppercase, texts, strict=False)) if all(texts) else {}


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """The letter that a free answer chooses; None if it chooses no option, or several.

    The rules, in this order: the answer is a letter or the text of an option; it has one marked letter ("(B)", "B.",
    "B)", "B:"); it contains the text of one option; it contains one letter as a word, not followed by a lower-case word
    (which would make "A" an article).
    """
    letter = stated_letter(answer, options)
    if letter is not None:
        return letter
    marked = {mark for mark in re.findall(r"(?<!\w)\(?([A-Z])[.):](?!\w)", answer) if mark in options}
    if marked:
        return marked.pop() if len(marked) == 1 else None
    said = answer.casefold()
    named = [key for key, text in options.items() if re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", said)]
    # An answer "dark red" contains "red" too, but does not mean it.
    named = [k for k in named if not any(k != o and options[k].casefold() in options[o].casefold() for o in named)]
    if named:
        return named[0] if len(named) == 1 else None
    bare = {word for word in re.findall(r"(?<!\w)([A-Z])(?!\w)(?!\s+[a-z])", answer) if word in options}
    return bare.pop() if len(bare) == 1 else None
