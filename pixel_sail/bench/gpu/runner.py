"""Runs the stages one after the other, each in a process with its own time, and shows each check as it comes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pixel_sail.bench.gpu.checks import FILE, Report
from pixel_sail.bench.gpu.page import finish
from pixel_sail.bench.gpu.stages import MINUTES, STAGES
from pixel_sail.durable import whole_lines
from pixel_sail.interrupts import how_far

CHILD = (sys.executable, "-m", "pixel_sail.bench.gpu.child")
LEAST_S = 10.0  # imports alone take so long
ENDING_S = 5.0  # between SIGTERM and SIGKILL
TICK_S = 0.2


def check_gpu(
    folder: Path,
    names: Sequence[str],
    minutes: float,
    child: Sequence[str] = CHILD,
    environment: Mapping[str, str] | None = None,
    rehearsed: bool = False,
) -> bool:
    """`run_stages`, and then the table and the page of what was said, also after a signal. Whether no check failed."""
    started = time.monotonic()
    with how_far(lambda: f"what was measured so far is in {folder}"):
        try:
            run_stages(folder, names, minutes, child, environment, rehearsed)
        finally:
            passed = finish(folder, time.monotonic() - started)
    return passed


def run_stages(
    folder: Path,
    names: Sequence[str],
    minutes: float,
    child: Sequence[str],
    environment: Mapping[str, str] | None = None,
    rehearsed: bool = False,
) -> None:
    """Run stages within `minutes`. All that is said lies in `folder`/checks.jsonl afterwards, and is printed meanwhile.

    Whatever a stage does, the next one runs, as long as there is time. A signal ends the stage in hand and is raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    printed, started = _Printed(folder / FILE), time.monotonic()
    for name in names:
        left = 60 * minutes - (time.monotonic() - started)
        seconds = min(STAGES[name] * max(1.0, minutes / MINUTES), left - ENDING_S)
        report = Report(name, folder, seconds, rehearsed)
        if seconds < LEAST_S:
            report.skipped("the stage", f"{max(0, left):.0f} s are left of {minutes:g} minutes")
        else:
            command = [*child, name, str(folder), f"{seconds:.1f}", *(["--rehearsed"] if rehearsed else [])]
            _run_stage(report, command, seconds, environment, printed)
        printed.more()


def _run_stage(
    report: Report, command: Sequence[str], seconds: float, environment: Mapping[str, str] | None, printed: _Printed
) -> None:
    log, started = report.folder / f"{report.stage}.log", time.monotonic()
    shutil.rmtree(report.work, ignore_errors=True)  # of an earlier run
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # so that whatever it has started ends with it
        )
        try:
            while process.poll() is None and time.monotonic() - started < seconds:
                time.sleep(TICK_S)
                printed.more()
            status = process.poll()
        finally:
            _end(process)
    elapsed_s = time.monotonic() - started
    if status == 0:
        report.number("the stage", elapsed_s, "s")
    else:
        how = f"it took more than {seconds:.0f} s" if status is None else _how(status)
        report.failed("the stage", f"{how}; {log}: {_last_line(log)}")


def _end(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing was printed"


class _Printed:
    """Prints the lines of a file that have come since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0

    def more(self) -> None:
        lines = whole_lines(self.path)
        for line in lines[self.lines :]:
            print(json.dumps(json.loads(line), ensure_ascii=False), flush=True)
        self.lines = len(lines)
