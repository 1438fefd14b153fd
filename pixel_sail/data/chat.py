"""The text of questions and answers for a language model: three chat formats, one rule for the labels.

Every format turns a conversation into pieces of text that are tokenized separately: what the user says (no labels), and
the answer with the token that ends it (labels).
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pixel_sail.tokens import GROUNDING_TOKENS

FORMATS = ("research", "inst", "template")


@dataclass(frozen=True)
class ChatFormat:
    """`before(i, question)` is the text between the last answer and the next; `end` closes an answer and is learned."""

    name: str
    end: str
    _first: tuple[str, str]  # text around the first question
    _next: tuple[str, str]  # text around every later question
    lead: str = ""  # white space between a question and its answer

    @classmethod
    def of(cls, name: str, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """The format `name`; `auto` is the tokenizer's own chat template if it has one, else research.

        Raises ValueError for an unknown name, or a tokenizer that lacks what the format needs.
        """
        if name == "auto":
            name = "template" if tokenizer.chat_template else "research"
        if name == "research":
            around = ("<|im_start|>user\n", "<|im_end|>\n")
            return cls(name, "<|endoftext|>", around, around)
        if name == "inst":
            bos, eos = tokenizer.bos_token, tokenizer.eos_token
            if not bos or not eos:
                raise ValueError("the chat format 'inst' needs a tokenizer with bos and eos tokens")
            return cls(name, eos, (f"{bos}[INST] ", " [/INST]"), ("[INST] ", " [/INST]"))
        if name == "template":
            return cls(name, *_from_template(tokenizer))
        raise ValueError(f"unknown chat format {name!r}; known: auto, {', '.join(FORMATS)}")

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


def _from_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[str, str], tuple[str, str], str]:
    """Takes a chat template apart by applying it to two turns of marked text."""
    marks = ["QUESTION-ONE", "ANSWER-ONE", "QUESTION-TWO", "ANSWER-TWO"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; use chat_format research or inst")
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    pieces, rest = [], whole
    for mark in marks:
        piece, separator, rest = rest.partition(mark)
        if not separator:
            raise ValueError(f"the tokenizer's chat template changes the text of the message {mark!r}")
        pieces.append(piece)
    end = rest.rstrip("\n")
    first = (pieces[0], asked.partition(marks[0])[2])
    lead = pieces[1].removeprefix(first[1])
    if first[1] + lead != pieces[1] or lead.strip() or not pieces[2].startswith(end) or not pieces[3].endswith(lead):
        raise ValueError(
            "the tokenizer's chat template cannot be continued turn by turn; use chat_format research or inst"
        )
    return end, first, (pieces[2][len(end) :], pieces[3].removesuffix(lead)), lead
