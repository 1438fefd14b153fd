"""The training loop."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixel_sail.config import Config, environment, save_config
from pixel_sail.data.loader import StepData, StepDataset, load_steps
from pixel_sail.data.mixture import open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.durable import append_json_line, read_json_lines, write_json
from pixel_sail.losses import loss_counts, loss_weights
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.train import checkpoint as checkpoints
from pixel_sail.train import distributed
from pixel_sail.train.build import build_encoder, build_model
from pixel_sail.train.distillation import open_distillation
from pixel_sail.train.engine import Engine, check_distribution
from pixel_sail.train.export import export_model
from pixel_sail.train.finetune import prepare_finetuning
from pixel_sail.train.log import RunLog, Stopwatch, forget_after
from pixel_sail.train.optim import lr_at
from pixel_sail.train.validate import validate
from pixel_sail.weights.run_folder import TrainState, read_state
from pixel_sail.weights.start import with_start


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why, at which step, and names the samples concerned."""


def train(config: Config) -> None:
    """Trains to the end, going on from a checkpoint as `train.resume` says, and exports the model.

    Raises ConfigError for a config that cannot be used or resumed, TrainingStopped for a non-finite loss or gradient
    and for too many bad samples. Every rank raises alike.
    """
    config = with_start(config)
    distributed.start()
    check_distribution(config.train, distributed.world_size())
    checkpoint = distributed.on_rank_0(lambda: checkpoints.find_checkpoint(config))
    mixture = open_mixture(config)
    distillation = open_distillation(config, mixture.sources, distributed.device())
    state = _state_to_start_from(config, mixture.fingerprint(), distillation.fingerprints, checkpoint)
    if state.step == config.train.steps and (config.run.dir / "export").exists():
        if distributed.rank() == 0:
            print(f"{config.run.dir} is finished: {state.step} steps, model in {config.run.dir / 'export'}")
        return
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
    for line in prepare_finetuning(model, tokenizer, config):
        log.say(line)
    engine = Engine(model, config, [MaskHead], distillation)
    if checkpoint is not None:
        checkpoints.load_checkpoint(engine, checkpoint)
    encoder = build_encoder(config, model, tokenizer, distillation.inputs)
    dataset = StepDataset(
        mixture,
        encoder.encode,
        partial(pack, seg_id=encoder.tokens.seg, patch_id=encoder.tokens.vision_patch),
        config.train.batch_size,
        config.train.micro_batch_tokens,
        distributed.rank(),
        distributed.world_size(),
    )
    watch = Stopwatch()
    model.train()
    for data in timed(load_steps(dataset, state.step, config.train.steps, config.data.workers), watch):
        totals = count(data, config)
        bad_samples = state.bad_samples + note_bad_samples(data, totals, state.bad_samples, config)
        torch.manual_seed(config.run.seed + 1_000_003 * data.step + distributed.rank())
        losses = run_micro_batches(engine, data, totals, config)
        lr = lr_at(data.step, config.train.steps, config.train.lr, config.train.warmup_fraction)
        grad_norm = take_step(engine, lr, data)
        state = replace(state, step=data.step + 1, bad_samples=bad_samples)
        watch.step_done(totals.tokens)
        log.advance()
        last = state.step == config.train.steps
        if last or state.step == 1 or state.step % config.run.log_every == 0:
            log.line(log_values(state, losses, grad_norm, lr, totals, config), watch.averages())
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


@dataclass(frozen=True)
class Totals:
    """What one optimizer step holds over all ranks."""

    counts: dict[str, float]  # denominators of the losses, see Batch.counts
    tokens: int
    samples: int
    bad: int
    dropped_turns: int
    micro_batches: int  # of the rank that has most


def count(data: StepData, config: Config) -> Totals:
    """One small all-gather at the start of each step."""
    names = sorted(set(loss_counts(config).values()))
    mine = [sum(batch.counts()[name] for batch in data.batches) for name in names]
    mine += [sum(batch.tokens for batch in data.batches), data.samples, len(data.bad)]
    mine += [sum(batch.dropped_turns for batch in data.batches), len(data.batches)]
    everyone = distributed.all_gather_numbers([float(value) for value in mine])
    *denominators, tokens, samples, bad, dropped, _ = (sum(column) for column in zip(*everyone, strict=True))
    micro_batches = max(1, *(int(row[-1]) for row in everyone))
    counts = dict(zip(names, denominators, strict=True))
    return Totals(counts, int(tokens), int(samples), int(bad), int(dropped), micro_batches)


def run_micro_batches(engine: Engine, data: StepData, totals: Totals, config: Config) -> dict[str, float]:
    """Gradients of one optimizer step. Returns the loss and its unweighted terms, means over the global counts.

    Raises TrainingStopped, on all ranks together, when the loss is not finite.
    """
    weights = loss_weights(config)
    # A step without any mask (or label, or image) has sum 0 and count 0: its term is 0.
    counts = [max(totals.counts[count_name], 1.0) for count_name in loss_counts(config).values()]
    scales = {name: weights[name] / n for name, n in zip(weights, counts, strict=True)}
    nothing = dict.fromkeys(scales, 0.0)
    parts: list[Tensor] = []
    for number in range(totals.micro_batches):
        last = number == totals.micro_batches - 1
        if number < len(data.batches):
            parts.append(engine.forward_backward(data.batches[number], scales, last))
        else:
            engine.forward_backward(data.filler, nothing, last)
    mine = torch.stack(parts).sum(0) if parts else torch.zeros(len(counts), device=engine.device)
    sums = distributed.all_reduce_sum(mine).tolist()
    terms = {name: total / n for name, total, n in zip(weights, sums, counts, strict=True)}
    loss = sum(weights[name] * terms[name] for name in terms)
    if not math.isfinite(loss):
        bad = [
            key
            for part, batch in zip(parts, data.batches, strict=True)
            if not part.isfinite().all()
            for key in batch.keys
        ]
        keys = [key for keys in distributed.all_gather_objects(bad) for key in keys]
        raise TrainingStopped(
            f"the loss of step {data.step + 1} is not finite ({terms}); nothing was updated. "
            f"Samples of the micro-batches concerned: {', '.join(keys)}"
        )
    return {"loss": loss, **terms}


def take_step(engine: Engine, lr: float, data: StepData) -> float:
    """Updates the weights; the gradient norm. Raises TrainingStopped, before any update, when that is not finite."""
    grad_norm = engine.step(lr)
    if not math.isfinite(grad_norm):
        mine = [key for batch in data.batches for key in batch.keys]
        keys = [key for keys in distributed.all_gather_objects(mine) for key in keys]
        raise TrainingStopped(
            f"the gradient of step {data.step + 1} is not finite; nothing was updated. Its samples: {', '.join(keys)}"
        )
    return grad_norm


def note_bad_samples(data: StepData, totals: Totals, before: int, config: Config) -> int:
    """Lists the bad samples of a step in bad_samples.jsonl; their number over all ranks.

    Raises TrainingStopped with the list when they become more than data.max_bad_samples.
    """
    if totals.bad == 0:
        return 0
    path = config.run.dir / "bad_samples.jsonl"
    records = sorted((r for part in distributed.all_gather_objects(data.bad) for r in part), key=lambda r: r.position)
    if distributed.rank() == 0:
        for record in records:
            append_json_line(path, asdict(replace(record, step=record.step + 1)))
    distributed.barrier()
    if before + len(records) > config.data.max_bad_samples:
        listed = "\n".join(f"  {line['key']}: {line['message']}" for line in read_json_lines(path))
        raise TrainingStopped(
            f"{before + len(records)} unusable samples by step {data.step + 1}, more than "
            f"data.max_bad_samples={config.data.max_bad_samples} ({path}):\n{listed}"
        )
    return len(records)


def log_values(
    state: TrainState, losses: dict[str, float], grad_norm: float, lr: float, totals: Totals, config: Config
) -> dict[str, float]:
    """The reproducible values of a log line: those of this very step; bad_samples since the start of the run."""
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
    """The same items; the time they were waited for goes to `watch`."""
    while True:
        started = time.perf_counter()
        data = next(steps, None)
        if data is None:
            return
        watch.data_waited(started)
        yield data


def prepare_folder(config: Config, state: TrainState) -> None:
    """The run folder as it was after `state.step` steps, with what says how the run was made."""
    folder = config.run.dir
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_run_leftovers(folder)
    for name in ("log.jsonl", "validation.jsonl", "bad_samples.jsonl"):
        forget_after(folder / name, state.step)
    for scored in (folder / "validation").glob("step_*"):
        if int(scored.name.removeprefix("step_")) > state.step:
            shutil.rmtree(scored)  # else a run begun anew here would take these predictions for its own
    save_config(config, folder / "config.yaml")
    write_json(folder / "environment.json", environment())


def _state_to_start_from(
    config: Config, data: list[dict[str, Any]], experts: dict[str, str], checkpoint: Path | None
) -> TrainState:
    values, world_size = config.model_dump(mode="json"), distributed.world_size()
    if checkpoint is None:
        return TrainState(0, 0, world_size, data, values, experts)
    state = read_state(checkpoint)
    checkpoints.check_same_run(state, config, data, experts, checkpoint)
    return replace(state, config=values, world_size=world_size)


def _decoder_parameters(model: torch.nn.Module) -> int:
    """Parameters that every token passes through: the decoder's without its input embeddings."""
    decoder = model.language_model
    return sum(p.numel() for p in decoder.parameters()) - decoder.get_input_embeddings().weight.numel()


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
