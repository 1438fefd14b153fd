"""Time of a training step without experts, with cached features, and with experts online."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pixel_sail.config import Config, ConfigError, ExpertConfig
from pixel_sail.data.loader import StepData
from pixel_sail.data.mixture import Mixture, open_mixture
from pixel_sail.evaluate.held_out import held_out_images
from pixel_sail.experts import open_expert
from pixel_sail.experts.cache import CacheWriter, finish
from pixel_sail.experts.fill_cache import ImagesToCache, manifest_of, store_images
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.train import distributed
from pixel_sail.train.build import build_encoder, build_model, build_step_dataset
from pixel_sail.train.distillation import open_distillation
from pixel_sail.train.engine import Engine
from pixel_sail.train.flops import Flops
from pixel_sail.train.step import gather_totals, run_micro_batches


@dataclass
class TrainingSetup:
    """A config with its engine and its data, prepared in advance, and the times measured so far."""

    config: Config
    engine: Engine
    steps: list[StepData]
    data_ms: list[float]
    step_ms: list[float]


def measure_distill(config: Config, steps: int) -> dict[str, Any]:
    """Medians over `steps` steps of the config after one warm-up step; the three setups take turns at every step.

    `step_ms` is the time of forward, backward and update; `data_ms` that of reading, encoding and packing in this
    process, which workers hide in a run. `ratio` is the median over steps. Raises ConfigError for a config without
    experts.
    """
    if not config.experts:
        raise ConfigError("tools/bench.py distill compares with and without experts: the config names none")
    distributed.start()
    mixture = open_mixture(config, held_out_images(config))
    with tempfile.TemporaryDirectory() as folder:
        cached, kilobytes = _make_caches(config, mixture, steps + 1, Path(folder))
        online = [expert.model_copy(update={"cache": None, "standardize": False}) for expert in config.experts]
        experts_of = {"none": [], "cached": cached, "online": online}
        setups = {name: _prepare(config, experts, mixture, steps + 1) for name, experts in experts_of.items()}
        for number in range(steps + 1):
            for setup in setups.values():
                setup.step_ms.append(_time_step(setup, number))
    result: dict[str, Any] = {"bench": "distill", "device": str(distributed.device()), "steps": steps}
    result["experts"] = {expert.name: {"at": expert.at, "kb_an_image": kilobytes[expert.name]} for expert in cached}
    for name, setup in setups.items():
        result[name] = {"step_ms": _median(setup.step_ms), "data_ms": _median(setup.data_ms)}
    plain = setups["none"].step_ms
    result["ratio"] = {
        name: round(median(a / b for a, b in zip(setups[name].step_ms[1:], plain[1:], strict=True)), 3)
        for name in ("cached", "online")
    }
    return result


def _make_caches(
    config: Config, mixture: Mixture, steps: int, folder: Path
) -> tuple[list[ExpertConfig], dict[str, float]]:
    """The experts with caches of only the images of the first steps, and kB per image of each."""
    samples = dict.fromkeys(mixture.locate(position)[:2] for position in range(steps * config.train.batch_size))
    images = [
        (number, index)
        for number, index in samples
        if mixture.sources[number].sample(index, np.random.default_rng(0)).image is not None
    ]
    cached, kilobytes = [], {}
    for expert in config.experts:
        changed = expert.model_copy(update={"cache": folder / expert.name})
        opened = open_expert(expert, distributed.device())
        with CacheWriter(changed.cache, manifest_of(changed, config.architecture, opened)) as writer:
            to_cache = ImagesToCache(config, [changed], opened.multiple, mixture.sources, images)
            store_images(opened, to_cache, [writer], config, batch_size=8, progress=False)
        statistics = finish(changed.cache, progress=False)
        kilobytes[expert.name] = round(statistics["bytes"] / statistics["images"] / 1e3, 1)
        cached.append(changed)
    return cached, kilobytes


def _prepare(config: Config, experts: Sequence[ExpertConfig], mixture: Mixture, steps: int) -> TrainingSetup:
    config = config.model_copy(update={"experts": list(experts)})
    model, tokenizer = build_model(config, mixture.sources)
    distillation = open_distillation(config, mixture.sources, distributed.device())
    flops = Flops.of(model)
    engine = Engine(model, config, [MaskHead], distillation)
    encoder = build_encoder(config, model, tokenizer, distillation.inputs)
    dataset = build_step_dataset(config, mixture, encoder, flops)
    setup = TrainingSetup(config, engine, [], [], [])
    model.train()
    for number in range(steps):
        started = time.perf_counter()
        setup.steps.append(dataset[number])
        setup.data_ms.append(1e3 * (time.perf_counter() - started))
    return setup


def _time_step(setup: TrainingSetup, number: int) -> float:
    """Milliseconds of one step. Reading the loss and the gradient norm waits for the device."""
    data = setup.steps[number]
    started = time.perf_counter()
    run_micro_batches(setup.engine, data, gather_totals(data, setup.config), setup.config)
    setup.engine.step(lr=0.0)
    return 1e3 * (time.perf_counter() - started)


def _median(values: list[float]) -> float:
    return round(median(values[1:]), 1)  # the first is warm-up
