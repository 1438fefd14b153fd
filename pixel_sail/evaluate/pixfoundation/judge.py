"""A judge reads free answers that choose no option: a local model, or an endpoint that speaks OpenAI's protocol.

It sees the question, the options and the answer, and not which option is right. Every verdict is a line of a file
beside the predictions: {judge, prompt, reply, verdict}. What is there is not asked again.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase

from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate.pixfoundation.templates import judge_prompt
from pixel_sail.evaluate.pixfoundation.vqa import chosen_option

Reply = Callable[[str], str]  # prompt -> what the judge says

_TRIES = 4
_TIMEOUT_S = 120
_NONE = "none"


class JudgeError(RuntimeError):
    """The judge cannot be asked; the message says why. Verdicts given before are in the file."""


class Judge:
    """Verdicts of one judge, kept in `file`. `name` tells judges apart: those of another are not taken over."""

    def __init__(self, name: str, reply: Reply, file: Path) -> None:
        self.name = name
        self._reply = reply
        self._file = file
        self._known = {line["prompt"]: line["verdict"] for line in _read(file) if line["judge"] == name}

    def verdict(self, question: str, options: Sequence[str], answer: str) -> str | None:
        """The letter of the option that the answer means; None where it means none. Raises JudgeError."""
        prompt = judge_prompt(question, options, answer)
        if prompt not in self._known:
            said = self._reply(prompt)
            letter = chosen_option(said, options)
            verdict = _NONE if letter is None else letter
            line = {"judge": self.name, "prompt": prompt, "reply": said, "verdict": verdict}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._known[prompt] = verdict
        known = self._known[prompt]
        return known if known in ascii_lowercase[: len(options)] else None


def endpoint(url: str, model: str, key: str | None, wait_s: float = 2.0) -> Reply:
    """Asks `<url>/chat/completions`; `url` as in "https://host/v1". Too many requests and server errors are retried."""

    def reply(prompt: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        for attempt in range(1, _TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                    return str(json.load(response)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                problem, again = f"HTTP {error.code} {error.reason}", error.code == 429 or error.code >= 500
            except OSError as error:
                problem, again = str(error), True
            except (ValueError, LookupError, TypeError) as error:
                problem, again = f"its reply is no chat completion ({type(error).__name__}: {error})", False
            if not again or attempt == _TRIES:
                raise JudgeError(f"the judge {model} at {url} failed after {attempt} tries: {problem}")
            time.sleep(wait_s * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    return reply


def local_model(folder: Path, device: str) -> Reply:
    """Asks a Hugging Face model, text only; a language model or a multimodal one. It is loaded at the first question.

    Greedy, so that the same answer gets the same verdict.
    """
    loaded: list[Reply] = []

    def reply(prompt: str) -> str:
        if not loaded:
            loaded.append(_load(folder, device))
        return loaded[0](prompt)

    return reply


def _load(folder: Path, device: str) -> Reply:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    if not folder.is_dir():
        raise JudgeError(f"no folder {folder}: download a chat model there, for example Qwen2.5-7B-Instruct")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        multimodal = type(config) in AutoModelForImageTextToText._model_mapping
        kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        model = kind.from_pretrained(folder, local_files_only=True, dtype="auto").to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise JudgeError(f"{folder} cannot be loaded as a judge: {error}") from None

    @torch.inference_mode()
    def reply(prompt: str) -> str:
        text = prompt
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # a chat template writes the special tokens itself
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(device)
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return reply


def _read(file: Path) -> list[dict[str, str]]:
    """The verdicts of a file; a last line that a kill has torn is dropped, anything else that is none is an error."""
    if not file.is_file():
        return []
    rows = file.read_text(encoding="utf-8").split("\n")
    if rows[-1]:  # no newline: torn; cut it off, so that the next verdict starts a line of its own
        file.write_text("".join(row + "\n" for row in rows[:-1]), encoding="utf-8")
    found = []
    for number, row in enumerate(rows[:-1], start=1):
        try:
            line = json.loads(row)
            found.append({name: str(line[name]) for name in ("judge", "prompt", "reply", "verdict")})
        except (ValueError, TypeError, KeyError):
            raise DatasetError(f"{file}, line {number}: {row[:60]!r} is no verdict; move the file away") from None
    return found
