"""A step of the 0.5B recipe at full size: time, MFU, memory next to --plan, waits of the host, where time goes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from pixel_sail.bench.gpu.checks import Report
from pixel_sail.bench.gpu.clock import idle_share
from pixel_sail.bench.step import Preset, build, random_batch
from pixel_sail.config import REPOSITORY, Config, load_config
from pixel_sail.data.loader import StepData
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train import distributed
from pixel_sail.train.compiling import compile_layers, compile_seconds
from pixel_sail.train.copies import ahead
from pixel_sail.train.engine import Engine
from pixel_sail.train.flops import Flops
from pixel_sail.train.log import peak_flops
from pixel_sail.train.memory import GIB, TokenCounts, activation_bytes, mode_of, state_bytes
from pixel_sail.train.optim import parameter_groups
from pixel_sail.train.step import gather_totals, train_step
from pixel_sail.types import Batch

# Qwen2.5-0.5B with our tokens; text and masks as in referring data.
PRESET = Preset(24, 896, 14, 2, 4864, 151_936, 16, 1024, 130, 5, 512, tied=True)
BATCHES = {"8 x 1024 px": ((1024, 1024),) * 8, "12 x 640x480": ((480, 640),) * 12}  # (height, width); a micro-batch
STAGE = 2  # the recipe's
COMPILED = (False, True)
WARM_UP, TIMED, PROFILED = 3, 8, 2
SHOWN_KERNELS = 8
PLANNED = 0.1  # measured and planned peak memory may differ by this share
WAITS = 12  # of the host in a step at ZeRO-2, DeepSpeed's; docs/performance.md


@dataclass
class Steps:
    """An engine, and steps of one micro-batch to give it."""

    engine: Engine
    config: Config
    batch: Batch

    def run(self, count: int) -> Iterator[float]:
        """Seconds of each of `count` steps from its start to its end on the GPU, as train/loop.py runs them."""
        pinned = StepData(0, (self.batch.pin_memory(),), self.batch, len(self.batch.keys), ())
        steps = ahead((replace(pinned, step=number) for number in range(count)), self.engine.copies)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for data in steps:
            train_step(self.engine, data, gather_totals(data, self.config), 1e-5, self.config)
            torch.cuda.synchronize()
            yield time.perf_counter() - started
            started = time.perf_counter()


def run(report: Report) -> None:
    distributed.start()
    for compiled in COMPILED:
        with report.part("compiled" if compiled else "eager"):
            config = _config(report, compiled)
            engine, line = _engine(config)
            report.text(f"{_mode(compiled)}: layers", line or "as they are")
            for name, sizes_px in BATCHES.items():
                with report.part(f"{name}, {_mode(compiled)}"):
                    steps = Steps(engine, config, random_batch(PRESET, sizes_px))
                    _measure(report, f"{name}, {_mode(compiled)}", steps, compiled)
            if compiled:
                report.number("compiling, all graphs", compile_seconds(), "s")
        engine = steps = None  # before the next one
        torch.cuda.empty_cache()


def _mode(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def _config(report: Report, compiled: bool) -> Config:
    tokens = max(random_tokens(sizes) for sizes in BATCHES.values())
    overrides = [f"run.dir={report.work}", "experts=[]", f"train.zero_stage={STAGE}", "train.batch_size=1000"]
    overrides += [f"train.micro_batch_tokens={tokens}", "train.activation_checkpointing=off"]
    overrides += ["architecture.mask_scores=false"]  # the preset's model has no score head
    overrides += [f"train.compile={'on' if compiled else 'off'}"]
    return load_config(REPOSITORY / "configs" / "pixel_sail_0p5b.yaml", overrides)


def random_tokens(sizes_px: Sequence[tuple[int, int]]) -> int:
    """Of a batch of images of these sizes."""
    patch = PRESET.patch_size
    return sum((h // patch) * (w // patch) + 2 + PRESET.text_tokens for h, w in sizes_px)


def _engine(config: Config) -> tuple[Engine, str | None]:
    model, _ = build(replace(PRESET, image_side_px=64), config.architecture.mask_stride, True, "cuda", torch.float32)
    line = compile_layers(model, config.train, torch.device("cuda"), bf16=True)
    engine = Engine(model, config, [MaskHead])
    engine.model.train()
    return engine, line


def _measure(report: Report, name: str, steps: Steps, compiled: bool) -> None:
    started = time.perf_counter()
    warm_up = [*steps.run(WARM_UP)]
    report.number(f"{name}: first step", warm_up[0], "s")
    torch.cuda.reset_peak_memory_stats()
    elapsed_s = median(steps.run(TIMED))
    peak = torch.cuda.max_memory_allocated()
    batch, flops = steps.batch, Flops.of(steps.engine.model)
    report.number(f"{name}: step", 1e3 * elapsed_s, "ms")
    report.number(f"{name}: tokens", batch.tokens / elapsed_s, "/s")
    if available := peak_flops():
        done = flops.of_step(batch.tokens, batch.attended) / elapsed_s
        report.number(f"{name}: MFU", 100 * done / available, "%")
    planned = planned_bytes(steps.engine.model, steps.config, batch)
    report.number(f"{name}: peak memory", peak / GIB, "GiB")
    report.number(f"{name}: planned memory", planned / GIB, "GiB")
    least = None if compiled else 1 - PLANNED  # compiled layers keep less
    report.number(f"{name}: memory, measured / planned", peak / planned, least=least, most=1 + PLANNED)
    _count_waits(report, name, steps)
    _profile(report, name, steps)
    print(f"{name}: {time.perf_counter() - started:.1f} s")


def planned_bytes(model: PixelSail, config: Config, batch: Batch) -> int:
    """What `tools/train.py --plan` predicts for one GPU and a forward pass of this batch, without checkpointing."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    states = state_bytes(weights, parameter_groups(model, config.train), STAGE, "bf16", gpus=1)
    tokens = TokenCounts(batch.tokens, len(batch.patches), len(batch.labels))
    parts = activation_bytes(model.config, (), tokens, mode_of(STAGE, "bf16"), checkpointing=False)
    return sum(astuple(states)) + sum(parts.values())


def _count_waits(report: Report, name: str, steps: Steps) -> None:
    """How often torch waits for the GPU in a step; our own wait after it, for the time, is not counted by torch."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in steps.run(1):
                pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)
    report.number(f"{name}: waits of the host in a step", waits, most=WAITS)


def _profile(report: Report, name: str, steps: Steps) -> None:
    """The share of time without a kernel, and the kernels that take most."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in steps.run(PROFILED):
            pass
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    if not kernels:
        report.skipped(f"{name}: idle share", "the profiler has recorded no kernel")
        return
    runs = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    report.number(f"{name}: idle share", 100 * idle_share(runs), "%")
    totals: dict[str, float] = {}
    for event in kernels:
        totals[event.name] = totals.get(event.name, 0.0) + event.time_range.elapsed_us()
    ordered = sorted(totals, key=lambda kernel: -totals[kernel])[:SHOWN_KERNELS]
    for number, kernel in enumerate(ordered, 1):
        share = 100 * totals[kernel] / sum(totals.values())
        report.text(f"{name}: kernel {number}, share", f"{share:.1f} % {kernel}")
