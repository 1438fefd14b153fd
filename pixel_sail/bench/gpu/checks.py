"""What a stage says: one JSON line for each check, written at once, so that a kill loses nothing that was measured."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pixel_sail.durable import append_json_line, read_json_lines

# measured: a number without a bound. rehearsed: a number of the null GPU, which means nothing; only that it came.
Result = Literal["pass", "fail", "measured", "skipped", "rehearsed"]

FILE = "checks.jsonl"


@dataclass(frozen=True)
class Check:
    """One line."""

    stage: str
    check: str
    value: float | str | None
    unit: str
    bound: str  # ">= 700"; empty without one
    result: Result
    reason: str = ""  # of a failure or of a skip


class Report:
    """Writes the checks of one stage into `folder`/checks.jsonl. `work`: a folder of this stage alone.

    `rehearsed`: no number passes or fails a bound. An error fails also then.
    """

    def __init__(self, stage: str, folder: Path, seconds: float, rehearsed: bool) -> None:
        self.stage = stage
        self.folder = folder
        self.work = folder / stage
        self.rehearsed = rehearsed
        self._deadline_s = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Until this stage is ended."""
        return self._deadline_s - time.monotonic()

    def number(
        self, check: str, value: float, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None:
        """A number, and the bounds that it must keep. One that is not finite keeps none."""
        bounds = ([f">= {least:g}"] if least is not None else []) + ([f"<= {most:g}"] if most is not None else [])
        kept = (least is None or value >= least) and (most is None or value <= most)
        result: Result = "measured" if not bounds else "pass" if kept and math.isfinite(value) else "fail"
        shown = float(f"{value:.5g}") if math.isfinite(value) else str(value)
        self._write(check, shown, unit, ", ".join(bounds), "rehearsed" if self.rehearsed else result)

    def text(self, check: str, value: str) -> None:
        """What is no number: a name, a version."""
        self._write(check, value, "", "", "rehearsed" if self.rehearsed else "measured")

    def skipped(self, check: str, reason: str) -> None:
        self._write(check, None, "", "", "skipped", reason)

    def failed(self, check: str, reason: str) -> None:
        self._write(check, None, "", "", "fail", reason)

    @contextlib.contextmanager
    def part(self, check: str) -> Iterator[None]:
        """A part of a stage. Its error fails `check` and lets the stage go on; the traceback is in the stage's log."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed(check, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300])

    def _write(
        self, check: str, value: float | str | None, unit: str, bound: str, result: Result, reason: str = ""
    ) -> None:
        line = Check(self.stage, check, value, unit, bound, result, reason)
        append_json_line(self.folder / FILE, asdict(line))


def read_checks(folder: Path) -> list[Check]:
    """What was said so far."""
    return [Check(**line) for line in read_json_lines(folder / FILE)]
