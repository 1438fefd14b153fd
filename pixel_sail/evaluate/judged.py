"""Captions that a judge reads: what it is to be asked goes into a file, and its replies come from one.

    {"request": "dlc_bench/12/0#9f2c41d0", "prompt": "...", "image": "/data/a.jpg", "regions": [{"size": ..., ...}]}
    {"request": "dlc_bench/12/0#9f2c41d0", "reply": "Yes"}

The name of a request ends in a hash of its prompt: replies to another model's captions do not fit. Whoever answers
the file may show the judge the image and the regions (RLE). The judge of --judge-model reads the prompt alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate.benchmark import Options
from pixel_sail.evaluate.rows import read_json_rows
from pixel_sail.types import RLE


@dataclass(frozen=True)
class Request:
    """One question to a judge."""

    key: str  # unique in its benchmark: "dlc_bench/12/0"
    prompt: str
    image: Path
    regions: tuple[RLE, ...]

    @property
    def name(self) -> str:
        return f"{self.key}#{hashlib.sha256(self.prompt.encode()).hexdigest()[:8]}"

    def line(self) -> dict[str, Any]:
        return {
            "request": self.name,
            "prompt": self.prompt,
            "image": str(self.image),
            "regions": list(self.regions),
        }


def ask(requests: Sequence[Request], options: Options) -> list[str] | str:
    """The reply to each request, from the files of replies, else from the judge; or why there are none, in words.

    The requests are written first. Raises DatasetError for a bad file of replies, JudgeError if the judge fails.
    """
    if options.requests is not None:
        options.requests.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(options.requests, (request.line() for request in requests))
    known = _replies(options.replies)
    missing = [request.name for request in requests if request.name not in known]
    if not missing or options.judge is not None:
        return [
            known[request.name] if request.name in known else options.judge.reply(request.prompt)
            for request in requests
        ]
    where = f"; the requests are in {options.requests}" if options.requests else ""
    had = f"{len(missing)} of {len(requests)} requests to a judge have no reply, the first: {missing[0]}"
    return f"{had}{where}: give --judge-replies FILE, or --judge-model"


def _replies(files: Sequence[Path]) -> dict[str, str]:
    """Name of the request -> reply. Raises DatasetError for what is no reply, and for two replies to one request."""
    replies: dict[str, str] = {}
    for file in files:
        for number, row in enumerate(read_json_rows(file), start=1):
            values = [row.get(name) for name in ("request", "reply")] if isinstance(row, dict) else [None]
            if not all(isinstance(value, str) for value in values):
                raise DatasetError(f"{file}, reply {number}: expected an object with the texts 'request' and 'reply'")
            name, reply = values
            if replies.setdefault(name, reply) != reply:
                raise DatasetError(f"{file}, reply {number}: the request {name!r:.100} has two different replies")
    return replies
