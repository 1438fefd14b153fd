"""How PixFoundation's questions are put to a model: several wordings each, since scores depend on them."""

from __future__ import annotations

from collections.abc import Sequence

from pixel_sail.data.templates import CHOOSE, QUESTIONS, choose, question
from pixel_sail.evaluate.pixfoundation.objects import PixObject

VQA = CHOOSE
_GROUNDING = QUESTIONS[:4]
NO_EXPRESSION = "None"  # said in place of an expression, as the annotation has it and the published scripts do

JUDGE = (
    "Somebody was asked a question about a picture that you do not see, and answered in free words. Tell which of the "
    "options the answer means.\nQuestion: {question}\nOptions: {options}\nAnswer: {answer}\n"
    "Reply with the letter of that option in parentheses and nothing else; reply (none) if it means none of them or "
    "more than one."
)


def vqa_prompts(one: PixObject) -> list[str]:
    """One prompt for each of `VQA`; none where there is no question."""
    return [choose(one.question, one.options, template) for template in VQA] if one.question else []


def grounding_templates(own: str) -> tuple[str, ...]:
    """Three: `own`, the wording that a model was tested with so far, and the first others."""
    return (own, *(template for template in _GROUNDING if template != own))[:3]


def grounding_prompts(expression: str, templates: Sequence[str]) -> list[str]:
    """One request for the mask of `expression` for each template."""
    return [question(expression, template) for template in templates]


def judge_prompt(asked: str, options: Sequence[str], answer: str) -> str:
    """What a judge is asked: it is not told which option is right."""
    return JUDGE.format(question=asked, options=choose("", options).strip(), answer=answer)
