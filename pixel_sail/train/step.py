"""One optimizer step over all ranks: count, accumulate gradients, update. Stops before a value that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pixel_sail.config import Config
from pixel_sail.data.deal import dealing_ranks
from pixel_sail.data.loader import BadRecord, StepData
from pixel_sail.durable import append_json_line, read_json_lines
from pixel_sail.errors import UserError
from pixel_sail.losses import loss_counts, loss_weights
from pixel_sail.ranks import raise_together
from pixel_sail.train import distributed
from pixel_sail.train.copies import in_turn
from pixel_sail.train.engine import Engine


class TrainingStopped(UserError):
    """The run cannot continue. The message says why, at which step, and names the samples concerned."""

    on_all_ranks = True


@dataclass(frozen=True)
class StepTotals:
    """What one optimizer step contains over all ranks."""

    counts: dict[str, float]  # denominators of the losses, see Batch.counts
    tokens: int
    samples: int
    bad: int
    dropped_turns: int  # samples without a pixel included
    micro_batches: int  # of the rank that has most
    filler_passes: int = 0  # of all ranks: what those with fewer compute meanwhile, see StepData.filler
    attended: int = 0  # pairs, see Batch.attended
    signal: int = 0  # that stops the run before this step, because some rank has received it; 0: none


def receive(steps: Iterator[StepData], config: Config, signal: int) -> tuple[StepData, StepTotals]:
    """The next step of this rank and its totals. `signal`: what this rank has received, or 0. All ranks must call it.

    Raises what `steps` raises on any rank: its error here, RankFailed on the others.
    """
    try:
        data, error = next(steps), None
    except (UserError, OSError, MemoryError) as caught:
        data, error = None, caught
    return data, gather_totals(data, config, signal, error)


def gather_totals(data: StepData | None, config: Config, signal: int = 0, error: Exception | None = None) -> StepTotals:
    """The totals of a step: one small all-gather at its start. All ranks must call it. `data` is None with an error."""
    names = sorted(set(loss_counts(config).values()))
    batches, bad = (data.batches, data.bad) if data is not None else ((), ())
    local = [sum(batch.counts()[name] for batch in batches) for name in names]
    local += [sum(batch.tokens for batch in batches), data.samples if data is not None else 0, len(bad)]
    dropped = sum(batch.dropped_turns for batch in batches) + sum(record.no_pixels for record in bad)
    local += [dropped, sum(batch.attended for batch in batches), len(batches), signal, error is not None]
    local += [data.dealt_by if data is not None else 0]
    by_rank = distributed.all_gather_numbers([float(value) for value in local])
    columns = list(zip(*by_rank, strict=True))
    *denominators, tokens, samples, bad, dropped, attended, passes, _, errors, _ = map(sum, columns)
    if errors:
        raise_together(error)
    *_, micro_batches, signal, _, _ = map(max, columns)
    _refuse_unequal_deals(columns[-1], data)
    counts = dict(zip(names, denominators, strict=True))
    fillers = len(by_rank) * micro_batches - passes
    numbers = (tokens, samples, bad, dropped, max(1, micro_batches), fillers, attended, signal)
    return StepTotals(counts, *map(int, numbers))


def _refuse_unequal_deals(dealt_by: tuple[float, ...], data: StepData) -> None:
    """Raise TrainingStopped, on all ranks, if ranks that deal among themselves saw other costs: samples were lost."""
    unequal = [ranks for ranks in dealing_ranks(len(dealt_by)) if len({dealt_by[rank] for rank in ranks}) > 1]
    if not unequal:
        return
    unsized = distributed.all_gather_objects(data.unsized)
    reasons = [f"rank {rank}: {reason}" for rank in unequal[0] for reason in unsized[rank]]
    raise TrainingStopped(
        f"ranks {unequal[0].start} to {unequal[0].stop - 1} do not see the same data in step {data.step + 1}: they "
        "deal the samples by the sizes of images, and these differ; nothing was updated. Give all machines the same "
        f"files; the same command goes on. {'; '.join(reasons[:8]) or 'Each rank could open every image'}"
    )


def train_step(
    engine: Engine, data: StepData, totals: StepTotals, lr: float, config: Config
) -> tuple[dict[str, float], float | Tensor]:
    """Accumulate the gradients of one step and update the weights. Returns the losses and the gradient norm, for which
    float() may wait.

    Without a usable sample on any rank nothing is updated, neither by weight decay nor by momentum; all values are 0.
    """
    if totals.samples == 0:
        return {"loss": 0.0, **dict.fromkeys(loss_weights(config), 0.0)}, 0.0
    torch.manual_seed(config.run.seed + 1_000_003 * data.step + distributed.rank())
    losses, grad_norm = run_micro_batches(engine, data, totals, config)
    return losses, take_step(engine, lr, data, grad_norm)


def run_micro_batches(
    engine: Engine, data: StepData, totals: StepTotals, config: Config
) -> tuple[dict[str, float], float | None]:
    """Accumulate the gradients of one step. Returns the loss and its unweighted terms, means over the global counts.

    And the norm of the gradients, which are clipped, or None where the engine's step clips. Reading these values is the
    only time in a step that the host waits for a GPU on our side.
    Raises TrainingStopped, on all ranks together, if the loss is not finite.
    """
    weights = loss_weights(config)
    # A step without any mask (or label, or image) has sum 0 and count 0: its term is 0.
    counts = [max(totals.counts[count_name], 1.0) for count_name in loss_counts(config).values()]
    scales = {name: weights[name] / n for name, n in zip(weights, counts, strict=True)}
    zero_scales = dict.fromkeys(scales, 0.0)
    batch_sums: list[Tensor] = []
    fillers = (data.filler,) * (totals.micro_batches - len(data.batches))
    for number, batch in enumerate(in_turn((*data.batches, *fillers), engine.copies)):
        last = number == totals.micro_batches - 1
        if number < len(data.batches):
            batch_sums.append(engine.forward_backward(batch, scales, last))
        else:
            engine.forward_backward(batch, zero_scales, last)
    local = torch.stack(batch_sums).sum(0) if batch_sums else torch.zeros(len(counts), device=engine.device)
    sums, norm = distributed.all_reduce_sum(local), engine.clip()
    *sums, norm = (sums.tolist() + [None]) if norm is None else torch.cat([sums, norm.float()[None]]).tolist()
    terms = {name: total / n for name, total, n in zip(weights, sums, counts, strict=True)}
    loss = sum(weights[name] * terms[name] for name in terms)
    if not math.isfinite(loss):
        suspects = [
            batch.keys for batch, part in zip(data.batches, batch_sums, strict=True) if not part.isfinite().all()
        ]
        raise TrainingStopped(
            f"the loss of step {data.step + 1} is not finite ({terms}); nothing was updated. "
            f"Samples of the micro-batches concerned: {_keys_of_all_ranks(suspects)}"
        )
    return {"loss": loss, **terms}, norm


def take_step(engine: Engine, lr: float, data: StepData, grad_norm: float | None) -> float | Tensor:
    """Update the weights and return the gradient norm. Raises TrainingStopped before any update if it is not finite.

    `grad_norm`: if it is known already.
    """
    if grad_norm is None:
        grad_norm = engine.step(lr)
    elif math.isfinite(grad_norm):
        engine.step(lr)
    # a norm on a GPU is finite, and is read at a log line
    if not (isinstance(grad_norm, Tensor) and grad_norm.is_cuda) and not math.isfinite(grad_norm):
        keys = _keys_of_all_ranks([batch.keys for batch in data.batches])
        raise TrainingStopped(
            f"the gradient of step {data.step + 1} is not finite; nothing was updated. Its samples: {keys}"
        )
    return grad_norm


def record_bad_samples(data: StepData, totals: StepTotals, before: int, config: Config) -> int:
    """Append the bad samples of a step to bad_samples.jsonl and return their number over all ranks.

    Samples without a pixel are appended too, but not counted: their files are in order. `before`: the number of bad
    samples of all steps before. Raises TrainingStopped with the list if the sum exceeds data.max_bad_samples.
    """
    if totals.bad == 0:
        return 0
    path = config.run.dir / "bad_samples.jsonl"
    by_rank = distributed.all_gather_objects(data.bad)
    records = sorted((record for bad in by_rank for record in bad), key=lambda record: record.position)
    distributed.on_rank_0(lambda: _append(path, records))
    bad = sum(not record.no_pixels for record in records)
    if bad and before + bad > config.data.max_bad_samples:
        lines = [line for line in read_json_lines(path) if not line.get("no_pixels")]
        listed = "\n".join(f"  {line['key']}: {line['message']}" for line in lines)
        raise TrainingStopped(
            f"{before + bad} unusable samples by step {data.step + 1}, more than "
            f"data.max_bad_samples={config.data.max_bad_samples} ({path}):\n{listed}"
        )
    return bad


def _append(path: Path, records: list[BadRecord]) -> None:
    for record in records:
        line = asdict(replace(record, step=record.step + 1))
        append_json_line(path, line if record.no_pixels else {k: v for k, v in line.items() if k != "no_pixels"})


def _keys_of_all_ranks(batches: list[tuple[str, ...]]) -> str:
    """The keys of samples of every rank, in rank order. All ranks must call it."""
    return ", ".join(key for rank in distributed.all_gather_objects(batches) for keys in rank for key in keys)
