"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from pixel_sail.config import Config
from pixel_sail.data.loader import StepData, load_steps
from pixel_sail.interrupts import Stopped, at_once, finish_first
from pixel_sail.train import checkpoint as checkpoints
from pixel_sail.train import distributed
from pixel_sail.train.compiling import compile_seconds
from pixel_sail.train.copies import ahead
from pixel_sail.train.export import export_model
from pixel_sail.train.log import Stopwatch
from pixel_sail.train.optim import lr_at
from pixel_sail.train.setup import Run, owned, set_up
from pixel_sail.train.step import StepTotals, receive, record_bad_samples, train_step
from pixel_sail.train.validate import is_due, validate
from pixel_sail.weights.run_folder import TrainState


def train(config: Config) -> None:
    """Train to the end, from the checkpoint that `train.resume` selects, and export the model.

    Raises ConfigError for a config that cannot be used or resumed, locks.Busy if another process trains in the same
    folder, TrainingStopped (step.py) for a loss or gradient that is not finite and for too many bad samples. All ranks
    raise together, RankFailed where the error is another rank's. A signal to any rank stops all after the step in hand,
    which is saved: they raise Stopped.
    """
    distributed.start()
    with owned(config.run.dir):
        run = set_up(config)
        if run is not None:
            train_steps(run)
        if distributed.rank() == 0:
            export = config.run.dir / "export"
            print(f"{config.run.dir} is finished: {config.train.steps} steps, model in {export}")


def train_steps(run: Run) -> None:
    """Train from `run.state` to the last step; then export, validate, close the log.

    Every validation comes after a save, and the last one after the export: whatever happens to it, nothing is lost.
    """
    config, engine, state, log = run.config, run.engine, run.state, run.log
    saved, watch = state.step, Stopwatch()
    engine.model.train()
    with (
        finish_first("this step") as pending,
        contextlib.closing(loaded_steps(run)) as loaded,
    ):
        steps = timed(ahead(loaded, engine.copies), watch)
        while state.step < config.train.steps:
            _validate_if_due(run, state.step, watch)
            data, totals = receive(steps, config, pending.number)
            if totals.signal:
                if saved < state.step:
                    _save(run, state, watch)
                raise _stopped(totals.signal, state.step)
            bad_samples = state.bad_samples + record_bad_samples(data, totals, state.bad_samples, config)
            lr = lr_at(data.step, config.train.steps, config.train.lr, config.train.warmup_fraction)
            losses, grad_norm = train_step(engine, data, totals, lr, config)
            state = replace(state, step=data.step + 1, bad_samples=bad_samples)
            watch.step_done(totals.tokens, totals.attended)
            log.advance()
            if state.step == run.state.step + 1 and (compiled_s := compile_seconds()):
                log.say(f"compiled decoder layers and mask blocks in {compiled_s:.0f} s, within this first step")
            last = state.step == config.train.steps
            if last or state.step == 1 or state.step % config.run.log_every == 0:
                log.line(log_values(state, losses, grad_norm, lr, totals), watch.averages())
                watch.restart()
            if last or state.step % config.train.save_every == 0 or is_due(config, state.step, run.validated):
                _save(run, state, watch)
                saved = state.step
        with _ends_at_once(state.step):
            export_model(engine, run.tokenizer, config.run.dir / "export")
        _validate_if_due(run, state.step, watch)
    log.close()


def _save(run: Run, state: TrainState, watch: Stopwatch) -> None:
    checkpoints.save_checkpoint(run.engine, state, run.tokenizer, run.config.run.dir, run.config.train.keep_checkpoints)
    run.log.draw()
    watch.restart()


def _validate_if_due(run: Run, step: int, watch: Stopwatch) -> None:
    """Score the model after `step` steps, also when an earlier process was ended meanwhile; its predictions stay."""
    if is_due(run.config, step, run.validated):
        with _ends_at_once(step):
            run.log.validation(step, *validate(run.engine, run.tokenizer, run.config, run.benchmarks, step))
        run.validated.add(step)
        watch.restart()


@contextlib.contextmanager
def _ends_at_once(step: int) -> Iterator[None]:
    """Work after a save: a signal ends it, because the same command does it again."""
    try:
        with at_once():
            yield
    except Stopped as stopped:
        raise _stopped(stopped.number, step) from None


def _stopped(signal: int, step: int) -> Stopped:
    return Stopped(signal, f"stopped at step {step}; the same command goes on")


def log_values(
    state: TrainState, losses: dict[str, float], grad_norm: float | Tensor, lr: float, totals: StepTotals
) -> dict[str, float]:
    """The reproducible values of a log line. They are those of this step, but bad_samples counts from the start."""
    return {
        "step": state.step,
        **losses,
        "grad_norm": float(grad_norm),
        "lr": lr,
        "samples": totals.samples,
        "tokens": totals.tokens,
        "micro_batches": totals.micro_batches,
        "filler_passes": totals.filler_passes,
        "dropped_turns": totals.dropped_turns,
        "bad_samples": state.bad_samples,
    }


def loaded_steps(run: Run) -> Iterator[StepData]:
    """The data of the steps that are left; in pinned memory where they go to a GPU."""
    config, pin = run.config, run.engine.device.type == "cuda"
    return load_steps(run.dataset, run.state.step, config.train.steps, config.data.workers, pin)


def timed(steps: Iterator[StepData], watch: Stopwatch) -> Iterator[StepData]:
    """Yield the same items and report the time spent waiting for them to `watch`."""
    while True:
        started = time.perf_counter()
        data = next(steps, None)
        if data is None:
            return
        watch.data_waited(started)
        yield data
