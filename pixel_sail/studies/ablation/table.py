"""From the scores of the runs to one table: mean, spread over seeds, and each step against that spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixel_sail.evaluate.pixfoundation.failures import CELLS
from pixel_sail.studies.ablation.plan import Plan
from pixel_sail.studies.ablation.runs import finished_scores

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; beyond the last it is used: a little too wide.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

# Scores in the table by kind of benchmark (evaluate/runner.py), in this order; more is better for each of them. The
# scores.json of a run has them all.
SHOWN = {
    "region_caption": ("meteor", "cider"),
    "perbench:caption": ("meteor",),
    "perbench:mcq": ("accuracy",),
    "perbench:vtres": ("ciou", "giou"),
    "pix": ("score", "accuracy", "accuracy_mean", "accuracy_single", "miou", "miou_present"),
}
# Counts that stand in the table and are no steps: of them more is neither better nor worse.
COUNTED = {"pix": (*CELLS, "undecided", "pairs")}
SHOWN_REFERRING = ("ciou", "giou", "boundary_iou", "small_giou")


@dataclass(frozen=True)
class Spread:
    """Over the seeds of one variant; `sd` (n - 1 in the denominator) is None for a single one."""

    mean: float
    sd: float | None
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Step:
    """One score of a variant minus that of the one it is compared with, seed by seed.

    `interval`: of the mean difference, 95 % by Student's t over the seeds; None for a single seed.
    """

    before: str
    after: str
    score: str
    differences: dict[int, float]
    mean: float
    interval: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True)
class Results:
    variants: tuple[str, ...]
    scores: tuple[str, ...]  # "refcoco:val ciou", in table order; those that some run has
    values: dict[str, dict[str, dict[int, float]]]  # score -> variant -> seed -> value
    spreads: dict[str, dict[str, Spread]]  # score -> variant
    steps: tuple[Step, ...]
    unfinished: tuple[str, ...]  # names of runs
    commits: tuple[str, ...]  # of the code that trained; more than one makes the rows hard to compare


def results_of(plan: Plan) -> Results:
    """What the finished runs of a plan say."""
    found = {run: finished_scores(run, plan.config) for run in plan.runs}
    variants = tuple(dict.fromkeys(run.variant for run in plan.runs))
    values: dict[str, dict[str, dict[int, float]]] = {}
    for benchmark in plan.config.benchmarks:
        for name in (*shown_scores(benchmark), *counted(benchmark)):
            score = f"{benchmark} {name}"
            for run, scores in found.items():
                value = scores and scores[benchmark].get(name)
                if value is not None:
                    values.setdefault(score, {v: {} for v in variants})[run.variant][run.seed] = value
    return Results(
        variants,
        tuple(values),
        values,
        {
            score: {v: spread_of(list(seeds.values())) for v, seeds in by.items() if seeds}
            for score, by in values.items()
        },
        tuple(_steps(plan, values)),
        tuple(run.name for run, scores in found.items() if scores is None),
        tuple(sorted({_commit(run.config.run.dir) for run, scores in found.items() if scores is not None})),
    )


def _steps(plan: Plan, values: dict[str, dict[str, dict[int, float]]]) -> Iterator[Step]:
    """The steps of each score, over the seeds that both variants of a pair have. `values`: score -> variant -> seed."""
    for benchmark in plan.config.benchmarks:
        for name in shown_scores(benchmark):
            by = values.get(f"{benchmark} {name}", {})
            for before, after in plan.config.pairs():
                if set(by.get(before, ())) & set(by.get(after, ())):
                    yield step_of(before, after, f"{benchmark} {name}", by[before], by[after])


def shown_scores(benchmark: str) -> tuple[str, ...]:
    return next((names for kind, names in SHOWN.items() if benchmark.startswith(kind)), SHOWN_REFERRING)


def counted(benchmark: str) -> tuple[str, ...]:
    return next((names for kind, names in COUNTED.items() if benchmark.startswith(kind)), ())


def spread_of(values: Sequence[float]) -> Spread:
    """Of one value a seed, at least one."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, min(values), max(values), len(values))


def step_of(before: str, after: str, score: str, old: dict[int, float], new: dict[int, float]) -> Step:
    """The step between two variants, over the seeds that both have. `old`, `new`: value by seed."""
    differences = {seed: new[seed] - old[seed] for seed in old if seed in new}
    spread = spread_of(list(differences.values()))
    interval = None
    if spread.sd is not None:
        t = T_95[min(spread.seeds - 1, len(T_95)) - 1]
        half = t * spread.sd / spread.seeds**0.5
        interval = (spread.mean - half, spread.mean + half)
    return Step(before, after, score, differences, spread.mean, interval, _verdict(spread, interval))


def _verdict(spread: Spread, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "one seed"
    if interval[0] > 0 or interval[1] < 0:
        return "better" if spread.mean > 0 else "worse"
    if spread.low > 0 or spread.high < 0:
        return "leans better" if spread.mean > 0 else "leans worse"
    return "no difference seen"


def write_results(results: Results, folder: Path) -> None:
    """`ablation.json` and `ablation.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (folder / "ablation.md").write_text(markdown(results))


def markdown(results: Results) -> str:
    """The scores of every variant, then the steps, as two tables with a line that says how to read each."""
    seeds = sorted({seed for by in results.values.values() for runs in by.values() for seed in runs})
    scores = _grid(
        ["mean ± standard deviation (lowest to highest)", *results.variants],
        [[score, *(_spread_text(by.get(v)) for v in results.variants)] for score, by in results.spreads.items()],
    )
    pairs = list(dict.fromkeys((step.before, step.after) for step in results.steps))
    cells = {(step.score, step.before, step.after): _step_text(step) for step in results.steps}
    steps = _grid(
        ["difference, 95 % interval", *(f"{before} → {after}" for before, after in pairs)],
        [
            [score, *(cells.get((score, *pair), "") for pair in pairs)]
            for score in dict.fromkeys(step.score for step in results.steps)
        ],
    )
    notes = [
        f"Seeds {', '.join(map(str, seeds)) or 'none yet'}; code {', '.join(results.commits) or 'unknown'}."
        + (" **Rows were trained by different code.**" if len(results.commits) > 1 else ""),
        *([f"**Unfinished:** {'; '.join(results.unfinished)}."] if results.unfinished else []),
    ]
    reading = (
        "Differences are taken seed by seed. better, worse: the interval of their mean (Student's t over the seeds) is "
        "on one side of 0. leans: every seed agrees, the interval holds 0. Of twenty differences that are none, one "
        "will still be called better or worse."
    )
    return "\n\n".join([*notes, scores, reading, steps]) + "\n"


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.sd is None:
        return f"{spread.mean:.1f}"
    return f"{spread.mean:.1f} ± {spread.sd:.1f} ({spread.low:.1f} to {spread.high:.1f})"


def _step_text(step: Step) -> str:
    interval = "" if step.interval is None else f" ({step.interval[0]:+.1f} to {step.interval[1]:+.1f})"
    return f"{step.mean:+.1f}{interval}, {step.verdict}"


def _commit(run_dir: Path) -> str:
    """The commit that a run was trained with, with a + where the working tree was changed."""
    try:
        environment: dict[str, Any] = json.loads((run_dir / "environment.json").read_text())
    except FileNotFoundError:
        return "unknown"
    return f"{(environment['commit'] or 'unknown')[:7]}{'+' if environment['modified_files'] else ''}"
