"""The attack: every kind of file damaged in every way, kills at random moments, memory over long runs.

    PYTHONPATH=tests python -m attack.run --out outputs/attack
    PYTHONPATH=tests python -m attack.run --out outputs/attack --only 41:nan:0     # a case from a report, its whole output

Prints tables; writes report.md with the tables and failures.txt with every bad case. Exit status 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attack import outcome
from attack.cases import Bench, Verdict, choose_cases, parse_case, shown
from attack.process import TIMEOUT_S
from attack.targets import TARGETS

FAILURES = "failures.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=400, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, help="seconds of a command before it counts as hung"
    )
    parser.add_argument("--only", action="append", help="a case of a report; may be repeated")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.out.resolve(), arguments.timeout)
    if arguments.only:
        for name in arguments.only:
            verdict = bench.run(parse_case(name))
            print(f"{name}: does not apply" if verdict is None else f"{shown(verdict)}\n{verdict.output}")
        return
    started = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        tried = pool.map(bench.run, choose_cases(arguments.cases, arguments.seed))
        verdicts = [verdict for verdict in _watched(tried, arguments.out / FAILURES) if verdict is not None]
    table = damage_table(verdicts)
    bad = [verdict for verdict in verdicts if verdict.outcome in outcome.BAD]
    print(f"{table}\n{len(verdicts)} damaged files in {time.monotonic() - started:.0f} s")
    (arguments.out / "report.md").write_text(table)
    if bad:
        sys.exit(f"{len(bad)} bad cases, listed in {arguments.out / FAILURES}")


def _watched(verdicts: Iterable[Verdict | None], failures: Path) -> Iterable[Verdict | None]:
    """Prints bad cases as they come, with their output to the file `failures`."""
    with failures.open("w") as file:
        for number, verdict in enumerate(verdicts, start=1):
            if verdict is not None and verdict.outcome in outcome.BAD:
                print(f"{verdict.outcome:10} {verdict.case.name:28} {verdict.file}: {verdict.what}", flush=True)
                print(shown(verdict), file=file, end="\n\n", flush=True)
            if number % 50 == 0:
                print(f"{number} cases", flush=True)
            yield verdict


def damage_table(verdicts: list[Verdict]) -> str:
    """Markdown: a row for each kind of file, a column for each class."""
    classes = (*outcome.GOOD, *outcome.BAD)
    counts = Counter((verdict.case.kind, verdict.outcome) for verdict in verdicts)
    kinds = [kind for kind in dict.fromkeys(target.kind for target in TARGETS)]
    rows = [[kind, str(sum(counts[kind, name] for name in classes)), *(str(counts[kind, name]) for name in classes)]
            for kind in kinds]  # fmt: skip
    total = ["all", *(str(sum(int(row[column]) for row in rows)) for column in range(1, len(rows[0])))]
    head = ["kind of file", "cases", *classes]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows, total]) + "\n"


if __name__ == "__main__":
    main()
