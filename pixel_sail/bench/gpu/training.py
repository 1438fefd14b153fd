"""tools/train.py's own run, short, at each ZeRO stage: the same losses; save, resume, validation, export."""

from __future__ import annotations

import shutil
from pathlib import Path

from pixel_sail.bench.gpu.checks import Report
from pixel_sail.bench.gpu.scenes import folder
from pixel_sail.config import REPOSITORY, Config, load_config
from pixel_sail.durable import read_json_lines
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.loop import train

STAGES = (0, 1, 2, 3)
STEPS = 12
SAME = 0.03  # losses of two stages may differ by this share: weights and sums are bf16 from stage 1 on
RESUMED = 0.01  # of a run that goes on, at one stage; atomics forbid that it is the same to the bit
# Wide enough for flash attention, with AdamW, which every stage knows.
OVERRIDES = (
    "model.scratch.hidden_size=256",
    "train.muon=null",
    "train.lr=1e-3",
    f"train.steps={STEPS}",
    f"train.save_every={STEPS // 2}",
    "train.compile=off",
    "run.log_every=1",
    "evaluate.benchmarks=[refcoco:val]",
    "evaluate.max_images=20",
)


def run(report: Report) -> None:
    losses = {}
    for stage in STAGES:
        with report.part(f"ZeRO {stage}: train, validate, export"):
            config = config_of(report, stage)
            train(config)
            losses[stage] = _losses(config)
            report.number(f"ZeRO {stage}: last loss", losses[stage][-1])
            _validated(report, config, f"ZeRO {stage}")
            Predictor.from_pretrained(config.run.dir / "export")  # as a user opens it
        with report.part(f"ZeRO {stage}: resume"):
            _resume(report, config, losses[stage], f"ZeRO {stage}")
    for stage, values in losses.items():
        if stage and 0 in losses:
            difference = _difference(values, losses[0])
            report.number(f"ZeRO {stage} next to 0, difference of losses", difference, most=SAME)


def config_of(report: Report, stage: int) -> Config:
    """A short run of configs/scratch.yaml at a ZeRO stage."""
    places = (f"run.dir={report.work / f'zero_{stage}'}", f"data.root={folder(report)}")
    values = [*OVERRIDES, *places, f"train.zero_stage={stage}"]
    return load_config(REPOSITORY / "configs" / "scratch.yaml", values)


def _losses(config: Config) -> list[float]:
    return [line["loss"] for line in read_json_lines(config.run.dir / "log.jsonl")]


def _validated(report: Report, config: Config, name: str) -> None:
    line = read_json_lines(config.run.dir / "validation.jsonl")[-1]
    if line.get("errors"):
        report.failed(f"{name}: validation", str(line["errors"]))
    else:
        report.number(f"{name}: cIoU of {config.evaluate.max_images} images", line["benchmarks"]["refcoco:val"]["ciou"])


def _resume(report: Report, config: Config, losses: list[float], name: str) -> None:
    """As a kill after half of the steps would leave the folder; then the same command."""
    _forget_second_half(config.run.dir)
    train(config)
    difference = _difference(_losses(config), losses)
    report.number(f"{name}: resumed, difference of losses", difference, most=RESUMED)


def _difference(losses: list[float], expected: list[float]) -> float:
    """The largest of all steps, relative."""
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(losses, expected, strict=True))


def _forget_second_half(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "export")
    shutil.rmtree(run_dir / "checkpoints" / f"step_{STEPS:08d}")
