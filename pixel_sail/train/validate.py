"""Score a model while it trains, with the code of tools/test.py. No failure of scoring ends the training."""

from __future__ import annotations

import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import PARTIAL, read_json_lines
from pixel_sail.errors import UserError, message_of
from pixel_sail.evaluate import perbench
from pixel_sail.evaluate.benchmark import Benchmark
from pixel_sail.evaluate.gallery import write_gallery
from pixel_sail.evaluate.kinds import tasks_of
from pixel_sail.evaluate.runner import open_benchmark, run_benchmark
from pixel_sail.ranks import together
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train import distributed
from pixel_sail.train.engine import Engine, resolve_precision
from pixel_sail.train.export import export_model

FILE = "validation.jsonl"
GALLERY_CASES = 12  # of each benchmark


def open_benchmarks(config: Config) -> dict[str, Benchmark]:
    """The benchmarks of `evaluate.benchmarks` by name, "perbench" as its tasks. Opened before step 1.

    Raises ConfigError for an unknown name, and for data that are missing or cannot be read.
    """
    names = dict.fromkeys(task for name in config.evaluate.benchmarks for task in tasks_of(name))
    benchmarks = {}
    for name in names:
        try:
            benchmarks[name] = open_benchmark(name, config.data.root, config.evaluate.max_images)
        except DatasetError as error:
            raise ConfigError(f"evaluate.benchmarks: {error}") from None
    return benchmarks


def validated_steps(run_dir: Path) -> set[int]:
    """The steps after which the run has been scored. Raises FileError for a line that no run has written."""
    return {line["step"] for line in read_json_lines(run_dir / FILE, number="step")}


def is_due(config: Config, step: int, validated: set[int]) -> bool:
    """Whether a run must be scored after `step` steps; `validated`: the steps after which it has been."""
    every = config.evaluate.every
    due = step == config.train.steps or (every > 0 and step % every == 0)
    return bool(config.evaluate.benchmarks) and step > 0 and due and step not in validated


def validate(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, config: Config, benchmarks: dict[str, Benchmark], step: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, Path]]:
    """Scores, errors and galleries by benchmark; only errors on ranks other than 0. All ranks must call it.

    Each rank predicts a share. The predictions stay in run.dir/validation/step_*/predictions/, and images of a few
    evenly spaced cases in gallery/ beside it.
    """
    out = config.run.dir / "validation" / f"step_{step:08d}"
    made_with = {"run": str(config.run.dir), "step": step}
    scores, errors, galleries = {}, {}, {}
    engine.model.eval()
    try:
        predictor = _predictor(engine, tokenizer, config)
        for name, benchmark in benchmarks.items():
            try:
                # compiled layers would be compiled again for the shapes of decoding
                with torch.compiler.set_stance("force_eager"):
                    result = run_benchmark(predictor, benchmark, out, made_with)
                if result is not None:
                    scores[name] = result
                    galleries |= _gallery(benchmark, out)
            except Exception as error:  # of whatever kind, a caption scorer's for example
                errors[name] = _in_words(error)
    except Exception as error:  # no predictor
        errors = dict.fromkeys(benchmarks, _in_words(error))
    finally:
        engine.model.train()
    overall = perbench.overall(scores)
    return scores | ({} if overall is None else {perbench.KIND: overall}), errors, galleries


def _gallery(benchmark: Benchmark, out: Path) -> dict[str, Path]:
    """Images of a few cases, by the name of the benchmark; none where that fails, because the scores are there."""
    try:
        return {benchmark.name: write_gallery(benchmark, out, GALLERY_CASES)}
    except (UserError, OSError) as error:
        print(f"no images of {benchmark.name}: {message_of(error)}", file=sys.stderr)
        return {}


def _in_words(error: Exception) -> str:
    """An error in a line. The traceback of a bug goes to the console."""
    if isinstance(error, RuntimeError):
        distributed.end_if_a_rank_is_gone()
    if isinstance(error, UserError | OSError | MemoryError):
        return message_of(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"


def _predictor(engine: Engine, tokenizer: PreTrainedTokenizerBase, config: Config) -> Predictor:
    """A predictor of the model itself, or under ZeRO-3 of a copy. It computes as tools/test.py does on this device.

    On a GPU that is bf16 unless train.precision=fp32, and under autocast at stage 0, whose weights are float32.
    Under ZeRO-3 each forward pass is a collective of all ranks, but generated answers differ in length. So every rank
    loads a complete copy from a temporary export, in bf16 on a GPU; the host has only the pages of its file.
    """
    on_gpu = engine.device.type == "cuda"
    bf16 = on_gpu and resolve_precision(config.train) == "bf16"
    if engine.stage < 3:
        return Predictor(engine.model, tokenizer, autocast=bf16 and engine.stage == 0)
    folder = config.run.dir / f"validation_weights{PARTIAL}"
    precision = "fp32" if on_gpu and not bf16 else "auto"
    try:
        export_model(engine, tokenizer, folder, sums=False)  # every rank would compute them again
        return together(lambda: Predictor.from_pretrained(folder, str(engine.device), precision))
    finally:
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
