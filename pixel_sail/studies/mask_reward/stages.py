"""Train and score the stages of a study. A finished stage is not done again; a torn one begins anew."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixel_sail import durable
from pixel_sail.config import Config, environment
from pixel_sail.data.mixture import open_mixture
from pixel_sail.errors import FileError
from pixel_sail.evaluate.benchmark import Benchmark
from pixel_sail.evaluate.held_out import held_out_images
from pixel_sail.evaluate.runner import open_benchmark, run_benchmark
from pixel_sail.files import read_json
from pixel_sail.folders.checksums import write_sums
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.mask_reward.plan import START, Arm, Plan
from pixel_sail.studies.mask_reward.training import train_stage
from pixel_sail.train.build import build_encoder, build_model
from pixel_sail.weights.start import with_start

SCORES = "scores.json"


def finished(plan: Plan, seed: int, stage: str) -> dict[str, Any] | None:
    """scores.json of a stage: {benchmarks, max_images, minutes, commit}; None until it is scored on all benchmarks.

    Raises FileError for a damaged one.
    """
    path = plan.folder(seed, stage) / SCORES
    if not os.path.lexists(path):
        return None
    scores = _values(path, ("benchmarks", "max_images", "minutes", "commit"))
    whole = scores["max_images"] == plan.study.max_images and set(plan.study.benchmarks) <= set(scores["benchmarks"])
    return scores if whole else None


def run_seed(plan: Plan, seed: int) -> None:
    """Do what is left of a seed: the start, then the arms, each with its scores."""
    benchmarks = [
        open_benchmark(name, plan.configs[seed].data.root, plan.study.max_images) for name in plan.study.benchmarks
    ]
    for stage in plan.study.stages():
        if finished(plan, seed, stage) is None:
            started = time.monotonic()
            _train(plan, seed, stage)
            _score(plan, seed, stage, benchmarks)
            print(f"seed {seed}, {stage}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def stage_config(plan: Plan, seed: int, stage: str) -> Config:
    """The training config of a stage: its start, steps and rate."""
    config, start = plan.configs[seed], plan.study.start
    if stage == START:
        changes = {"steps": start.steps, "lr": start.lr}
    else:
        changes = {"init_from": plan.folder(seed, START) / "export"}
    return with_start(config.model_copy(update={"train": config.train.model_copy(update=changes)}))


def _train(plan: Plan, seed: int, stage: str) -> None:
    """Train a stage and write its export, unless that is there."""
    folder, study = plan.folder(seed, stage), plan.study
    if (folder / "export").exists():
        return
    config = stage_config(plan, seed, stage)
    shutil.rmtree(folder, ignore_errors=True)  # of a stage that was ended before its export
    folder.mkdir(parents=True)
    mixture = open_mixture(config, held_out_images(config))
    model, tokenizer = build_model(config, mixture.sources)
    arms = {START: Arm(name=START, lm=config.loss.lm, reward=0.0)} | {arm.name: arm for arm in study.arms}
    first = 0 if stage == START else study.start.steps * config.train.batch_size
    encoder, made_by = build_encoder(config, model, tokenizer), environment()  # the code may change meanwhile
    started = time.monotonic()
    train_stage(model, encoder, mixture, config, study, arms[stage], first, folder / "log.jsonl")
    durable.write_json(folder / "trained.json", {"minutes": (time.monotonic() - started) / 60, **made_by})
    with durable.replaced_folder(folder / "export") as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_sums(partial)


def _score(plan: Plan, seed: int, stage: str, benchmarks: list[Benchmark]) -> None:
    """Score the export of a stage as tools/test.py does: greedy answers."""
    folder = plan.folder(seed, stage)
    trained = _values(folder / "trained.json", ("minutes", "commit"))
    predictor = Predictor.from_pretrained(folder / "export")
    predictor.sampling = Sampling()
    made_with = {"stage": str(folder), "max_images": plan.study.max_images}
    scores = {benchmark.name: run_benchmark(predictor, benchmark, folder, made_with) for benchmark in benchmarks}
    values = {"benchmarks": scores, "max_images": plan.study.max_images, "minutes": trained["minutes"]}
    durable.write_json(folder / SCORES, values | {"commit": trained["commit"]})


def log_of(plan: Plan, seed: int, stage: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a stage's log. Raises FileError for one without the numbers `names`."""
    path = plan.folder(seed, stage) / "log.jsonl"
    lines = durable.read_json_lines(path, number="step")
    for number, line in enumerate(lines, 1):
        missing = [name for name in names if type(line.get(name)) not in (int, float)]
        if missing:
            raise FileError(f"{path}, line {number}: {missing[0]} is no number; mend or remove the line")
    return lines


def _values(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """A JSON file of ours. Raises FileError where it lacks one of `names`."""
    values = read_json(path)
    if not isinstance(values, dict) or not values.keys() >= set(names):
        raise FileError(f"{path} is damaged: it has not {', '.join(names)}. Delete {path.parent}, and it is done again")
    return values
