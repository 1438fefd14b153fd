"""The training loop, and the run folder that it starts from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pixel_sail.config import Config, environment, save_config
from pixel_sail.data.loader import StepData, load_steps
from pixel_sail.data.mixture import exclusion_lines, open_mixture
from pixel_sail.durable import write_json
from pixel_sail.evaluate.held_out import held_out_images
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.train import checkpoint as checkpoints
from pixel_sail.train import distributed
from pixel_sail.train.build import build_encoder, build_model, build_step_dataset
from pixel_sail.train.distillation import open_distillation
from pixel_sail.train.engine import Engine, check_distribution
from pixel_sail.train.export import export_model
from pixel_sail.train.finetune import prepare_finetuning
from pixel_sail.train.log import RunLog, Stopwatch, forget_after
from pixel_sail.train.optim import lr_at
from pixel_sail.train.step import StepTotals, gather_totals, record_bad_samples, run_micro_batches, take_step
from pixel_sail.train.validate import validate
from pixel_sail.weights.run_folder import TrainState
from pixel_sail.weights.start import with_start


def train(config: Config) -> None:
    """Train to the end, from the checkpoint that `train.resume` selects, and export the model.

    Raises ConfigError for a config that cannot be used or resumed, TrainingStopped (step.py) for a loss or gradient
    that is not finite and for too many bad samples. All ranks raise the same error.
    """
    config = with_start(config)
    distributed.start()
    check_distribution(config.train, distributed.world_size())
    checkpoint = distributed.on_rank_0(lambda: checkpoints.find_checkpoint(config))
    mixture = open_mixture(config, held_out_images(config))
    distillation = open_distillation(config, mixture.sources, distributed.device())
    state = _initial_state(config, mixture.fingerprint(), distillation.fingerprints, checkpoint)
    if state.step == config.train.steps and (config.run.dir / "export").exists():
        if distributed.rank() == 0:
            print(f"{config.run.dir} is finished: {state.step} steps, model in {config.run.dir / 'export'}")
        return
    if checkpoint is not None:
        checkpoints.check_files(checkpoint)
    if distributed.rank() == 0:
        prepare_folder(config, state)
    model, tokenizer = build_model(config, mixture.sources)
    if config.train.activation_checkpointing:
        model.gradient_checkpointing_enable()
    log = RunLog(config, distributed.rank() == 0, _decoder_parameters(model), distributed.world_size(), state.step)
    log.say(f"{config.run.dir}: {'starting' if checkpoint is None else f'going on from {checkpoint.name}'}")
    for source in mixture.sources:
        for problem in source.problems:
            log.say(f"left out on reading: {problem}")
    for line in [*exclusion_lines(config, mixture), *prepare_finetuning(model, tokenizer, config)]:
        log.say(line)
    engine = Engine(model, config, [MaskHead], distillation)
    if checkpoint is not None:
        checkpoints.load_checkpoint(engine, checkpoint)
    encoder = build_encoder(config, model, tokenizer, distillation.inputs)
    dataset = build_step_dataset(config, mixture, encoder)
    watch = Stopwatch()
    model.train()
    for data in timed(load_steps(dataset, state.step, config.train.steps, config.data.workers), watch):
        totals = gather_totals(data, config)
        bad_samples = state.bad_samples + record_bad_samples(data, totals, state.bad_samples, config)
        torch.manual_seed(config.run.seed + 1_000_003 * data.step + distributed.rank())
        losses = run_micro_batches(engine, data, totals, config)
        lr = lr_at(data.step, config.train.steps, config.train.lr, config.train.warmup_fraction)
        grad_norm = take_step(engine, lr, data)
        state = replace(state, step=data.step + 1, bad_samples=bad_samples)
        watch.step_done(totals.tokens)
        log.advance()
        last = state.step == config.train.steps
        if last or state.step == 1 or state.step % config.run.log_every == 0:
            log.line(log_values(state, losses, grad_norm, lr, totals), watch.averages())
            watch.restart()
        if config.evaluate.benchmarks and (last or _every(config.evaluate.every, state.step)):
            log.validation(state.step, validate(engine, tokenizer, config, state.step))
            watch.restart()
        if last or state.step % config.train.save_every == 0:
            checkpoints.save_checkpoint(engine, state, tokenizer, config.run.dir, config.train.keep_checkpoints)
            watch.restart()
    export_model(engine, tokenizer, config.run.dir / "export")
    log.say(f"{config.run.dir} is finished: {state.step} steps, model in {config.run.dir / 'export'}")
    log.close()


def log_values(
    state: TrainState, losses: dict[str, float], grad_norm: float, lr: float, totals: StepTotals
) -> dict[str, float]:
    """The reproducible values of a log line. They are those of this step, but bad_samples counts from the start."""
    return {
        "step": state.step,
        **losses,
        "grad_norm": grad_norm,
        "lr": lr,
        "samples": totals.samples,
        "tokens": totals.tokens,
        "micro_batches": totals.micro_batches,
        "dropped_turns": totals.dropped_turns,
        "bad_samples": state.bad_samples,
    }


def timed(steps: Iterator[StepData], watch: Stopwatch) -> Iterator[StepData]:
    """Yield the same items and report the time spent waiting for them to `watch`."""
    while True:
        started = time.perf_counter()
        data = next(steps, None)
        if data is None:
            return
        watch.data_waited(started)
        yield data


def prepare_folder(config: Config, state: TrainState) -> None:
    """Put the run folder into its state after `state.step` steps; write config.yaml and environment.json."""
    folder = config.run.dir
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_run_leftovers(folder)
    checkpoints.set_aside_after(folder, state.step)
    for name in ("log.jsonl", "validation.jsonl", "bad_samples.jsonl"):
        forget_after(folder / name, state.step)
    for validation in (folder / "validation").glob("step_*"):
        if int(validation.name.removeprefix("step_")) > state.step:
            shutil.rmtree(validation)  # else validation would continue the predictions of an earlier run
    save_config(config, folder / "config.yaml")
    write_json(folder / "environment.json", environment())


def _initial_state(
    config: Config, data: list[dict[str, Any]], experts: dict[str, str], checkpoint: Path | None
) -> TrainState:
    values, world_size = config.model_dump(mode="json"), distributed.world_size()
    if checkpoint is None:
        return TrainState(0, 0, world_size, data, values, experts)
    state = checkpoints.read_progress(checkpoint)
    checkpoints.check_same_run(state, config, data, experts, checkpoint)
    return replace(state, config=values, world_size=world_size)


def _decoder_parameters(model: torch.nn.Module) -> int:
    """Parameters that every token passes through: the decoder's without its input embeddings."""
    decoder = model.language_model
    return sum(p.numel() for p in decoder.parameters()) - decoder.get_input_embeddings().weight.numel()


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
