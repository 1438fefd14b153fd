"""Multiple choice: the options that stand in the text of a question."""

from __future__ import annotations

import re
from string import ascii_uppercase

_MARK = r"\(([A-Z])\)|(?<![\w.])([A-Z])[.)]"  # "(A)", "A." or "A)", but not the end of "U.S.A."
_AT_LINE_START = re.compile(rf"^[ \t]*(?:{_MARK})", re.MULTILINE)
_ANYWHERE = re.compile(_MARK)


def parse_options(question: str) -> dict[str, str]:
    """ "What is it?\\nA. a cup\\nB. a plate" -> {"A": "a cup", "B": "a plate"}; empty where there are no options.

    Options are marked "A. x", "A) x" or "(A) x", two or more from A on without a gap, each on a line of its own (then
    it ends with the line) or one after the other. Where such a row could begin in several places the longest counts,
    then the last.
    """
    options = _between(question, _row(list(_AT_LINE_START.finditer(question))))
    if options:
        return {letter: text.splitlines()[0].strip() for letter, text in options.items()}
    return _between(question, _row(list(_ANYWHERE.finditer(question))))


def stated_letter(answer: str, options: dict[str, str]) -> str | None:
    """The letter an annotated answer means: "B", "(B)", "B.", "B. red" or the option's text; None if it is none."""
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
    """Letter -> the text up to the next mark; nothing at all where one of them is empty."""
    ends = [mark.start() for mark in row[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip(" \t\n,;") for mark, end in zip(row, ends, strict=False)]
    return dict(zip(ascii_uppercase, texts, strict=False)) if all(texts) else {}


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """The letter that a free answer chooses, or None where it chooses none or several.

    In this order: the answer is a letter or an option's text; it has one marked letter ("(B)", "B.", "B)", "B:"); it
    contains the text of one option; it contains one letter as a word that no small word follows (as one does "A" cup).
    """
    letter = stated_letter(answer, options)
    if letter is not None:
        return letter
    marked = {found for found in re.findall(r"(?<!\w)\(?([A-Z])[.):](?!\w)", answer) if found in options}
    if marked:
        return marked.pop() if len(marked) == 1 else None
    said = answer.casefold()
    named = [key for key, text in options.items() if re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", said)]
    # "dark red" is said: "red" is contained, but not meant
    named = [k for k in named if not any(k != o and options[k].casefold() in options[o].casefold() for o in named)]
    if named:
        return named[0] if len(named) == 1 else None
    bare = {found for found in re.findall(r"(?<!\w)([A-Z])(?!\w)(?!\s+[a-z])", answer) if found in options}
    return bare.pop() if len(bare) == 1 else None
