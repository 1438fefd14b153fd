"""Classes of what a tool did with a damaged file, and how they are told apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attack.process import MEMORY_BYTES, Finished

MARKER = "code_ran"  # a damaged file that runs code leaves this file in the folder of its case

PLANTED = ("secret.jpg", "secret.png", "harm.py")  # files that damages put beside the damaged one

MESSAGE = "message"  # exit status 1 or 2, and the message names the file or its entry
SKIP = "counted skip"  # the work was done, and the output says what was left out
HARMLESS = "harmless"  # the results are those of the undamaged file, byte for byte
VALID = "still valid"  # another result, from a file that nobody can tell from a good one
TRACEBACK = "traceback"  # or a crash
HANG = "hang"
MEMORY = "memory"
SILENT = "silent"  # exit status 0, another result, and nothing is said
VAGUE = "vague"  # an error that does not name the file
CODE = "ran code"
GOOD = (MESSAGE, SKIP, HARMLESS, VALID)
BAD = (TRACEBACK, HANG, MEMORY, SILENT, VAGUE, CODE)

_SAID = re.compile(
    r"left out|cannot be (used|read)|skipped|not usable|unusable|problem|bad sample|damaged|warning|BROKEN|missing|"
    r"does not say|is no |replaced|ignored|torn|incomplete|not valid|could not|unreadable|made again|computed again|"
    r"instead|older checkpoint|failed",
    re.IGNORECASE,
)
# When, and at which commit of a repository where somebody may be working, a benchmark was scored.
_WHEN = re.compile(rb'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d|("commit": "|commit )[0-9a-f]{10,40}')
_NO_MEMORY = re.compile(r"memory of this machine is used up|memory allocation of|MemoryError|cannot allocate memory",
                        re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What the commands of a case left: the lines they printed, and a digest of every file in its folder."""

    lines: tuple[str, ...]
    files: dict[str, str]


def results_of(folder: Path, outputs: Sequence[str]) -> Results:
    text = "\n".join(outputs).replace(str(folder), "TREE").replace("\r", "\n")
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return Results(tuple(line for line in text.split("\n") if line.strip()), files)


@dataclass(frozen=True)
class Undamaged:
    """The results of two runs on a good tree: what differs between them depends on the clock, and is not compared."""

    first: Results
    second: Results

    def changed(self, results: Results, damaged_file: str) -> list[str]:
        """What differs from the good tree: files, or "the output". The damaged file itself is an input."""
        names = (self.first.files.keys() | results.files.keys()) - {damaged_file}
        steady = [name for name in names if Path(name).name not in PLANTED]
        steady = [name for name in steady if self.first.files.get(name) == self.second.files.get(name)]
        changed = [name for name in steady if self.first.files.get(name) != results.files.get(name)]
        if self.first.lines == self.second.lines != results.lines:
            changed.append("the output")
        return changed

    def new_lines(self, results: Results) -> list[str]:
        known = {*self.first.lines, *self.second.lines}
        return [line for line in results.lines if line not in known]


def classify(
    runs: Sequence[Finished],
    folder: Path,
    damaged: Path,
    names: Sequence[str],
    good: Undamaged,
    reports: bool,
) -> str:
    """The class of a case.

    `runs`: the commands up to the first that failed. `names`: what a message may call the file or its entry, besides
    its name. `reports`: the damage must be noticed.
    """
    output = "\n".join(run.output for run in runs)
    last = runs[-1]
    if (folder / MARKER).exists():
        return CODE
    if last.status is None:
        return HANG
    if _NO_MEMORY.search(output) or max(run.peak_bytes for run in runs) > MEMORY_BYTES:
        return MEMORY
    if "Traceback (most recent call last)" in output or last.status not in (0, 1, 2):
        return TRACEBACK
    if last.status:
        stem = (damaged.stem,) if re.search(r"[_\d]", damaged.stem) else ()  # of an image; "model" would be any word
        named = any(name in last.output for name in (damaged.name, *stem, *names))
        return MESSAGE if named else VAGUE
    results = results_of(folder, [run.output for run in runs])
    new = good.new_lines(results)
    if any(_SAID.search(line) for line in new):
        return SKIP
    if not good.changed(results, str(damaged.relative_to(folder))):
        return HARMLESS
    return SILENT if reports else VALID


def _digest(path: Path) -> str:
    if path.name == "environment.json":  # commit and changed files of the repository, where somebody may be working
        return "present"
    try:
        return hashlib.sha256(_without_times(path)).hexdigest()[:16]
    except OSError:
        return "unreadable"


def _without_times(path: Path) -> bytes:
    """The bytes of a file, without what a clock decides; of torch's files, what they hold."""
    if path.suffix == ".pt":
        return _held(path)
    if path.name == "metrics.json" or path.suffix == ".html":
        return _WHEN.sub(b"", path.read_bytes())
    if path.name != "log.jsonl":
        return path.read_bytes()
    from pixel_sail.train.log import CLOCK_KEYS

    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            kept.append(json.dumps({key: value for key, value in json.loads(line).items() if key not in CLOCK_KEYS}))
        except (ValueError, AttributeError, RecursionError):
            kept.append(line)
    return "\n".join(kept).encode()


def _held(path: Path) -> bytes:
    """The values in a file of torch: equal states that were loaded before they were saved have other bytes."""
    import torch

    parts: list[bytes] = []

    def add(value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=repr):
                parts.append(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            parts.append(
                repr((value.dtype, value.shape)).encode()
                + value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        else:
            parts.append(repr(value).encode())

    try:
        add(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # a damaged file: torch raises anything
        return path.read_bytes()
    return b"\n".join(parts)
