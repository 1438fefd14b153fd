"""The wordings in which the benchmarks of PixFoundation are asked: the published ones, or three that we train with.

The authors' protocol of 2026 has 10 wordings of the question and 7 of the request (github.com/MSiam/PixFoundation).
They are read from the dataset where its folder has them:

<root>/pixmmvp/prompt_templates.csv                 Index, Template: three {}, for question, options and instruction
<root>/pixmmvp/lang_grounding_prompt_templates.csv  Index, Template: one {}, for the expression

In the first file a | marks where a part ends, and \\n and \\t stand for a new line and a tab.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.templates import CHOOSE, EXPRESSION
from pixel_sail.evaluate.pixfoundation import pixmmvp

OWN = "own"  # pixmmvp:own
INSTRUCTION = "Answer with the option's letter from the given choices directly."  # that of the published scripts
_SLOT = "{}"
_QUESTIONS = (
    r"Ques:{}\n|{}\nInstruct:|{}\nAns:",
    r"{}\n|{}\n|{}\nAnswer:",
    "{} |{} |{}",
    "Question-{} |{}. |{}.Answer-",
    r"{}\t|{}\t|{}Answer::",
    "Question, {} |{}. |{}. Answer,",
    r"Q: {}\n|{}\n|{}\nA:",
    r"{}\t|{}\t|{}A:",
    "{}|{}|{}",
    r"Q::{}|{}\n|{}\nA::",
)
_REQUESTS = (  # the third and the fifth are the same, as published
    "Can you please segment {} in the given image",
    "Can you segment {} in this image?",
    "Can you identify {} in this image? (with grounding)",
    "Identify {} in the scene, with grounding.",
    "Can you identify {} in this image? (with grounding)",
    "Locate the {} and output a tight mask. If the object does not exist in the image dont generate any masks.",
    "Output mask for the {}.",
)


@dataclass(frozen=True)
class Wordings:
    questions: tuple[str, ...]  # with {question} and {options}
    requests: tuple[str, ...]  # with {expression}; empty: the template of the model's config and two others of ours


def read_wordings(root: Path, own: bool) -> Wordings:
    """The published wordings, or our own. Raises DatasetError for a file whose templates lack their {}."""
    if own:
        return Wordings(CHOOSE, ())
    folder = root / pixmmvp.KIND
    questions = _templates(folder / "prompt_templates.csv", _QUESTIONS, slots=3)
    requests = _templates(folder / "lang_grounding_prompt_templates.csv", _REQUESTS, slots=1)
    return Wordings(tuple(map(_question, questions)), tuple(request.replace(_SLOT, EXPRESSION) for request in requests))


def _templates(path: Path, published: tuple[str, ...], slots: int) -> tuple[str, ...]:
    if not path.is_file():
        return published
    templates = tuple(row["Template"] for row in pixmmvp.read_table(path, ("Index", "Template")))
    bad = [template for template in templates if template.count(_SLOT) != slots]
    if bad or not templates:
        raise DatasetError(f"{path}: a template has {slots} {_SLOT}, got {bad[0] if bad else 'no template'!r}")
    return templates


def _question(template: str) -> str:
    """A published template as one of ours: its parts joined, its marks for new lines and tabs replaced."""
    text = template.replace("|", "").replace("\\n", "\n").replace("\\t", "\t")
    for part in ("{question}", "{options}", INSTRUCTION):
        text = text.replace(_SLOT, part, 1)
    return text
