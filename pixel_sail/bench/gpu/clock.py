"""Time on the GPU's own clock, and how far results are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def gpu_ms(work: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    """Milliseconds of one call, the mean of `repeats` that follow each other."""
    for _ in range(warm_up):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def relative_error(values: torch.Tensor, expected: torch.Tensor) -> float:
    """|values - expected| / |expected|, Euclidean norms over all elements, in float64."""
    values, expected = values.detach().double(), expected.detach().double().to(values.device)
    return ((values - expected).norm() / expected.norm()).item()


def idle_share(runs: Sequence[tuple[float, float]]) -> float:
    """The share of the time between the first start and the last end in which nothing runs. `runs`: sorted by start."""
    busy, end = 0.0, runs[0][0]
    for start, stop in runs:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - runs[0][0])
