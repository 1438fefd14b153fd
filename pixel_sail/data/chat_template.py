"""Apply the chat template of a tokenizer: a program that somebody else wrote, so with limits and with a fixed date.

jinja's sandbox bounds neither time nor memory: a template runs in a process of its own (render_template.py), a tenth of
a second. Some templates write the date of today, which would change what a model is asked from one day to the next:
here every day is FIXED_DATE. Templates of models that can think before they answer (Qwen3's) are asked for an answer
without: no data of ours has thoughts.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.errors import UserError

FIXED_DATE = "2024-07-26"  # what Llama's templates write where they do not know the date
OTHER_DATE = "2031-12-03"
DATE_FUNCTION = "strftime_now"  # the only one that tells a template the date

MAX_TEMPLATE_CHARACTERS = 500_000  # the longest published ones have 20,000
MAX_TEXT_CHARACTERS = 500_000  # of a rendered conversation, beside the messages themselves
MAX_SECONDS = 5  # of computing
MAX_WAIT_S = 120  # for a machine that is busy with other things
MAX_MEMORY_BYTES = 2**30

Messages = list[dict[str, Any]]


class TemplateError(UserError):
    """A chat template that cannot be applied or taken apart."""


def applied(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[tuple[Messages, bool]], date: str = FIXED_DATE
) -> list[str]:
    """The text of each chat, as `apply_chat_template` writes it.

    A chat: messages, and whether the beginning of an answer follows them. Raises TemplateError for a template that
    fails or exceeds a limit.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TemplateError(f"the tokenizer's chat template cannot be used: {error}") from None
    return rendered(template, tokenizer.special_tokens_map, chats, date)


def rendered(
    template: Any, special_tokens: dict[str, Any], chats: Sequence[tuple[Messages, bool]], date: str = FIXED_DATE
) -> list[str]:
    """As `applied`, for a template from elsewhere."""
    if not isinstance(template, str):
        raise TemplateError(f"the tokenizer's chat template is a {type(template).__name__}, not a text")
    constant = {"tools": None, "documents": None, "enable_thinking": False, **special_tokens}
    calls = [constant | {"messages": messages, "add_generation_prompt": begun} for messages, begun in chats]
    return list(_rendered(template, json.dumps(calls, default=str), date))


@functools.lru_cache(maxsize=64)
def _rendered(template: str, calls: str, date: str) -> tuple[str, ...]:
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise TemplateError(
            f"the tokenizer's chat template has {len(template):,} characters; {MAX_TEMPLATE_CHARACTERS:,} are accepted"
        )
    request: dict[str, Any] = {
        "template": template,
        "date": date,
        "seconds": MAX_SECONDS,
        "memory_bytes": MAX_MEMORY_BYTES,
        "characters": MAX_TEXT_CHARACTERS + len(calls),
        "calls": json.loads(calls),
    }
    # -P: the folder of the script, whose files have names of their own, is not searched for modules
    command = [sys.executable, "-P", str(Path(__file__).with_name("render_template.py"))]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, encoding="utf-8", timeout=MAX_WAIT_S
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(f"the tokenizer's chat template does not end within {MAX_WAIT_S} s") from None
    if done.returncode < 0:
        raise TemplateError(
            f"the tokenizer's chat template was stopped: it computes longer than {MAX_SECONDS} s or takes more than "
            f"{MAX_MEMORY_BYTES:,} bytes"
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise TemplateError(f"the tokenizer's chat template breaks its reader: {done.stderr[-300:]}") from None
    if "error" in answer:
        raise TemplateError(f"the tokenizer's chat template cannot be applied: {answer['error']}")
    return tuple(answer["texts"])
