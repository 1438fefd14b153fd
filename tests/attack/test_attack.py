"""A sample of `make attack`: damaged files of every kind, and that its classes are told apart."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attack import outcome
from attack.cases import Bench, Case, choose_cases, shown
from attack.damage import DAMAGES
from attack.outcome import MARKER, Results, Undamaged, classify
from attack.process import MEMORY_BYTES, Finished
from attack.targets import TARGETS

SAMPLE = 40
SEED = 1
SLOW = ("training of an expert",)  # many seconds a case


def sample() -> list[Case]:
    """Cases of every kind of file but the slow ones; the damages take turns."""
    cases = [case for case in choose_cases(900, SEED) if case.kind not in SLOW]
    kinds = sorted({case.kind for case in cases})
    chosen: list[Case] = []
    while len(chosen) < SAMPLE:
        for kind in kinds:
            used = [case.damage.name for case in chosen]
            rest = [case for case in cases if case.kind == kind and case not in chosen]
            chosen.append(min(rest, key=lambda case: used.count(case.damage.name)))
    return chosen[:SAMPLE]


def test_a_sample_of_damaged_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        verdicts = [verdict for verdict in pool.map(bench.run, sample()) if verdict is not None]
    bad = [shown(verdict) for verdict in verdicts if verdict.outcome in outcome.BAD]
    assert not bad, "\n\n".join(bad)
    assert len(verdicts) >= SAMPLE // 2
    assert {verdict.outcome for verdict in verdicts} >= {outcome.MESSAGE, outcome.HARMLESS}


def test_all_cases_are_enough_and_of_every_kind() -> None:
    cases = choose_cases(450, 0)
    assert len(cases) >= 400 and len(set(cases)) == len(cases)
    assert {case.target for case in cases} == set(range(len(TARGETS)))
    assert {case.damage.name for case in cases} == {damage.name for damage in DAMAGES}


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (1, "error: refs.json is not valid JSON", outcome.MESSAGE),
        (2, "usage: refs.json", outcome.MESSAGE),
        (1, "error: 'NoneType' has no len()", outcome.VAGUE),
        (1, "Traceback (most recent call last):\n  refs.json", outcome.TRACEBACK),
        (0, "fine\nException in thread:\nTraceback (most recent call last):", outcome.TRACEBACK),
        (-signal.SIGSEGV, "", outcome.TRACEBACK),
        (None, "refs.json", outcome.HANG),
        (1, "error: the memory of this machine is used up: refs.json", outcome.MEMORY),
        (0, "fine\nleft out: refs.json", outcome.SKIP),
        (0, "fine", outcome.HARMLESS),
        (0, "other", outcome.SILENT),
    ],
)
def test_classes(tmp_path: Path, status: int | None, output: str, expected: str) -> None:
    damaged = tmp_path / "refs.json"
    damaged.write_text("{")
    good = Undamaged(*[Results(("fine",), {"refs.json": "before", "out": "1"})] * 2)
    (tmp_path / "out").write_text("x")
    good.first.files["out"] = outcome.results_of(tmp_path, []).files["out"]
    runs = [Finished(status, output, 0, 1.0)]
    assert classify(runs, tmp_path, damaged, (), good, reports=True) == expected
    if expected == outcome.SILENT:
        assert classify(runs, tmp_path, damaged, (), good, reports=False) == outcome.VALID
    if expected == outcome.HARMLESS:
        (tmp_path / "out").write_text("y")
        assert classify(runs, tmp_path, damaged, (), good, reports=True) == outcome.SILENT
        greedy = [Finished(0, output, MEMORY_BYTES + 1, 1.0)]
        assert classify(greedy, tmp_path, damaged, (), good, reports=True) == outcome.MEMORY
        (tmp_path / MARKER).touch()
        assert classify(runs, tmp_path, damaged, (), good, reports=True) == outcome.CODE
