"""The text of questions and answers for a language model: three chat formats, one rule for the labels.

Every format turns a conversation into pieces of text that are tokenized separately: what the user says (no labels), and
the answer with the token that ends it (labels).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.data.chat_template import DATE_FUNCTION, OTHER_DATE, TemplateError, applied
from pixel_sail.tokens import GROUNDING_TOKENS

FORMATS = ("research", "inst", "template")
_THOUGHT = re.compile(r"<think>\s*</think>\s*")  # an empty one


@dataclass(frozen=True)
class ChatFormat:
    """`before(i, question)` is the text between the last answer and the next; `end` closes an answer and is learned."""

    name: str
    end: str
    _first: tuple[str, str]  # text around the first question
    _next: tuple[str, str]  # text around every later question
    lead: str = ""  # white space between a question and its answer

    @classmethod
    def of(cls, name: str, tokenizer: PreTrainedTokenizerBase, pieces: dict[str, Any] | None = None) -> ChatFormat:
        """The format `name`; `auto` is the tokenizer's own chat template if it has one, else research.

        `pieces`: those that an earlier ChatFormat of the name `template` gave; the template is then not applied again.
        Raises UserError for an unknown name, a tokenizer that lacks what the format needs, and pieces that are none.
        """
        if name == "auto":
            name = "template" if tokenizer.chat_template else "research"
        if name == "research":
            around = ("<|im_start|>user\n", "<|im_end|>\n")
            return cls(name, "<|endoftext|>", around, around)
        if name == "inst":
            bos, eos = tokenizer.bos_token, tokenizer.eos_token
            if not bos or not eos:
                raise TemplateError("the chat format 'inst' needs a tokenizer with bos and eos tokens")
            return cls(name, eos, (f"{bos}[INST] ", " [/INST]"), ("[INST] ", " [/INST]"))
        if name == "template":
            try:
                return cls(name, *(_from_template(tokenizer) if pieces is None else _from_pieces(pieces)))
            except TemplateError as error:
                raise TemplateError(f"{tokenizer.name_or_path or 'the tokenizer'}: {error}") from None
        raise TemplateError(f"unknown chat format {name!r}; known: auto, {', '.join(FORMATS)}")

    @property
    def pieces(self) -> dict[str, Any] | None:
        """What config.json keeps of a template that was taken apart, see `of`; None for the other formats."""
        if self.name != "template":
            return None
        return {"first": list(self._first), "next": list(self._next), "lead": self.lead, "end": self.end}

    def before(self, turn: int, question: str) -> str:
        """The text that asks `question` as the turn-th of a conversation, up to where the answer begins."""
        start, stop = self._first if turn == 0 else self._next
        return f"{start}{question}{stop}"

    def answer(self, text: str) -> str:
        """The text that answers, without its `end`.

        The white space before an answer belongs to it and not to the question: its first word then gets the same token
        as anywhere else. A special token needs no white space.
        """
        return text if text.startswith(GROUNDING_TOKENS) else self.lead + text

    def read(self, generated: str) -> str:
        """The answer in the text that a model has generated after `before`."""
        return generated.removeprefix(self.lead)


Parts = tuple[str, tuple[str, str], tuple[str, str], str]  # end, around the first and later questions, lead


def _from_pieces(pieces: Any) -> Parts:
    """What `ChatFormat.pieces` gave, back from a config.json."""
    pairs = [pieces.get(key) for key in ("first", "next")] if isinstance(pieces, dict) else [None]
    texts = [text for pair in pairs if isinstance(pair, list) and len(pair) == 2 for text in pair]
    texts += [pieces.get(key) for key in ("end", "lead")] if isinstance(pieces, dict) else []
    if len(texts) != 6 or not all(isinstance(text, str) for text in texts) or not texts[4] or texts[5].strip():
        raise TemplateError(
            "chat_pieces must have first and next (the two texts around a question), end (a text) and lead (white "
            "space); remove it from config.json, and the tokenizer's chat template is taken apart again"
        )
    return texts[4], (texts[0], texts[1]), (texts[2], texts[3]), texts[5]


def _from_template(tokenizer: PreTrainedTokenizerBase) -> Parts:
    """Takes a chat template apart by applying it to two turns of marked text, and to the question of each.

    The text between a question and its answer is the one that the template asks with, in every turn. Some templates
    leave an empty thought out of it once the answer has been given, and would train the answers of one conversation
    behind different texts, of which only one is ever asked.
    """
    marks = ["QUESTION-ONE", "ANSWER-ONE", "QUESTION-TWO", "ANSWER-TWO"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    if not tokenizer.chat_template:
        raise TemplateError("the tokenizer has no chat template; use chat_format research or inst")
    chats = [(messages[:1], True), (messages[:3], True), (messages, False)]
    texts = applied(tokenizer, chats)
    if DATE_FUNCTION in tokenizer.get_chat_template() and texts != applied(tokenizer, chats, OTHER_DATE):
        print("note: the chat template writes the date of the day; a fixed date is written instead", file=sys.stderr)
    start, asked = _cut(texts[0], marks[:1])
    asked_again = _cut(texts[1], marks[:3])[-1]
    pieces = _cut(texts[2], marks)
    end = pieces.pop().rstrip("\n")
    if not end:
        raise TemplateError(
            "the tokenizer's chat template writes nothing that ends an answer; use chat_format research or inst"
        )
    if asked_again != asked:
        raise TemplateError(
            f"the tokenizer's chat template asks the first question with {asked!r:.100} before the answer and the next "
            f"with {asked_again!r:.100}; one text in every turn is expected: use chat_format research or inst"
        )
    lead = pieces[3].removeprefix(asked)
    known = (asked + lead, _THOUGHT.sub("", asked + lead))
    whole = start == pieces[0] and asked + lead == pieces[3] and pieces[1] in known
    if not whole or lead.strip() or not pieces[2].startswith(end):
        raise TemplateError(
            "the tokenizer's chat template cannot be continued turn by turn; use chat_format research or inst"
        )
    return end, (start, asked), (pieces[2][len(end) :], asked), lead


def _cut(text: str, marks: list[str]) -> list[str]:
    """The texts before, between and after `marks`. Raises TemplateError if one is missing."""
    pieces = []
    for mark in marks:
        piece, separator, text = text.partition(mark)
        if not separator:
            raise TemplateError(f"the tokenizer's chat template changes the text of the message {mark!r}")
        pieces.append(piece)
    return [*pieces, text]
