"""The special tokens: add them to a tokenizer, look up their ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixel_sail.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VISION_START, VISION_PATCH, VISION_END = "<vision>", "<vpatch>", "</vision>"
SEG, PHRASE_START, PHRASE_END = "[SEG]", "<p>", "</p>"
MAX_PROMPTS = 15
PROMPTS = tuple(f"<Prompt{k}>" for k in range(MAX_PROMPTS))
NO_PROMPT = "<NO_Prompt>"  # the ids of research checkpoints count it; unused there
CLICK = NO_PROMPT  # stands for a click in a question to a model that takes them (architecture.clicks)

IMAGE_TOKENS = (VISION_START, VISION_PATCH, VISION_END)
# In the order of the research checkpoints, whose ids are consecutive from [SEG] on.
GROUNDING_TOKENS = (SEG, PHRASE_START, PHRASE_END, *PROMPTS, NO_PROMPT)

_PROMPT_NAME = re.compile(r"<Prompt(\d+)>")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens in one tokenizer."""

    vision_start: int
    vision_patch: int
    vision_end: int
    seg: int
    phrase_start: int
    phrase_end: int
    click: int
    prompts: tuple[int, ...]  # MAX_PROMPTS ids; prompts[k] is that of <PromptK>

    @property
    def all_ids(self) -> tuple[int, ...]:
        single = (self.vision_start, self.vision_patch, self.vision_end, self.seg, self.phrase_start, self.phrase_end)
        return (*single, *self.prompts)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Look up the ids. Raises UserError that names every special token that the tokenizer lacks."""
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (*IMAGE_TOKENS, *GROUNDING_TOKENS) if token not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer lacks the special tokens {missing}; call pixel_sail.tokens.add_special_tokens on it "
                "(tools/convert.py does) and save it beside the model"
            )
        ids = [vocabulary[token] for token in (*IMAGE_TOKENS, SEG, PHRASE_START, PHRASE_END, CLICK)]
        return cls(*ids, prompts=tuple(vocabulary[token] for token in PROMPTS))


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the missing special tokens in a fixed order and return their number. The embeddings must grow by as many."""
    present = tokenizer.get_vocab()
    missing = [token for token in (*IMAGE_TOKENS, *GROUNDING_TOKENS) if token not in present]
    return tokenizer.add_tokens(missing, special_tokens=True) if missing else 0


def prompt_names(text: str) -> list[int]:
    """The K of every <PromptK> in `text`, in order, with repetitions."""
    return [int(k) if len(k) < 10 else 10**9 for k in _PROMPT_NAME.findall(text)]  # int refuses thousands of digits
