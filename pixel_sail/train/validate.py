"""Score a model while it trains, with the code of tools/test.py."""

from __future__ import annotations

import shutil
from typing import Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config
from pixel_sail.durable import PARTIAL
from pixel_sail.evaluate.runner import open_benchmark, run_benchmark
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train import distributed
from pixel_sail.train.engine import Engine
from pixel_sail.train.export import export_model


def validate(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, config: Config, step: int
) -> dict[str, dict[str, Any]]:
    """Scores of `evaluate.benchmarks` by name, empty on ranks other than 0. All ranks must call it.

    Each rank predicts a share. The predictions stay in run.dir/validation/step_*/predictions/.
    """
    out = config.run.dir / "validation" / f"step_{step:08d}"
    predictor = _predictor(engine, tokenizer, config)
    engine.model.eval()
    scores = {}
    for name in config.evaluate.benchmarks:
        benchmark = open_benchmark(name, config.data.root, config.evaluate.max_images)
        result = run_benchmark(predictor, benchmark, out, made_with={"run": str(config.run.dir), "step": step})
        if result is not None:
            scores[name] = result
    engine.model.train()
    return scores


def _predictor(engine: Engine, tokenizer: PreTrainedTokenizerBase, config: Config) -> Predictor:
    """A predictor of the model itself, or under ZeRO-3 of a copy.

    Under ZeRO-3 each forward pass is a collective of all ranks, but generated answers differ in length. So every rank
    loads a complete copy from a temporary export.
    """
    if engine.stage < 3:
        return Predictor(engine.model, tokenizer)
    folder = config.run.dir / f"validation_weights{PARTIAL}"
    export_model(engine, tokenizer, folder)
    predictor = Predictor.from_pretrained(folder, device=str(engine.device))
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(folder)
    return predictor
