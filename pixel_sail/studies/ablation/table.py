"""One table from the scores of the runs: mean, spread over seeds, and each step compared with that spread."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy import stats

from pixel_sail import durable
from pixel_sail.errors import FileError
from pixel_sail.evaluate.pixfoundation.failures import CELLS
from pixel_sail.files import read_json
from pixel_sail.studies.ablation.plan import Plan, Run
from pixel_sail.studies.ablation.runs import finished_scores
from pixel_sail.weights.run_folder import complete_checkpoints, read_state

# Scores in the table by kind of benchmark (evaluate/runner.py), in this order. For each of them, higher is better. The
# scores.json of a run has all scores.
SHOWN_SCORES = {
    "region_caption": ("meteor", "cider", "meteor_all_references", "cider_all_references"),
    "perbench:caption": ("meteor", "meteor_coco"),
    "perbench:mcq": ("accuracy", "accuracy_option"),
    "perbench:vtres": ("ciou", "giou", "ciou_union", "giou_union"),
    "pix": ("score", "accuracy", "accuracy_mean", "accuracy_single", "miou", "miou_present"),
}
# Counts in the table. They have no steps, because a higher count is neither better nor worse.
SHOWN_COUNTS = {"pix": (*CELLS, "undecided", "pairs")}
SHOWN_REFERRING = ("ciou", "giou", "boundary_iou", "small_giou")


@dataclass(frozen=True)
class Spread:
    """A score over the seeds of one variant. `sd` (n - 1 in the denominator) is None for a single seed."""

    mean: float
    sd: float | None
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Step:
    """One score of variant `after` minus that of `before`, seed by seed.

    `interval`: 95 % interval of the mean difference, by Student's t over the seeds; None for a single seed.
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
    scores: tuple[str, ...]  # "refcoco:val ciou", in table order; scores that no run has are omitted
    values: dict[str, dict[str, dict[int, float]]]  # score -> variant -> seed -> value
    spreads: dict[str, dict[str, Spread]]  # score -> variant
    steps: tuple[Step, ...]
    unfinished: tuple[str, ...]  # names of runs
    commits: tuple[str, ...]  # of the code that trained the runs; with several, rows are hard to compare
    other_data: tuple[str, ...] = ()  # names of runs that were trained after the data had changed


def results_of(plan: Plan) -> Results:
    """The results of the finished runs of a plan."""
    scores_by_run = {run: finished_scores(run, plan.config) for run in plan.runs}
    variants = tuple(dict.fromkeys(run.variant for run in plan.runs))
    values: dict[str, dict[str, dict[int, float]]] = {}
    for benchmark in plan.config.benchmarks:
        for name in (*shown_scores(benchmark), *shown_counts(benchmark)):
            score = f"{benchmark} {name}"
            for run, scores in scores_by_run.items():
                value = scores and scores[benchmark].get(name)
                if value is not None:
                    values.setdefault(score, {v: {} for v in variants})[run.variant][run.seed] = value
    return Results(
        variants,
        tuple(values),
        values,
        {
            score: {variant: spread_of(list(seeds.values())) for variant, seeds in by_variant.items() if seeds}
            for score, by_variant in values.items()
        },
        tuple(_steps(plan, values)),
        tuple(run.name for run, scores in scores_by_run.items() if scores is None),
        tuple(sorted({_commit(run.config.run.dir) for run, scores in scores_by_run.items() if scores is not None})),
        _changed_data(plan),
    )


def _steps(plan: Plan, values: dict[str, dict[str, dict[int, float]]]) -> Iterator[Step]:
    """The steps of each score, over the seeds that both variants of a pair have. `values`: score -> variant -> seed."""
    for benchmark in plan.config.benchmarks:
        for name in shown_scores(benchmark):
            score = f"{benchmark} {name}"
            by_variant = values.get(score, {})
            for before, after in plan.config.pairs():
                if set(by_variant.get(before, ())) & set(by_variant.get(after, ())):
                    yield step_of(before, after, score, by_variant[before], by_variant[after])


def shown_scores(benchmark: str) -> tuple[str, ...]:
    """The names of a benchmark's scores in the table."""
    return next((names for kind, names in SHOWN_SCORES.items() if benchmark.startswith(kind)), SHOWN_REFERRING)


def shown_counts(benchmark: str) -> tuple[str, ...]:
    """The names of a benchmark's counts in the table."""
    return next((names for kind, names in SHOWN_COUNTS.items() if benchmark.startswith(kind)), ())


def spread_of(values: Sequence[float]) -> Spread:
    """The spread of the values of at least one seed."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, min(values), max(values), len(values))


def step_of(before: str, after: str, score: str, old: dict[int, float], new: dict[int, float]) -> Step:
    """The step between two variants, over the seeds that both have. `old`, `new`: seed -> value."""
    differences = {seed: new[seed] - old[seed] for seed in old if seed in new}
    spread = spread_of(list(differences.values()))
    interval = None
    if spread.sd is not None:
        t = float(stats.t.ppf(0.975, df=spread.seeds - 1))  # two-sided 95 %
        half_width = t * spread.sd / spread.seeds**0.5
        interval = (spread.mean - half_width, spread.mean + half_width)
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
    """Write `ablation.json` and `ablation.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_json(folder / "ablation.json", asdict(results))
    durable.write_text(folder / "ablation.md", markdown(results))


def markdown(results: Results) -> str:
    """The scores of every variant, then the steps, as two tables with a note on how to read them."""
    seeds = sorted({seed for by_variant in results.values.values() for runs in by_variant.values() for seed in runs})
    scores = _grid(
        ["mean ± standard deviation (lowest to highest)", *results.variants],
        [
            [score, *(_spread_text(by_variant.get(variant)) for variant in results.variants)]
            for score, by_variant in results.spreads.items()
        ],
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
        *([f"**The data changed before these runs:** {'; '.join(results.other_data)}."] if results.other_data else []),
        *([f"**Unfinished:** {'; '.join(results.unfinished)}."] if results.unfinished else []),
    ]
    reading = (
        "Differences are taken seed by seed. better, worse: the interval of their mean (Student's t over the seeds) is "
        "on one side of 0. leans: every seed agrees, but the interval contains 0. Of twenty steps without any effect, "
        "one is still called better or worse."
    )
    return "\n\n".join([*notes, scores, reading, steps]) + "\n"


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
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
    """The commit that a run was trained with; with a + if the working tree had changes."""
    path = run_dir / "environment.json"
    if not os.path.lexists(path):
        return "unknown"
    environment = read_json(path)
    commit = environment.get("commit") if isinstance(environment, dict) else 0
    if not isinstance(commit, str | None):
        raise FileError(f"{path} is damaged: it does not name the code of the run. Delete it: the code is then unknown")
    return f"{(commit or 'unknown')[:7]}{'+' if environment.get('modified_files') else ''}"


def _trained_on(plan: Plan) -> Iterator[tuple[Run, str]]:
    """Of each run that has a checkpoint, the fingerprint of the data that it was trained on."""
    for run in plan.runs:
        if checkpoints := complete_checkpoints(run.config.run.dir / "checkpoints"):
            yield run, durable.fingerprint([json.dumps(read_state(checkpoints[-1]).data).encode()])


def _changed_data(plan: Plan) -> tuple[str, ...]:
    """Names of the runs whose data were others than those of the first run with the same mixture."""
    first: dict[str, str] = {}
    changed = []
    for run, data in _trained_on(plan):
        mixture = json.dumps([run.config.data.model_dump(mode="json", include={"mixture", "root"})])
        if first.setdefault(mixture, data) != data:
            changed.append(run.name)
    return tuple(changed)
