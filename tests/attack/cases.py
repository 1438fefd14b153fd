"""A case: one file of a tree damaged in one way, and what the tools that read it do."""

from __future__ import annotations

import random
import tempfile
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

from attack import outcome, process
from attack.damage import DAMAGES, Damage
from attack.process import Finished
from attack.targets import TARGETS, Target
from attack.trees import Workshop

_UNDAMAGED_TIMEOUT_S = 300.0
MAX_OUTPUT_LINES = 12  # of a bad case, in the report


@dataclass(frozen=True)
class Case:
    """`number` makes the random generator of the case, with the names of target and damage."""

    target: int  # index in TARGETS
    damage: Damage
    number: int = 0

    @property
    def name(self) -> str:
        return f"{self.target}:{self.damage.name}:{self.number}"

    @property
    def kind(self) -> str:
        return TARGETS[self.target].kind


@dataclass(frozen=True)
class Verdict:
    case: Case
    file: str
    what: str  # how the file was damaged
    outcome: str
    output: str
    seconds: float


def choose_cases(count: int, seed: int) -> list[Case]:
    """`count` cases over all targets by their shares; the damages of a target take turns. In a random order."""
    rng = random.Random(seed)
    shares = sum(target.share for target in TARGETS)
    cases: list[Case] = []
    for index, target in enumerate(TARGETS):
        fitting = [damage for damage in DAMAGES if _fits(damage, target)]
        order = rng.sample(fitting, len(fitting))
        number = max(1, round(count * target.share / shares))
        cases += [Case(index, order[i % len(order)], seed + i // len(order)) for i in range(number)]
    return rng.sample(cases, len(cases))  # so that cases at one time are of different tools


def _fits(damage: Damage, target: Target) -> bool:
    suffixes = {Path(pattern).suffix for pattern in target.files}
    return not damage.suffixes or not suffixes.isdisjoint({*damage.suffixes, ""}) or ".json*" in suffixes


def parse_case(name: str) -> Case:
    """A case from its name in a report."""
    target, damage, number = name.split(":")
    return Case(int(target), next(d for d in DAMAGES if d.name == damage), int(number))


class Bench:
    """Runs cases. The undamaged results of a target are made when its first case comes."""

    def __init__(self, folder: Path, timeout_s: float = process.TIMEOUT_S) -> None:
        self._workshop = Workshop(folder / "trees")
        self._folder = folder
        self._timeout_s = timeout_s
        self._good: dict[int, outcome.Undamaged] = {}
        self._building = threading.Lock()

    def run(self, case: Case, again: bool = False) -> Verdict | None:
        """None: the damage does not apply to any file of the target, or changed nothing.

        The undamaged tree must work: else every message would look like one about the damage. What has not ended in
        time is tried once `again`, with three times the time: only a hang needs that too.
        """
        target, good = TARGETS[case.target], self._undamaged(case.target)
        rng = random.Random(zlib.crc32(case.name.encode()))
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="case_") as place:
            tree = self._workshop.copy(target.tree, Path(place) / "tree")
            files = sorted({path for pattern in target.files for path in tree.glob(pattern) if path.is_file()})
            suffixes = case.damage.suffixes
            files = [path for path in files if not suffixes or path.suffix in suffixes]
            if not files:
                return None
            file = rng.choice(files)
            before = file.read_bytes()
            what = case.damage.apply(file, rng)
            if what is None or (file.is_file() and not file.is_symlink() and file.read_bytes() == before):
                return None
            runs = self._commands(target, tree, self._timeout_s * (3 if again else 1))
            if runs[-1].status is None and not again:  # a hang, or a machine that has too much to do
                return self.run(case, again=True)
            # JPEG has no checksum: its decoder makes an image of whatever bytes lie between the markers
            reports = case.damage.reports and (case.damage.name, file.suffix) != ("zeros", ".jpg")
            name = str(file.relative_to(tree))
            names = (*target.names, *_entry(what))
            result = outcome.classify(runs, tree, file, names, good, reports)
            text = "\n".join(run.output for run in runs).replace(str(tree), "TREE")
            if result == outcome.TRACEBACK:
                text += f"\n(exit status {runs[-1].status})"
            if result == outcome.SILENT:
                text += f"\n(changed: {', '.join(good.changed(outcome.results_of(tree, [text]), name))})"
            return Verdict(case, name, what, result, text, sum(run.seconds for run in runs))

    def _commands(self, target: Target, tree: Path, timeout_s: float) -> list[Finished]:
        runs: list[Finished] = []
        for command in target.commands:
            runs.append(process.run(command, tree, timeout_s=timeout_s))
            if runs[-1].status != 0:
                break
        return runs

    def _undamaged(self, index: int) -> outcome.Undamaged:
        with self._building:
            if index not in self._good:
                self._good[index] = outcome.Undamaged(self._whole(index), self._whole(index))
            return self._good[index]

    def _whole(self, index: int) -> outcome.Results:
        target = TARGETS[index]
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="good_") as place:
            tree = self._workshop.copy(target.tree, Path(place) / "tree")
            runs = self._commands(target, tree, _UNDAMAGED_TIMEOUT_S)
            assert runs[-1].status == 0, f"undamaged {target.kind} fails:\n{runs[-1].output}"
            return outcome.results_of(tree, [run.output for run in runs])


def _entry(what: str) -> list[str]:
    """The last key of the dotted place with which the words of a damage begin: a message may name that."""
    keys = [key for key in what.split(" ")[0].split(".") if len(key) > 2 and not key.isdigit()]
    return keys[-1:] if "." in what.split(" ")[0] else []


def line_of(verdict: Verdict) -> str:
    """A case in a line."""
    return f"{verdict.outcome:12} {verdict.case.name:24} {verdict.file}: {verdict.what}"


def shown(verdict: Verdict) -> str:
    """A bad case for the report: what it is, and the end of the output."""
    target = TARGETS[verdict.case.target]
    lines = [line for line in verdict.output.replace("\r", "\n").splitlines() if line.strip()]
    commands = "; ".join(" ".join(map(str, command)) for command in target.commands)
    head = f"[{verdict.outcome}] {verdict.case.name}  {verdict.file}: {verdict.what}\n    {commands}"
    return "\n".join([head, *(f"    | {line[:220]}" for line in lines[-MAX_OUTPUT_LINES:])])
