"""The prompts of PixFoundation: several wordings of each question and request, since scores depend on the wording."""

from __future__ import annotations

from collections.abc import Sequence

from pixel_sail.data.templates import QUESTIONS, choose, question
from pixel_sail.evaluate.pixfoundation.objects import PixObject

_GROUNDING = QUESTIONS[:4]
NO_EXPRESSION = "None"  # stands for a missing expression, as in the annotation and the published scripts

JUDGE = (
    "Somebody was asked a question about a picture that you do not see, and answered in free words. Tell which of the "
    "options the answer means.\nQuestion: {question}\nOptions: {options}\nAnswer: {answer}\n"
    "Reply with the letter of that option in parentheses and nothing else; reply (none) if it means none of them or "
    "more than one."
)


def vqa_prompts(case: PixObject, templates: Sequence[str]) -> list[str]:
    """One prompt for each template; empty if the case has no question."""
    return [choose(case.question, case.options, template) for template in templates] if case.question else []


def grounding_templates(own: str) -> tuple[str, ...]:
    """Three templates: `own`, the template of the model's config, and the first two others."""
    return (own, *(template for template in _GROUNDING if template != own))[:3]


def grounding_prompts(expression: str, templates: Sequence[str]) -> list[str]:
    """One request for the mask of `expression` for each template."""
    return [question(expression, template) for template in templates]


def judge_prompt(question_text: str, options: Sequence[str], answer: str) -> str:
    """The prompt of a judge, which does not say which option is right."""
    return JUDGE.format(question=question_text, options=choose("", options).strip(), answer=answer)
