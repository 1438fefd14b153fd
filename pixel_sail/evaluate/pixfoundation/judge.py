"""A judge reads free answers that choose no option: a local model, or an endpoint of OpenAI's protocol.

It sees the question, the options and the answer, but not which option is right. Every verdict is a line of a file
beside the predictions: {judge, prompt, reply, verdict}. A question with a verdict is not asked again. Where a reply is
read elsewhere (evaluate/judged.py), the verdict is empty.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_bytes
from pixel_sail.durable import append_json_line, write_json_lines
from pixel_sail.errors import UserError, WeightsError
from pixel_sail.evaluate.pixfoundation.templates import judge_prompt
from pixel_sail.evaluate.pixfoundation.vqa import chosen_option
from pixel_sail.files import parse_json

Reply = Callable[[str], str]  # prompt -> reply of the judge

_TRIES = 4
_TIMEOUT_S = 120
_MAX_BYTES = 4 * 2**20  # of a reply, which is a letter
_SHOWN_CHARACTERS = 300  # of what the other side says, in an error
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_NONE = "none"


class JudgeError(UserError):
    """The judge cannot be asked; the message says why. Earlier verdicts stay in the file."""


class Judge:
    """Verdicts of the judge `name`, kept in `file`. Verdicts of other judges in the file are not used."""

    def __init__(self, name: str, reply: Reply, file: Path) -> None:
        self.name = name
        self._reply = reply
        self._file = file
        own = [line for line in _read(file) if line["judge"] == name]
        self._known = {line["prompt"]: line["verdict"] for line in own}
        self._replies = {line["prompt"]: line["reply"] for line in own}

    def verdict(self, question: str, options: Sequence[str], answer: str) -> str | None:
        """The letter ("a", "b", ...) of the option that the answer means; None if it means no option. JudgeError."""
        prompt = judge_prompt(question, options, answer)
        if prompt not in self._known:
            reply = self._reply(prompt)
            verdict = chosen_option(reply, options) or _NONE
            self._keep(prompt, reply, verdict)
            self._known[prompt] = verdict
        verdict = self._known[prompt]
        return verdict if verdict in ascii_lowercase[: len(options)] else None

    def reply(self, prompt: str) -> str:
        """What the judge says to a prompt. JudgeError."""
        if prompt not in self._replies:
            self._replies[prompt] = self._reply(prompt)
            self._keep(prompt, self._replies[prompt], "")
        return self._replies[prompt]

    def _keep(self, prompt: str, reply: str, verdict: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(self._file, {"judge": self.name, "prompt": prompt, "reply": reply, "verdict": verdict})


def endpoint(url: str, model: str, key: str | None, wait_s: float = 2.0) -> Reply:
    """Asks `<url>/chat/completions`; `url` as in "https://host/v1". Retries after status 429 and server errors.

    The key goes to this host alone: no redirect is followed, and without TLS only to this machine. No message has it.
    Raises JudgeError for an address or a key that cannot be used.
    """
    key = (key or "").strip()
    _check_address(url, key)

    def reply(prompt: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)
        for attempt in range(1, _TRIES + 1):
            try:
                with opener.open(request, timeout=_TIMEOUT_S) as response:
                    return str(parse_json(_read_reply(response))["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                problem, again = _http_problem(error), error.code == 429 or error.code >= 500
            except (OSError, http.client.HTTPException) as error:
                problem, again = str(error) or type(error).__name__, True
            except (ValueError, LookupError, TypeError) as error:
                problem, again = f"its reply is no chat completion ({type(error).__name__}: {error})", False
            if not again or attempt == _TRIES:
                problem = problem.replace(key, "...") if key else problem
                raise JudgeError(
                    f"the judge {model} at {url} failed after {attempt} tries: {problem[:_SHOWN_CHARACTERS]}"
                )
            time.sleep(wait_s * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    return reply


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib sends the key wherever the answer points."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _check_address(url: str, key: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise JudgeError(f"--judge-url {url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise JudgeError(f"--judge-url {url!r} is no address as https://host/v1")
    if parts.username or parts.password:
        raise JudgeError("--judge-url has a user name or a password in it; give the key in a variable: --judge-key-env")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise JudgeError("the key of the judge has characters that no key has; look at the variable of --judge-key-env")
    if key and parts.scheme == "http" and host not in _THIS_MACHINE:
        raise JudgeError(f"the judge at {url} has no TLS: the key is sent to https addresses and this machine only")


def _read_reply(response: Any) -> bytes:
    """The body, of limited size, in limited time: a server may send a byte a minute."""
    end, pieces, size = time.monotonic() + _TIMEOUT_S, [], 0
    while piece := response.read1(2**16):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        if time.monotonic() > end:
            raise TimeoutError(f"it did not end within {_TIMEOUT_S} seconds")
    return b"".join(pieces)


def _http_problem(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        to = error.headers.get("Location", "nowhere")
        return f"it points to {to!r} (HTTP {error.code}), which is not followed; give that address in --judge-url"
    return f"HTTP {error.code} {error.reason}"


def local_model(folder: Path, device: str) -> Reply:
    """Asks a Hugging Face model in text: a language model, or a multimodal one. It is loaded at the first question.

    Decoding is greedy: the same answer gets the same verdict.
    """
    loaded: list[Reply] = []

    def reply(prompt: str) -> str:
        if not loaded:
            loaded.append(_load(folder, device))
        return loaded[0](prompt)

    return reply


def _load(folder: Path, device: str) -> Reply:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from pixel_sail.data.chat_template import applied
    from pixel_sail.folders.load import load_config, load_network, load_tokenizer

    if not folder.is_dir():
        raise JudgeError(f"no folder {folder}: download a chat model there, for example Qwen2.5-7B-Instruct")
    try:
        config = load_config(folder)
        multimodal = type(config) in AutoModelForImageTextToText._model_mapping
        kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        tokenizer = load_tokenizer(folder)
        model = load_network(kind, folder, "auto").to(device).eval()
    except WeightsError as error:
        raise JudgeError(f"{folder} cannot be loaded as a judge: {error}") from None

    @torch.inference_mode()
    def reply(prompt: str) -> str:
        text = prompt
        if tokenizer.chat_template:
            (text,) = applied(tokenizer, [([{"role": "user", "content": prompt}], True)])
        # a chat template writes the special tokens itself
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(device)
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return reply


def _read(file: Path) -> list[dict[str, str]]:
    """The verdicts of a file, from which a torn last line is cut off. Raises DatasetError for any other bad line."""
    if not file.exists():
        return []
    content = read_bytes(file)
    rows = content.decode(errors="replace").split("\n")[:-1]
    lines = [_parse(row, f"{file}, line {number}") for number, row in enumerate(rows, start=1)]
    if content and not content.endswith(b"\n"):  # the next verdict must start a line of its own
        write_json_lines(file, lines)
    return lines


def _parse(row: str, where: str) -> dict[str, str]:
    names = ("judge", "prompt", "reply", "verdict")
    try:
        line = parse_json(row)
        if all(isinstance(line[name], str) for name in names):
            return {name: line[name] for name in names}
    except (ValueError, TypeError, KeyError):
        pass
    raise DatasetError(f"{where}: {row[:60]!r} is no verdict; move the file away")
