"""Save checkpoints that a kill cannot damage, and resume from one. Their files: weights/run_folder.py."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError, build_config, upgraded
from pixel_sail.durable import (
    differences,
    discard_folder,
    partial_of,
    publish_folder,
    remove_leftovers,
    sync_tree,
    write_json,
)
from pixel_sail.train import distributed
from pixel_sail.train.engine import Engine
from pixel_sail.weights.run_folder import ENGINE, MODEL, STATE, TrainState, complete_checkpoints, is_checkpoint

# Keys that may differ between a checkpoint and the run that resumes from it. `data.root`, and an expert's `path` and
# `cache`, may move: data and experts are compared by their fingerprints. The two memory settings change only the
# rounding of sums.
FREE_KEYS = (
    "run.dir",
    "run.log_every",
    "run.wandb_project",
    "data.root",
    "data.workers",
    "data.max_bad_samples",
    "train.resume",
    "train.save_every",
    "train.keep_checkpoints",
    "train.micro_batch_tokens",
    "train.activation_checkpointing",
    "evaluate",
)
# Keys of `architecture` that only config.json had before `architecture` was a section of a run's config.
NOT_RECORDED = ("mask_channels", "vision_experts")


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from; None to start from the beginning.

    Raises ConfigError if `train.resume` names no checkpoint, or if the run would overwrite the results of another.
    """
    folder = config.run.dir / "checkpoints"
    checkpoints = complete_checkpoints(folder)
    resume = config.train.resume
    if resume == "auto":
        return checkpoints[-1] if checkpoints else None
    if resume == "never":
        _refuse_used_folder(config.run.dir, "train.resume=never starts anew")
        return None
    chosen = Path(resume)
    if not is_checkpoint(chosen):
        raise ConfigError(
            f"train.resume={resume}: not a checkpoint (no state.json in it); give auto, never or a folder step_*"
        )
    if chosen.resolve().parent != folder.resolve():
        _refuse_used_folder(config.run.dir, f"train.resume={resume} comes from another run")
    elif chosen.resolve() != checkpoints[-1].resolve():
        raise ConfigError(
            f"{folder} holds newer checkpoints than {chosen.name}: move them away, or give another run.dir"
        )
    return chosen


def remove_run_leftovers(run_dir: Path) -> None:
    """Delete the partial files and folders that killed saves left behind. Only rank 0 may call it."""
    for folder in (run_dir / "checkpoints", run_dir):
        remove_leftovers(folder)


def check_same_run(
    state: TrainState, config: Config, data: list[dict[str, Any]], experts: dict[str, str], checkpoint: Path
) -> None:
    """Raise ConfigError that names every difference that would change the result or that ZeRO cannot handle."""
    changes = differences(_recorded_config(state.config, config, checkpoint), config.model_dump(mode="json"), _is_free)
    if state.data != data:
        changes.append(f"the data changed (samples and keys of each source were {state.data}, are {data})")
    changes += [
        f"expert {name} was {state.experts[name]}, is {fingerprint}"
        for name, fingerprint in experts.items()
        if state.experts.get(name, fingerprint) != fingerprint
    ]
    if state.world_size != distributed.world_size() and config.train.zero_stage > 0:
        changes.append(
            f"the number of processes was {state.world_size}, is {distributed.world_size()} (ZeRO cannot re-cut shards)"
        )
    if changes:
        raise ConfigError(
            f"cannot go on from {checkpoint}: " + "; ".join(changes) + ". Give another run.dir to start anew, "
            "or train.init_from=<run> to start from weights alone"
        )


def save_checkpoint(
    engine: Engine, state: TrainState, tokenizer: PreTrainedTokenizerBase, run_dir: Path, keep: int
) -> None:
    """Write a checkpoint and delete all but the `keep` newest. All ranks must call it."""
    folder = run_dir / "checkpoints"
    final = folder / f"step_{state.step:08d}"
    partial = partial_of(final)
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    engine.deepspeed.save_checkpoint(str(partial), tag=ENGINE, save_latest=False)
    if distributed.rank() == 0:
        write_json(partial / STATE, asdict(state))
        engine.model.config.save_pretrained(partial / MODEL)
        tokenizer.save_pretrained(partial / MODEL)
    distributed.barrier()
    if distributed.local_rank() == 0:  # every node syncs the files of its processes
        sync_tree(partial)
    distributed.barrier()
    if distributed.rank() == 0:
        publish_folder(partial, final)
        for old in complete_checkpoints(folder)[:-keep]:
            discard_folder(old)
    distributed.barrier()


def load_checkpoint(engine: Engine, checkpoint: Path) -> None:
    """Restore weights and optimizer state on every rank. All ranks must call it."""
    loaded, _ = engine.deepspeed.load_checkpoint(str(checkpoint), tag=ENGINE)
    if loaded is None:
        raise ConfigError(f"DeepSpeed found no weights in {checkpoint / ENGINE}")


def _refuse_used_folder(run_dir: Path, why: str) -> None:
    used = [name for name in ("log.jsonl", "checkpoints", "export") if (run_dir / name).exists()]
    if used:
        raise ConfigError(
            f"{why}, but {run_dir} already holds {', '.join(used)}: give another run.dir, or train.resume=auto to go on"
        )


def _recorded_config(values: dict[str, Any], config: Config, checkpoint: Path) -> dict[str, Any]:
    """The config of a checkpoint with today's keys; unchanged if it cannot be upgraded.

    Keys that did not exist yet get their defaults.
    """
    current = upgraded(values)
    if current is not values:
        architecture = config.architecture.model_dump(mode="json")
        current["architecture"] |= {key: architecture[key] for key in NOT_RECORDED if key not in values["model"]}
    try:
        return build_config(current, str(checkpoint)).model_dump(mode="json")
    except ConfigError:
        return values


def _is_free(key: str) -> bool:
    in_free_section = any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
    moved = (key.startswith("data.mixture.") and key.endswith(".root")) or (
        key.startswith("experts.") and key.endswith((".path", ".cache"))
    )
    return in_free_section or moved
