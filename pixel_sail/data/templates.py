"""The wordings of questions and answers; the first of each list is canonical and is used at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

from pixel_sail.config import ConfigError, DataConfig
from pixel_sail.tokens import SEG
from pixel_sail.types import Turn

EXPRESSION = "{expression}"

# None of these says whether one, several or no object is meant, because gRefCOCO asks the same questions.
QUESTIONS = (
    "Can you segment {expression} in this image?",
    "Please segment {expression} in the picture.",
    "Show me the mask of {expression}.",
    "Find {expression} and outline it.",
    "Which pixels belong to {expression}?",
    "Mark {expression} in this photo, please.",
    "I am looking for {expression}. Where in the image?",
    "Segment: {expression}.",
)
ANSWERS = ("It is [SEG].", "Sure, [SEG].", "Here it is: [SEG].", "The mask is [SEG].")
ANSWERS_SEVERAL = ("They are [SEG].", "Sure, all of them: [SEG].", "Here they are: [SEG].")  # one united mask
ANSWERS_NONE = (
    "There is no such object in the image.",
    "Nothing in the image matches that.",
    "I cannot find that here.",
)

PROMPT = "{prompt}"
CLASSES = "{classes}"

# Questions about a prompted region.
DESCRIBE = (
    "Describe {prompt} in detail.",
    "Please give a detailed description of {prompt}.",
    "What can you say about {prompt}? Answer in detail.",
    "Can you describe {prompt} in detail?",
)
TELL_APART = (
    "Write a short phrase that tells {prompt} apart.",
    "Which short phrase refers to {prompt} only?",
    "Refer to {prompt} in a few words, so that it cannot be mistaken.",
)
CLASSIFY = (
    "What is {prompt}? Choose from: {classes}.",
    "To which of these classes does {prompt} belong: {classes}?",
    "Name the class of {prompt}. The choices are: {classes}.",
)
# Questions for every object of a class, one mask each; the wordings differ from those for one mask.
QUESTIONS_EACH = (
    "Segment each {expression} in this image with a mask of its own.",
    "Give me one mask for every single {expression}.",
    "Mark every {expression} separately.",
    "Which pixels belong to each {expression}? Answer object by object.",
)
EACH = f"each {EXPRESSION}"
# Requests after a question that is a whole sentence.
QUESTIONS_REASON = (
    "{expression} Please answer with a segmentation mask.",
    "{expression} Show me the mask.",
    "{expression} Mark it in the image.",
)
# The same, where the answer also says why.
QUESTIONS_EXPLAINED = (
    "{expression} Please answer with a segmentation mask, and explain why.",
    "{expression} Show me the mask and give the reason.",
    "{expression} Mark it in the image and say why.",
)
GROUNDED_CAPTION = (
    "Describe this image, and mark with a mask what you mention.",
    "Give a description of the image with a segmentation mask for each thing that you name.",
    "What does this image show? Please outline the things that your answer speaks of.",
    "Write a caption for this picture in which every phrase about an object comes with its mask.",
)
# Before the caption of a whole image. They are short, because they come before hundreds of millions of captions.
CAPTION = ("Describe this image.", "What does this image show?", "Write a caption for this image.")
# Multiple choice about an image; the options are written "(a) red (b) blue".
CHOOSE = (
    "{question} {options}",
    "{question}\n{options}\nAnswer with the right option.",
    "Look at the image and choose: {options}. {question}",
)
OTHERS = "others"  # the last choice: the answer if the true class is not offered
NOT_DRAWN = "{prompt} is not in the image."  # the answer about a prompt that is named but not drawn

HIDDEN_EXPRESSION = "it"  # read by the text-blind baseline instead of the expression


def question(expression: str, template: str = QUESTIONS[0]) -> str:
    """The template with the expression in place; braces in the expression stay."""
    return template.replace(EXPRESSION, expression)


def instance_questions(questions: Sequence[str] | None) -> tuple[str, ...]:
    """How every instance is asked for by a model that is taught `questions` (None: QUESTIONS).

    A model with words of its own hears "each" before the expression: a small one knows few words, and learns this one
    sooner than a sentence.
    """
    if not questions or questions[0] == QUESTIONS[0]:
        return QUESTIONS_EACH
    return tuple(question(EACH, template) for template in questions)


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def about(region: str, template: str) -> str:
    """The template with a region's name, for example <Prompt0>, in place."""
    return template.replace(PROMPT, region)


def classify(region: str, classes: Sequence[str], template: str = CLASSIFY[0]) -> str:
    """Asks for the class of a region; "others" is added as the last choice."""
    return about(region, template).replace(CLASSES, ", ".join((*classes, OTHERS)))


def choose(asked: str, options: Sequence[str], template: str = CHOOSE[0]) -> str:
    """A question with its options, marked (a), (b), ..."""
    marked = " ".join(f"({letter}) {text}" for letter, text in zip(ascii_lowercase, options, strict=False))
    return template.format(question=asked, options=marked)


@dataclass(frozen=True)
class Templates:
    """The wordings of one run."""

    questions: tuple[str, ...] = QUESTIONS
    answers: tuple[str, ...] = ANSWERS
    answers_several: tuple[str, ...] = ANSWERS_SEVERAL
    answers_none: tuple[str, ...] = ANSWERS_NONE
    questions_each: tuple[str, ...] = QUESTIONS_EACH
    hide_expression: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> Templates:
        """The defaults, or `data.questions` and `data.answers` (also for several objects; no-target answers stay)."""
        for name, templates, needed in (("questions", data.questions, EXPRESSION), ("answers", data.answers, SEG)):
            bad = [template for template in templates or () if template.count(needed) != 1]
            if bad or templates == []:
                raise ConfigError(f"data.{name}: each template holds {needed} exactly once, got {bad or 'no template'}")
        return cls(
            questions=tuple(data.questions or QUESTIONS),
            answers=tuple(data.answers or ANSWERS),
            answers_several=tuple(data.answers or ANSWERS_SEVERAL),
            hide_expression=data.hide == "text",
        )

    def turn(self, expression: str, targets: int, rng: np.random.Generator) -> Turn:
        """A question drawn by `rng` and an answer for `targets` objects (0: no [SEG])."""
        answers = (self.answers_none, self.answers)[targets] if targets < 2 else self.answers_several
        asked = HIDDEN_EXPRESSION if self.hide_expression else expression
        return Turn(
            question=question(asked, self.questions[rng.integers(len(self.questions))]),
            answer=answers[rng.integers(len(answers))],
        )

    def each(self, expression: str, targets: int, rng: np.random.Generator) -> Turn:
        """A question about every object that an expression names; the answer has a [SEG] for each of `targets`."""
        answers = (self.answers_none, self.answers)[targets] if targets < 2 else self.answers_several
        asked = HIDDEN_EXPRESSION if self.hide_expression else expression
        return Turn(
            question=question(asked, self.questions_each[rng.integers(len(self.questions_each))]),
            answer=answers[rng.integers(len(answers))].replace(SEG, listed([SEG] * max(targets, 1))),
        )

    def reason(self, asked: str, rng: np.random.Generator, questions: tuple[str, ...] = QUESTIONS_REASON) -> Turn:
        """A question that is a whole sentence, with a request for a mask; the answer has one [SEG]."""
        asked = HIDDEN_EXPRESSION if self.hide_expression else asked
        return Turn(
            question=question(asked, questions[rng.integers(len(questions))]),
            answer=self.answers[rng.integers(len(self.answers))],
        )
