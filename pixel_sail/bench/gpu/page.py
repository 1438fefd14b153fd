"""The checks of a run as a table for the terminal, and as a Markdown page like those of docs/results."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixel_sail.bench.gpu.checks import Check, read_checks
from pixel_sail.config import environment
from pixel_sail.durable import write_text

WIDTH = 100
NAME, VALUE, BOUND, RESULT = 47, 18, 12, 9  # columns of the table; the stage takes the rest


def finish(folder: Path, elapsed_s: float) -> bool:
    """Print the table of a run and write its page, `folder`/gpu.md. Whether no check failed."""
    checks, known = read_checks(folder), environment()
    texts = {check.check: check.value for check in checks if check.stage == "machine" and isinstance(check.value, str)}
    facts = {
        "command": f"`{_command(sys.argv)}`",
        "commit": f"{known['commit'] or 'unknown'}{', with changes' if known['modified_files'] else ''}",
        "machine": f"{texts.pop('GPU', 'unknown GPU')}; {known['machine']}",
        "versions": ", ".join(f"{name} {version}" for name, version in texts.items()),
        "time": f"{elapsed_s / 60:.1f} minutes",
    }
    write_text(folder / "gpu.md", page(checks, facts))
    print(f"\n{table(checks)}\n{folder / 'gpu.md'}", flush=True)
    return not any(check.result == "fail" for check in checks)


def _command(argv: list[str]) -> str:
    """As it was typed: python tools/gpu_check.py, or pixel-sail gpu-check."""
    program, *arguments = argv
    begun = [Path(sys.executable).name, program] if program.endswith(".py") else program.split()
    return shlex.join([*begun, *arguments])


def table(checks: Sequence[Check]) -> str:
    """One line a check, at most WIDTH columns wide; reasons of failures and skips below their check."""
    stage = WIDTH - NAME - VALUE - BOUND - RESULT - 4
    lines = []
    for check in [Check("stage", "check", "value", "", "bound", "result"), *checks]:  # type: ignore[arg-type]
        parts = (check.stage, stage), (check.check, NAME), (_value(check), -VALUE), (check.bound, BOUND)
        columns = [_fit(text, width) for text, width in parts]
        lines.append(" ".join([*columns, check.result]).rstrip())
        lines += textwrap.wrap(check.reason, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return "\n".join([*lines, "", summary(checks)])


def summary(checks: Sequence[Check]) -> str:
    """How many checks ended in which way."""
    counts = Counter(check.result for check in checks)
    return f"{len(checks)} checks: " + ", ".join(f"{number} {result}" for result, number in counts.most_common())


def page(checks: Sequence[Check], facts: dict[str, Any]) -> str:
    """The Markdown page. `facts`: command, commit, machine, time, ... in the order of its first table."""
    lines = ["# GPU check", "", "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items()), ""]
    lines += [
        f"{summary(checks)}.",
        "",
        "| stage | check | value | bound | result |",
        "| --- | --- | --- | --- | --- |",
    ]
    for check in checks:
        result = f"{check.result}: {check.reason}" if check.reason else check.result
        cells = (check.stage, check.check, _value(check), check.bound, result)
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join([*lines, "", "## What it does not show", "", *LIMITS, ""])


LIMITS = (
    "* Several GPUs: one was used, so that no gradient and no weight ever crossed between two.",
    "* Learning at size: the 0.5B model has random weights and random images; only the scratch run is trained.",
    "* Data at size: images are drawn, and small. Reading and encoding photographs is `tools/bench.py data`.",
    "* Idle shares are those under the profiler, which slows the host.",
    "* One run of each number, no spread.",
)


def _cell(text: str) -> str:
    return textwrap.shorten(text.replace("|", "\\|"), 120, placeholder=" ...")


def _value(check: Check) -> str:
    if check.value is None:
        return ""
    number = f"{check.value:.5g}" if isinstance(check.value, float) and abs(check.value) < 1e5 else f"{check.value}"
    return f"{number} {check.unit}".rstrip()


def _fit(text: str, width: int) -> str:
    """`text` in a column; a negative width aligns it at the right."""
    size = abs(width)
    text = text if len(text) <= size else f"{text[: size - 2]}.."
    return text.ljust(size) if width > 0 else text.rjust(size)
