"""Log a run: a console line, a progress bar, reproducible JSON lines, curves, trackers."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pixel_sail.config import Config
from pixel_sail.durable import append_json_line, read_json_lines, write_json_lines
from pixel_sail.errors import UserError, message_of
from pixel_sail.interrupts import finish_first
from pixel_sail.losses import LOSS_COUNTS, SCORE_COUNTS
from pixel_sail.train import distributed
from pixel_sail.train.curves import draw_curves
from pixel_sail.train.flops import Flops
from pixel_sail.train.trackers import Trackers

# Values of a log line that depend on time or the machine. All others are the same in every run of a config.
CLOCK_KEYS = ("data_ms", "step_ms", "tokens_per_s", "mfu", "memory_gib")

# Dense bf16 peak of one GPU in FLOP/s (NVIDIA data sheets), by a part of its name; the first match is used.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}


class Stopwatch:
    """Seconds spent waiting for data and in whole steps since the last log line."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.data_s = 0.0
        self.steps = 0
        self.tokens = self.attended = 0
        self._started = time.perf_counter()

    def data_waited(self, since: float) -> None:
        self.data_s += time.perf_counter() - since

    def step_done(self, tokens: int, attended: int) -> None:
        self.steps += 1
        self.tokens += tokens
        self.attended += attended

    def averages(self) -> dict[str, float]:
        """Milliseconds per step, tokens and attended pairs per second since the last restart."""
        elapsed_s = time.perf_counter() - self._started
        return {
            "data_ms": 1e3 * self.data_s / self.steps,
            "step_ms": 1e3 * elapsed_s / self.steps,
            "tokens_per_s": self.tokens / elapsed_s,
            "attended_per_s": self.attended / elapsed_s,
        }


class RunLog:
    """Writes on rank 0, does nothing on other ranks. `step` in log.jsonl is the number of completed steps."""

    def __init__(self, config: Config, writes: bool, flops: Flops, gpus: int, start_step: int):
        self.writes = writes
        self.steps = config.train.steps
        self.unscored: dict[str, str] = {}  # errors of the last validation
        self.path = config.run.dir / "log.jsonl"
        self.flops = flops
        self.peak_flops = peak_flops() * gpus
        interactive = sys.stderr.isatty()
        self.bar = tqdm(total=self.steps, initial=start_step, unit="step", disable=not (writes and interactive))
        self.trackers = Trackers(config, start_step, self._say) if writes else None

    def line(self, values: dict[str, Any], clock: dict[str, float]) -> None:
        """One console line, one JSON line, one point of the trackers. `values` are reproducible, `clock` is not."""
        if not self.writes:
            return
        attended_per_s = clock["attended_per_s"]
        clock = {key: value for key, value in clock.items() if key != "attended_per_s"}
        clock |= {"memory_gib": _peak_memory_gib()}
        if self.peak_flops:
            done = self.flops.of_step(clock["tokens_per_s"], attended_per_s)
            clock["mfu"] = done / self.peak_flops
        append_json_line(self.path, values | clock)
        self._say(console_line(values, clock, self.steps))
        self.trackers.numbers(values | clock, values["step"])

    def validation(
        self, step: int, scores: dict[str, dict[str, Any]], errors: dict[str, str], galleries: dict[str, Path]
    ) -> None:
        """Scores of each benchmark after `step` steps, or why there are none; images of some of its cases.

        They go to validation.jsonl, the console and the trackers. At the end of the run, `close` repeats the last
        `errors`.
        """
        if not self.writes:
            return
        line = {"step": step, "benchmarks": scores} | ({"errors": errors} if errors else {})
        append_json_line(self.path.with_name("validation.jsonl"), line)
        self.unscored = errors
        for name, message in errors.items():
            self._say(f"step {step}/{self.steps}  {name}  not scored: {message}")
        for name, values in scores.items():
            numbers = "  ".join(f"{key} {value:.2f}" for key, value in values.items() if isinstance(value, float))
            self._say(f"step {step}/{self.steps}  {name}  {numbers}")
        flat = {f"{name}/{key}": value for name, values in scores.items() for key, value in values.items()}
        self.trackers.numbers(flat, step)
        self.trackers.images(galleries, step)

    def say(self, message: str) -> None:
        """Print a message, on rank 0."""
        if self.writes:
            self._say(message)

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        for name, message in self.unscored.items():
            self._say(f"{name} was not scored at the end: {message}; tools/test.py can still score the export")
        self.bar.close()
        if self.writes:
            with finish_first("the curves"):  # a signal has nothing left to stop
                self.draw()
            self.trackers.finish()

    def draw(self) -> None:
        """Draws curves.png, on rank 0. It is a view of the log: a failure costs no run."""
        if not self.writes:
            return
        try:
            draw_curves(self.path.parent)
        except (OSError, UserError) as error:
            self._say(f"no curves: {message_of(error)}")

    def _say(self, message: str) -> None:
        self.bar.write(message, file=sys.stdout)
        sys.stdout.flush()


def console_line(values: dict[str, Any], clock: dict[str, float], steps: int) -> str:
    """The console line of one logged step."""
    losses = [name for name in values if name in LOSS_COUNTS | SCORE_COUNTS or name.startswith("distill_")]
    terms = "  ".join(f"{name} {values[name]:.4f}" for name in losses)
    eta_s = (steps - values["step"]) * clock["step_ms"] / 1e3
    parts = [
        f"step {values['step']}/{steps}",
        f"loss {values['loss']:.4f} ({terms})",
        f"lr {values['lr']:.2e}",
        f"grad {values['grad_norm']:.2f}",
        f"data {clock['data_ms']:.0f} ms",
        f"step {clock['step_ms']:.0f} ms",
        f"{clock['tokens_per_s']:.0f} tokens/s",
        *([f"MFU {100 * clock['mfu']:.0f} %"] if "mfu" in clock else []),
        f"{clock['memory_gib']:.1f} GiB",
        *([f"fillers {values['filler_passes']}"] if values["filler_passes"] else []),
        *([f"skipped {values['bad_samples']}"] if values["bad_samples"] else []),
        f"ETA {format_seconds(eta_s)}",
    ]
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which a resumed run writes again."""
    if path.exists():
        write_json_lines(path, [line for line in read_json_lines(path, number="step") if line["step"] <= step])


def peak_flops() -> float:
    if distributed.device().type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), 0.0)


def _peak_memory_gib() -> float:
    if distributed.device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
