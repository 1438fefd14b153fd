"""The table of a study: scores of each stage over the seeds, paired differences, and what the answers of an arm did."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from pixel_sail import durable
from pixel_sail.studies.ablation.table import Results, markdown, spread_of, step_of
from pixel_sail.studies.mask_reward.plan import START, Plan
from pixel_sail.studies.mask_reward.stages import finished, log_of

# benchmark -> its scores in the table; for each of them, higher is better
SHOWN_SCORES = {
    "reasonseg": ("giou", "ciou", "long_giou", "short_giou"),
    "grefcoco": ("giou", "n_acc", "t_acc"),
    "refcoco": ("ciou", "giou"),
}
# what the log of a stage says of its sampled answers, and the column of the table
SAMPLED = (
    ("IoU or right abstention", "iou"),
    ("right form", "form"),
    ("questions with unequal rewards", "told_apart"),
    ("different answers to a question", "different"),
)


def results_of(plan: Plan) -> Results:
    """The finished stages. Differences: of each arm to the start, and of each later arm to the first one."""
    stages, arms = plan.study.stages(), [arm.name for arm in plan.study.arms]
    done = {(stage, seed): finished(plan, seed, stage) for seed in plan.study.seeds for stage in stages}
    values: dict[str, dict[str, dict[int, float]]] = {}
    for (stage, seed), scores in done.items():
        for score, value in () if scores is None else _shown(scores).items():
            values.setdefault(score, {stage: {} for stage in stages})[stage][seed] = value
    pairs = [*((START, arm) for arm in arms), *((arms[0], arm) for arm in arms[1:])]
    steps = [
        step_of(before, after, score, by_stage[before], by_stage[after])
        for score, by_stage in values.items()
        for before, after in pairs
        if score != "minutes" and set(by_stage[before]) & set(by_stage[after])
    ]
    spreads = {
        score: {stage: spread_of(list(of_stage.values())) for stage, of_stage in by_stage.items() if of_stage}
        for score, by_stage in values.items()
    }
    unfinished = tuple(f"{stage}, seed {seed}" for (stage, seed), scores in done.items() if scores is None)
    commits = tuple(sorted({str(scores["commit"])[:7] for scores in done.values() if scores is not None}))
    return Results(tuple(stages), tuple(values), values, spreads, tuple(steps), unfinished, commits)


def write(plan: Plan) -> str:
    """Write mask_reward.md and mask_reward.json; returns the text."""
    results = results_of(plan)
    text = f"{markdown(results)}\n{_answers_table(plan)}"
    plan.study.dir.mkdir(parents=True, exist_ok=True)
    durable.write_json(plan.study.dir / "mask_reward.json", asdict(results))
    durable.write_text(plan.study.dir / "mask_reward.md", text)
    return text


def _shown(scores: dict[str, Any]) -> dict[str, float]:
    """Score -> its value, and the minutes of training."""
    values = {}
    for benchmark, of_benchmark in scores["benchmarks"].items():
        for name in SHOWN_SCORES.get(benchmark.partition(":")[0], ()):
            if of_benchmark.get(name) is not None:
                values[f"{benchmark} {name}"] = of_benchmark[name]
    return values | {"minutes": scores["minutes"]}


def _answers_table(plan: Plan) -> str:
    """What was sampled in training, in the first and the last fifth of the steps, over all seeds."""
    head = ("sampled in training, first fifth → last fifth of the steps", *(text for text, _ in SAMPLED))
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for arm in plan.study.arms:
        done = [seed for seed in plan.study.seeds if arm.reward and finished(plan, seed, arm.name)]
        if done:
            logs = [log_of(plan, seed, arm.name, [name for _, name in SAMPLED]) for seed in done]
            lines.append(" | ".join([arm.name, *(_change(logs, name) for _, name in SAMPLED)]))
    return "".join(f"| {line} |\n" for line in lines)


def _change(logs: list[list[dict[str, Any]]], name: str) -> str:
    """The mean over all logs of a value in their first and in their last fifth."""
    first, last = [], []
    for log in logs:
        fifth = max(1, len(log) // 5)
        first += [line[name] for line in log[:fifth]]
        last += [line[name] for line in log[-fifth:]]
    return f"{statistics.fmean(first):.3f} → {statistics.fmean(last):.3f}"
