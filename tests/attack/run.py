"""The attack: every kind of file damaged in every way, long tools killed and stopped, memory over long runs.

    PYTHONPATH=tests python -m attack.run --out outputs/attack
    PYTHONPATH=tests python -m attack.run --out outputs/attack --only 41:nan:0     # a case of a report

Prints tables and writes them to report.md; cases.txt has a line a case, failures.txt what every bad case printed.
Exit status 1 if there is a bad one.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TextIO

from attack import outcome
from attack.cases import Bench, Verdict, choose_cases, line_of, parse_case, shown
from attack.kills import Trial, kill_table, run_kills, shown_trial
from attack.memory import MAX_GROWTH_MIB, measure_predictions, measure_training, memory_table
from attack.process import TIMEOUT_S
from attack.report import damage_table

FAILURES, CASES, REPORT = "failures.txt", "cases.txt", "report.md"


def main() -> None:
    arguments = _parse()
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, arguments.timeout)
    if arguments.only:
        for name in arguments.only:
            verdict = bench.run(parse_case(name))
            print(f"{name}: does not apply" if verdict is None else f"{shown(verdict)}\n{verdict.output}")
        return
    tables, bad = [], 0
    with (folder / FAILURES).open("w") as failures:
        if arguments.cases:
            verdicts = _damage(bench, arguments, failures)
            (folder / CASES).write_text("".join(f"{line_of(verdict)}\n" for verdict in verdicts))
            tables.append(damage_table(verdicts))
            bad += sum(verdict.outcome in outcome.BAD for verdict in verdicts)
        for count, numbers in (
            (arguments.kills, (signal.SIGKILL,)),
            (arguments.stops, (signal.SIGTERM, signal.SIGINT)),
        ):
            trials = list(_watched_trials(run_kills(folder, count, arguments.seed, numbers), failures))
            tables += [kill_table(trials, numbers)] if trials else []
            bad += sum(bool(trial.problem) for trial in trials)
        if arguments.memory:
            measured = [measure_training(folder), measure_predictions(folder)]
            tables.append(memory_table(measured))
            bad += sum(not memory.ok for memory in measured)
    (folder / REPORT).write_text("\n".join(tables))
    print("\n".join(tables))
    if bad:
        sys.exit(f"{bad} bad cases, listed in {folder / FAILURES} (and memory that grew by more than {MAX_GROWTH_MIB})")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=450, help="damaged files; some damages do not apply to some files")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILL of the long tools")
    parser.add_argument("--stops", type=int, default=18, help="SIGTERM and SIGINT of the long tools")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="the long runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="damaged files at a time")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds until a command is tried once more")
    parser.add_argument("--only", action="append", metavar="CASE", help="a damaged file of a report; may be repeated")
    return parser.parse_args()


def _damage(bench: Bench, arguments: argparse.Namespace, failures: TextIO) -> list[Verdict]:
    started = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [pool.submit(bench.run, case) for case in choose_cases(arguments.cases, arguments.seed)]
        tried = (done.result() for done in as_completed(waiting))
        verdicts = [verdict for verdict in _watched(tried, failures) if verdict is not None]
    print(f"{len(verdicts)} damaged files in {time.monotonic() - started:.0f} s", flush=True)
    return verdicts


def _watched(verdicts: Iterable[Verdict | None], failures: TextIO) -> Iterable[Verdict | None]:
    """Prints bad cases as they come, with their output to the file `failures`."""
    for number, verdict in enumerate(verdicts, start=1):
        if verdict is not None and verdict.outcome in outcome.BAD:
            print(line_of(verdict), flush=True)
            print(shown(verdict), file=failures, end="\n\n", flush=True)
        if number % 50 == 0:
            print(f"{number} cases", flush=True)
        yield verdict


def _watched_trials(trials: Iterable[Trial], failures: TextIO) -> Iterable[Trial]:
    for trial in trials:
        moment = f"{signal.Signals(trial.number).name} after {trial.after_s:.2f} of {trial.duration_s:.2f} s"
        print(f"{trial.tool.name:20} {moment}: {trial.problem or 'ok'}", flush=True)
        if trial.problem:
            print(shown_trial(trial), file=failures, end="\n\n", flush=True)
        yield trial


if __name__ == "__main__":
    main()
