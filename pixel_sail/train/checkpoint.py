"""Checkpoints that a kill cannot damage, and the rules for going on from one.

    run.dir/checkpoints/step_00000010/
        state.json    step, config, data fingerprint, number of processes, bad samples so far
        engine/       DeepSpeed's own files: weights, optimizer state, one shard for each process
        model/        config.json and tokenizer, so that the weights can be read without what the run started from

A checkpoint is written beside its place as step_00000010.partial, synced, then renamed: what has the name is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError, build_config
from pixel_sail.data.durable import sync_path
from pixel_sail.train import distributed
from pixel_sail.train.engine import Engine

PARTIAL = ".partial"
MODEL = "model"  # the folder of config.json and tokenizer in a checkpoint

# Keys that may differ between a checkpoint and the run that goes on from it. `data.root`, and an expert's `path` and
# `cache`, may move: data and experts themselves are compared by their fingerprints. The two memory settings change
# nothing but the rounding of sums.
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


@dataclass(frozen=True)
class TrainState:
    """Where a run stands. Everything random is a function of seed and position, so no generator needs saving."""

    step: int  # optimizer steps completed
    bad_samples: int
    world_size: int
    data: list[dict[str, Any]]  # Mixture.fingerprint()
    config: dict[str, Any]
    experts: dict[str, str] = field(default_factory=dict)  # Distillation.fingerprints


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint that this run goes on from; None to start anew.

    Raises ConfigError when `train.resume` names no checkpoint, or when going on would overwrite what a run left behind.
    """
    folder = config.run.dir / "checkpoints"
    saved = complete_checkpoints(folder)
    resume = config.train.resume
    if resume == "auto":
        return saved[-1] if saved else None
    if resume == "never":
        _refuse_used_folder(config.run.dir, "train.resume=never starts anew")
        return None
    chosen = Path(resume)
    if not (chosen / "state.json").is_file():
        raise ConfigError(
            f"train.resume={resume}: not a checkpoint (no state.json in it); give auto, never or a folder step_*"
        )
    if chosen.resolve().parent != folder.resolve():
        _refuse_used_folder(config.run.dir, f"train.resume={resume} comes from another run")
    elif chosen.resolve() != saved[-1].resolve():
        raise ConfigError(
            f"{folder} holds newer checkpoints than {chosen.name}: move them away, or give another run.dir"
        )
    return chosen


def complete_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != PARTIAL and (path / "state.json").is_file())


def remove_leftovers(run_dir: Path) -> None:
    """Deletes what killed saves left behind. Rank 0 only."""
    for path in [*(run_dir / "checkpoints").glob(f"*{PARTIAL}"), *run_dir.glob(f"*{PARTIAL}")]:
        shutil.rmtree(path)


def read_state(checkpoint: Path) -> TrainState:
    return TrainState(**json.loads((checkpoint / "state.json").read_text()))


def check_same_run(
    state: TrainState, config: Config, data: list[dict[str, Any]], experts: dict[str, str], checkpoint: Path
) -> None:
    """Raises ConfigError that names every difference which would change the result or that ZeRO cannot follow."""
    differences = [
        f"{key} was {_shorten(old)}, is {_shorten(new)}"
        for key, old, new in _differences(_with_defaults(state.config, checkpoint), config.model_dump(mode="json"))
        if not _is_free(key)
    ]
    if state.data != data:
        differences.append(f"the data changed (samples and keys of each source were {state.data}, are {data})")
    differences += [
        f"expert {name} was {state.experts[name]}, is {fingerprint}"
        for name, fingerprint in experts.items()
        if state.experts.get(name, fingerprint) != fingerprint
    ]
    if state.world_size != distributed.world_size() and config.train.zero_stage > 0:
        differences.append(
            f"the number of processes was {state.world_size}, is {distributed.world_size()} (ZeRO cannot re-cut shards)"
        )
    if differences:
        raise ConfigError(
            f"cannot go on from {checkpoint}: " + "; ".join(differences) + ". Give another run.dir to start anew, "
            "or train.init_from=<run> to start from weights alone"
        )


def save_checkpoint(
    engine: Engine, state: TrainState, tokenizer: PreTrainedTokenizerBase, run_dir: Path, keep: int
) -> None:
    """Writes one checkpoint and deletes all but the `keep` newest. All ranks must call it."""
    folder = run_dir / "checkpoints"
    final = folder / f"step_{state.step:08d}"
    partial = final.with_name(final.name + PARTIAL)
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    engine.deepspeed.save_checkpoint(str(partial), tag="engine", save_latest=False)
    if distributed.rank() == 0:
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
        engine.model.config.save_pretrained(partial / MODEL)
        tokenizer.save_pretrained(partial / MODEL)
    distributed.barrier()
    if distributed.local_rank() == 0:  # every node syncs what its processes wrote
        sync_tree(partial)
    distributed.barrier()
    if distributed.rank() == 0:
        replace_folder(partial, final)
        for old in complete_checkpoints(folder)[:-keep]:
            _discard(old)
    distributed.barrier()


def load_checkpoint(engine: Engine, checkpoint: Path) -> None:
    """Puts weights and optimizer state of every rank back. All ranks must call it."""
    loaded, _ = engine.deepspeed.load_checkpoint(str(checkpoint), tag="engine")
    if loaded is None:
        raise ConfigError(f"DeepSpeed found no weights in {checkpoint / 'engine'}")


def sync_tree(folder: Path) -> None:
    """fsync of every file and folder below `folder`, and of itself."""
    for path in [*folder.rglob("*"), folder]:
        sync_path(path)


def replace_folder(partial: Path, final: Path) -> None:
    """Gives a synced folder its final name, for good."""
    if final.exists():
        _discard(final)
    partial.rename(final)
    sync_path(final.parent)


def _discard(folder: Path) -> None:
    # Renamed first: a kill while files are being deleted must not leave a folder that looks whole.
    # Not by the name of the partial folder that may be about to take its place.
    doomed = folder.with_name(f"{folder.name}.old{PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _refuse_used_folder(run_dir: Path, why: str) -> None:
    used = [name for name in ("log.jsonl", "checkpoints", "export") if (run_dir / name).exists()]
    if used:
        raise ConfigError(
            f"{why}, but {run_dir} already holds {', '.join(used)}: give another run.dir, or train.resume=auto to go on"
        )


def _with_defaults(values: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The config of a checkpoint with the keys that came later; as it is where it has keys that went."""
    try:
        return build_config(values, str(checkpoint)).model_dump(mode="json")
    except ConfigError:
        return values


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of everything that is not equal in two plain config trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in _differences(a, b, f"{prefix}.{i}")]
    return [] if old == new else [(prefix, old, new)]


def _is_free(key: str) -> bool:
    in_free_section = any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
    moved = (key.startswith("data.mixture.") and key.endswith(".root")) or (
        key.startswith("experts.") and key.endswith((".path", ".cache"))
    )
    return in_free_section or moved


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
