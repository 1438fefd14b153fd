"""Save checkpoints that a kill cannot damage, and resume from one. Their files: weights/run_folder.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError, build_config, upgraded
from pixel_sail.durable import (
    clear,
    differences,
    discard_folder,
    partial_of,
    publish_folder,
    remove_leftovers,
    rust_errors,
    share_tree,
    sync_tree,
    write_json,
)
from pixel_sail.errors import UserError
from pixel_sail.train import distributed
from pixel_sail.train.engine import Engine
from pixel_sail.train.recut import Layout, Recut
from pixel_sail.train.restored import check_restored, optimizer_settings, shards
from pixel_sail.weights.checksums import Checksum, check_whole, newest_whole_before, problem_of, write_checksums
from pixel_sail.weights.run_folder import (
    ENGINE,
    MODEL,
    SET_ASIDE,
    STATE,
    DamagedCheckpoint,
    TrainState,
    complete_checkpoints,
    is_checkpoint,
    read_state,
    saved_steps,
    step_of,
)

if TYPE_CHECKING:
    from pixel_sail.train.deepspeed_files import EngineFiles

# Keys that may differ between a checkpoint and the run that resumes from it. `data.root`, and an expert's `path` and
# `cache`, may move: data and experts are compared by their fingerprints. The memory settings and compiling change only
# the rounding of sums.
FREE_KEYS = (
    "run.dir",
    "run.log_every",
    "run.wandb_project",
    "run.tensorboard",
    "data.root",
    "data.workers",
    "data.max_bad_samples",
    "data.file_cache_gb",
    "train.resume",
    "train.save_every",
    "train.keep_checkpoints",
    "train.micro_batch_tokens",
    "train.activation_checkpointing",
    "train.compile",
    "evaluate",
)
# Keys of `architecture` that only config.json had before `architecture` was a section of a run's config.
NOT_RECORDED = ("mask_channels", "vision_experts")


class SaveFailed(UserError):
    """A checkpoint could not be written. All ranks raise it."""

    on_all_ranks = True


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from; None to start from the beginning. It may be damaged: see `check_files`.

    Raises ConfigError if `train.resume` names no checkpoint, or if the run would overwrite the results of another.
    """
    folder = config.run.dir / "checkpoints"
    saved = saved_steps(folder)
    resume = config.train.resume
    if resume == "auto":
        return saved[-1] if saved else None
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
        return chosen
    newer = [path for path in saved if step_of(path) > (step_of(chosen) or 0)]
    whole = [path for path in newer if problem_of(path) is None]
    if whole:
        raise ConfigError(
            f"{folder} holds newer checkpoints than {chosen.name} that are whole, up to {whole[-1].name}: leave "
            f"train.resume out to go on from the newest. To go back, move them away first: "
            f"mv {' '.join(str(path) for path in newer)} ELSEWHERE; or give another run.dir"
        )
    return chosen


def read_progress(checkpoint: Path) -> TrainState:
    """The state.json of a checkpoint. All ranks must call it. Raises DamagedCheckpoint as `check_files` does."""
    state: list[TrainState] = []
    _whole_or_advice(lambda: state.append(read_state(checkpoint)), checkpoint)
    return state[0]


def check_files(checkpoint: Path) -> None:
    """Compare all files of a checkpoint with what was saved. All ranks must call it; they share the work.

    Raises DamagedCheckpoint, on all ranks, that names the damaged file and the newest older checkpoint that is whole.
    """
    share = (distributed.rank(), distributed.world_size())
    _whole_or_advice(lambda: check_whole(checkpoint, share), checkpoint)


def remove_run_leftovers(run_dir: Path) -> None:
    """Delete the partial files and folders that killed saves left behind. Only rank 0 may call it."""
    for folder in (run_dir / "checkpoints", run_dir):
        remove_leftovers(folder)


def set_aside_after(run_dir: Path, step: int) -> None:
    """Rename the damaged checkpoints that the run goes around (see find_checkpoint). Only rank 0 may call it."""
    for path in saved_steps(run_dir / "checkpoints"):
        if step_of(path) > step:
            aside = path.with_name(path.name + SET_ASIDE)
            clear(aside)
            path.rename(aside)


def check_same_run(
    state: TrainState, config: Config, data: list[dict[str, Any]], experts: dict[str, str], checkpoint: Path
) -> None:
    """Raise ConfigError that names every difference that would change the result."""
    changes = differences(_recorded_config(state.config, config, checkpoint), config.model_dump(mode="json"), _is_free)
    if state.data != data:
        changes.append(f"the data changed (samples and keys of each source were {state.data}, are {data})")
    changes += [
        f"expert {name} was {state.experts[name]}, is {fingerprint}"
        for name, fingerprint in experts.items()
        if state.experts.get(name, fingerprint) != fingerprint
    ]
    if changes:
        raise ConfigError(
            f"cannot go on from {checkpoint}: " + "; ".join(changes) + ". Give another run.dir to start anew, "
            "or train.init_from=<run> to start from weights alone"
        )


def save_checkpoint(
    engine: Engine, state: TrainState, tokenizer: PreTrainedTokenizerBase, run_dir: Path, keep: int
) -> None:
    """Write a checkpoint and delete all but the `keep` newest. All ranks must call it.

    Raises SaveFailed, on all ranks, if the disk is full or fails; what was saved before is still there.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"step_{state.step:08d}"
    partial = partial_of(final)
    files = _engine_files(partial)
    engine.deepspeed.checkpoint_engine = files
    # A script that unpickles; tools/export.py does its work.
    engine.deepspeed._copy_recovery_script = lambda folder: None
    try:
        _together(lambda: _begin(partial), only_on=distributed.rank() == 0)
        engine.deepspeed.save_checkpoint(str(partial), tag=ENGINE, save_latest=False)
        _together(files.raise_problem)
        known = {name: sums for rank in distributed.all_gather_objects(files.checksums) for name, sums in rank.items()}
        _together(lambda: _complete(partial, engine, state, tokenizer, known), only_on=distributed.rank() == 0)
        # every node syncs the files of its processes
        _together(lambda: sync_tree(partial), only_on=distributed.local_rank() == 0)
        _together(lambda: _publish(partial, final, keep), only_on=distributed.rank() == 0)
    except OSError as error:
        if distributed.rank() == 0:
            with contextlib.suppress(OSError):
                clear(partial)
        raise SaveFailed(
            f"cannot save {final}: {error.filename or partial}: {error.strerror}. The checkpoints of before are still "
            "there: mend this (free some space), then repeat the command"
        ) from None


def _engine_files(checkpoint: Path, recut: Recut | None = None) -> EngineFiles:
    from pixel_sail.train.deepspeed_files import EngineFiles  # not before distributed.start: it imports DeepSpeed

    return EngineFiles(checkpoint, recut)


def _begin(partial: Path) -> None:
    clear(partial)
    partial.mkdir(parents=True)


def _complete(
    partial: Path, engine: Engine, state: TrainState, tokenizer: PreTrainedTokenizerBase, known: dict[str, Checksum]
) -> None:
    write_json(partial / STATE, asdict(state))
    engine.model.config.save_pretrained(partial / MODEL)
    with rust_errors(partial / MODEL):
        tokenizer.save_pretrained(partial / MODEL)
    share_tree(partial)
    write_checksums(partial, known)


def _publish(partial: Path, final: Path, keep: int) -> None:
    publish_folder(partial, final)
    for old in complete_checkpoints(final.parent)[:-keep]:
        discard_folder(old)


def load_checkpoint(engine: Engine, checkpoint: Path) -> int:
    """Restore weights and optimizer state on every rank, from a checkpoint that passed `check_files`.

    Returns the number of processes that saved it, which may be any. All ranks must call it. Raises DamagedCheckpoint,
    on all ranks, for what does not fit the model, or is not finite.
    """
    settings, saved = optimizer_settings(engine), read_progress(checkpoint)
    _whole_or_advice(lambda: _load(engine, checkpoint, saved), checkpoint)
    _whole_or_advice(lambda: check_restored(engine, settings, checkpoint / ENGINE), checkpoint)
    return saved.world_size


def _load(engine: Engine, checkpoint: Path, saved: TrainState) -> None:
    try:
        recut = _recut(engine, checkpoint, saved)
        engine.deepspeed.checkpoint_engine = _engine_files(checkpoint, recut)
        if recut is not None:  # at stage 3 DeepSpeed looks for a file of this rank
            engine.deepspeed._get_all_ckpt_names = lambda folder, tag: [recut.weights_file]
        loaded, _ = engine.deepspeed.load_checkpoint(str(checkpoint), tag=ENGINE)
    except UserError:
        raise
    except Exception as error:  # DeepSpeed and torch raise whatever the first value leads to that does not fit
        raise DamagedCheckpoint(
            f"{checkpoint / ENGINE} does not fit the model: {type(error).__name__}: {error!s:.500}"
        ) from error
    if loaded is None:
        raise DamagedCheckpoint(f"DeepSpeed finds no weights in {checkpoint / ENGINE}")


def _recut(engine: Engine, checkpoint: Path, saved: TrainState) -> Recut | None:
    """Needed from stage 1 on if another number of processes has saved the checkpoint."""
    if engine.stage == 0 or saved.world_size == engine.world_size:
        return None
    sizes = tuple(shard.numel() for shard in shards(engine))
    groups = engine.deepspeed.optimizer.sub_group_to_group_id.values() if engine.stage == 3 else range(len(sizes))
    return Recut(checkpoint, saved, Layout(distributed.rank(), engine.world_size, sizes, tuple(groups)))


def _together(action: Callable[[], object], only_on: bool = True) -> None:
    """Do it, where `only_on`; an OSError or UserError of any rank is raised on every rank. All ranks must call it."""
    problem: OSError | UserError | None = None
    try:
        if only_on:
            action()
    except (OSError, UserError) as error:
        problem = error
    problems = [error for error in distributed.all_gather_objects(problem) if error is not None]
    if problems:
        raise problems[0]


def _whole_or_advice(action: Callable[[], object], checkpoint: Path) -> None:
    """Do it. All ranks must call it.

    A DamagedCheckpoint of any rank is raised on every rank, with the newest older checkpoint that is whole, and how to
    go on from that one.
    """
    try:
        _together(action)
    except DamagedCheckpoint as error:
        older = distributed.broadcast_object(newest_whole_before(checkpoint) if distributed.rank() == 0 else None)
        if older is None:
            advice = "No older checkpoint of this run is whole: restore it from a copy, or give another run.dir"
        else:
            advice = (
                f"{older} is whole: to go on from there, add train.resume={older} to the command "
                f"({checkpoint.name} is then renamed to {checkpoint.name}{SET_ASIDE})"
            )
        raise DamagedCheckpoint(f"{error}. {advice}") from None


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
    moved = (key.startswith("data.mixture.") and key.endswith((".root", ".sizes"))) or (
        key.startswith("experts.") and key.endswith((".path", ".cache"))
    )
    return in_free_section or moved
