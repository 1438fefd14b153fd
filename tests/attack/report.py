"""The table of damaged files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attack import outcome
from attack.cases import Verdict
from attack.targets import TARGETS

CLASSES = (*outcome.GOOD, *outcome.BAD)


def damage_table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: a row for each kind of file, a column for each class."""
    counts = Counter((verdict.case.kind, verdict.outcome) for verdict in verdicts)
    numbers = {kind: [counts[kind, name] for name in CLASSES] for kind in dict.fromkeys(t.kind for t in TARGETS)}
    numbers["**all**"] = [sum(column) for column in zip(*numbers.values(), strict=True)]
    rows = [[kind, sum(row), *row] for kind, row in numbers.items()]
    lines = [["kind of file", "cases", *CLASSES], ["---"] * (len(CLASSES) + 2), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
