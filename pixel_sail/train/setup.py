"""What a run needs before its first step. Whatever can be wrong with a config, data or folders is found here.

Every rank does the same; an error of one is raised on all (ranks.together).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError, environment, save_config
from pixel_sail.data.loader import StepDataset
from pixel_sail.data.mixture import Mixture, exclusion_lines, open_mixture
from pixel_sail.durable import write_json
from pixel_sail.evaluate.benchmark import Benchmark
from pixel_sail.evaluate.held_out import held_out_images
from pixel_sail.locks import locked
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.ranks import together
from pixel_sail.train import checkpoint as checkpoints
from pixel_sail.train import distributed
from pixel_sail.train.banner import banner
from pixel_sail.train.build import (
    build_encoder,
    build_model,
    build_step_dataset,
    keep_chat_format,
    place_of_training,
)
from pixel_sail.train.compiling import compile_layers
from pixel_sail.train.curves import draw_if_behind
from pixel_sail.train.distillation import open_distillation
from pixel_sail.train.engine import Engine, check_distribution, resolve_precision
from pixel_sail.train.finetune import prepare_finetuning
from pixel_sail.train.flops import Flops
from pixel_sail.train.log import RunLog, forget_after
from pixel_sail.train.memory import decide_checkpointing
from pixel_sail.train.optim import parameter_groups
from pixel_sail.train.validate import is_due, open_benchmarks, validated_steps
from pixel_sail.weights.run_folder import MODEL, TrainState
from pixel_sail.weights.start import with_start


@dataclass(frozen=True)
class Run:
    """A run that is ready for its next step."""

    config: Config
    state: TrainState  # where it starts
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    dataset: StepDataset
    benchmarks: dict[str, Benchmark]
    validated: set[int]  # steps after which the run has been scored
    log: RunLog


@contextlib.contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Rank 0 holds the lock of the run folder. Raises locks.Busy, and OSError if nothing can be written there."""
    with contextlib.ExitStack() as stack:
        distributed.on_rank_0(lambda: stack.enter_context(locked(run_dir / ".lock", f"the run {run_dir}")))
        yield


def set_up(config: Config) -> Run | None:
    """The run of a config, in the state of the checkpoint that it goes on from. None if it is finished already."""
    config, mixture, benchmarks = together(lambda: _read(config))
    distillation = together(lambda: open_distillation(config, mixture.sources, distributed.device()))
    checkpoint = distributed.on_rank_0(lambda: _find_checkpoint(config))
    state = together(lambda: _initial_state(config, mixture.fingerprint(), distillation.fingerprints, checkpoint))
    validated = distributed.on_rank_0(lambda: validated_steps(config.run.dir))
    if _is_finished(config, state, validated):
        distributed.on_rank_0(lambda: draw_if_behind(config.run.dir))
        return None
    if checkpoint is not None:
        checkpoints.check_files(checkpoint)
    distributed.on_rank_0(lambda: prepare_folder(config, state))
    model, tokenizer = together(lambda: build_model(config, mixture.sources, place_of_training(config.train)))
    chat = [] if checkpoint is None else together(lambda: keep_chat_format(model.config, checkpoint / MODEL))
    flops = Flops.of(model)
    log = RunLog(config, distributed.rank() == 0, flops, distributed.world_size(), state.step)
    log.say(f"{config.run.dir}: {'starting' if checkpoint is None else f'going on from {checkpoint.name}'}")
    for source in mixture.sources:
        for problem in source.problems:
            log.say(f"left out on reading: {problem}")
    for line in [*chat, *exclusion_lines(config, mixture), *prepare_finetuning(model, tokenizer, config)]:
        log.say(line)
    for line in [*_prepare_layers(config, model), *banner(config, model, mixture)]:
        log.say(line)
    engine = Engine(model, config, [MaskHead], distillation)
    if checkpoint is not None:
        saved_by, processes = checkpoints.load_checkpoint(engine, checkpoint), distributed.world_size()
        if saved_by != processes:
            log.say(f"{checkpoint.name} was saved by {saved_by} process(es); the run goes on with {processes}")
    encoder = build_encoder(config, model, tokenizer, distillation.inputs)
    dataset = build_step_dataset(config, mixture, encoder, flops)
    return Run(config, state, engine, tokenizer, dataset, benchmarks, validated, log)


def prepare_folder(config: Config, state: TrainState) -> None:
    """Put the run folder into its state after `state.step` steps; write config.yaml and environment.json."""
    folder = config.run.dir
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_run_leftovers(folder)
    checkpoints.set_aside_after(folder, state.step)
    for name in ("log.jsonl", "validation.jsonl", "bad_samples.jsonl"):
        forget_after(folder / name, state.step)
    for validation in (folder / "validation").glob("step_*"):
        number = validation.name.removeprefix("step_")
        if number.isdecimal() and int(number) > state.step:
            shutil.rmtree(validation)  # else validation would continue the predictions of an earlier run
    save_config(config, folder / "config.yaml")
    write_json(folder / "environment.json", environment())


def _read(config: Config) -> tuple[Config, Mixture, dict[str, Benchmark]]:
    config = with_start(config)
    if config.data.clicks is not None and not config.architecture.clicks:
        raise ConfigError("data.clicks needs architecture.clicks=true: the model takes no clicks")
    check_distribution(config.train, distributed.world_size())
    benchmarks = open_benchmarks(config)
    return config, open_mixture(config, held_out_images(config)), benchmarks


def _find_checkpoint(config: Config) -> Path | None:
    checkpoint = checkpoints.find_checkpoint(config)
    export = config.run.dir / "export"
    if checkpoint is None and export.exists():
        raise ConfigError(
            f"{config.run.dir} holds a finished model, but no checkpoint that says of which run: give another run.dir, "
            f"or move {export} away to start anew"
        )
    return checkpoint


def _is_finished(config: Config, state: TrainState, validated: set[int]) -> bool:
    exported = (config.run.dir / "export").exists()
    return state.step == config.train.steps and exported and not is_due(config, state.step, validated)


def _initial_state(
    config: Config, data: list[dict[str, Any]], experts: dict[str, str], checkpoint: Path | None
) -> TrainState:
    values, world_size = config.model_dump(mode="json"), distributed.world_size()
    if checkpoint is None:
        return TrainState(0, 0, world_size, data, values, experts)
    state = checkpoints.read_progress(checkpoint)
    checkpoints.check_same_run(state, config, data, experts, checkpoint)
    return replace(state, config=values, world_size=world_size)


def _prepare_layers(config: Config, model: PixelSail) -> list[str]:
    """Activation checkpointing of the decoder layers, compilation. Returns lines for the user."""
    device, train = distributed.device(), config.train
    gpu_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    groups = parameter_groups(model, train)
    checkpointing = decide_checkpointing(config, model, groups, distributed.world_size(), gpu_bytes)
    if checkpointing.on:
        model.gradient_checkpointing_enable()
    lines = []
    if gpu_bytes is not None:
        lines.append(f"activation checkpointing is {'on' if checkpointing.on else 'off'}: {checkpointing.reason}")
    compiled = compile_layers(model, train, device, resolve_precision(train) == "bf16")
    return lines + ([] if compiled is None else [compiled])
