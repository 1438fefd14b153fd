"""DeepSpeed's files of a checkpoint: which must be there, what must be in them, and reading them so that nothing runs.

They are pickles in zip files. Only tensors, plain values and three harmless classes of DeepSpeed are made of them.

    stage 0     mp_rank_00_model_states.pt, the optimizer's state in it
    stage 1, 2  mp_rank_00_model_states.pt, and zero_pp_rank_R_mp_rank_00_optim_states.pt of each process R
    stage 3     zero_pp_rank_R_mp_rank_00_model_states.pt and ..._optim_states.pt of each process R
The names of optim_states begin with bf16_ if the weights are bfloat16.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from pixel_sail.folders.torch_files import check_zip, read_torch_file
from pixel_sail.weights.run_folder import ENGINE, DamagedCheckpoint, TrainState

STEP_KEY = "step"  # of the state that AdamW keeps of a parameter
# By ZeRO stage: where a shard has the float32 weights, as flat vectors, and where the state of the optimizer.
_UP_TO_STAGE_2 = ("single_partition_of_fp32_groups", "base_optimizer_state")
SHARD_KEYS = {1: _UP_TO_STAGE_2, 2: _UP_TO_STAGE_2, 3: ("fp32_flat_groups", "optimizer_state_dict")}


def expected_files(state: TrainState, bf16: bool) -> tuple[list[str], list[str]]:
    """Names of the files with the weights, and of those with the optimizer's state (stage 0 has both in one)."""
    stage = state.zero_stage
    shards = [f"zero_pp_rank_{rank}_mp_rank_00" for rank in range(state.world_size)] if stage > 0 else []
    weights = [f"{shard}_model_states.pt" for shard in shards] if stage == 3 else ["mp_rank_00_model_states.pt"]
    return weights, [f"{'bf16_' if bf16 else ''}{shard}_optim_states.pt" for shard in shards]


def check_engine_files(checkpoint: Path, state: TrainState, share: tuple[int, int] = (0, 1)) -> None:
    """Raise DamagedCheckpoint if files are missing or too many, or if one does not hold what it must.

    `share` (i, n): of the contents, only those of every n-th file from the i-th on are looked at. Weights are not read.
    """
    folder = checkpoint / ENGINE
    weights, optimizer = present_files(checkpoint, state)
    for name in [*weights, *optimizer][share[0] :: share[1]]:
        values = read_engine_file(folder / name, mmap=True)
        problem = _problem_of_weights(values, state) if name in weights else _problem_of_optimizer(values, state)
        if problem:
            raise DamagedCheckpoint(f"{folder / name} {problem}")


def present_files(checkpoint: Path, state: TrainState) -> tuple[list[str], list[str]]:
    """`expected_files` of a checkpoint that is there. Raises DamagedCheckpoint for missing and additional files."""
    folder = checkpoint / ENGINE
    try:
        present = {path.name for path in folder.iterdir() if path.suffix == ".pt"}
    except OSError as error:
        raise DamagedCheckpoint(f"{checkpoint} is incomplete: {folder}: {error.strerror}") from None
    saved_by = f"{checkpoint} was saved by {state.world_size} process(es) at train.zero_stage={state.zero_stage}"
    if state.world_size > len(present) and state.zero_stage > 0:
        raise DamagedCheckpoint(f"{checkpoint} is incomplete: {saved_by}, but {folder} has {len(present)} files")
    weights, optimizer = expected_files(state, bf16=any(name.startswith("bf16_") for name in present))
    for name in [*weights, *optimizer]:
        if name not in present:
            raise DamagedCheckpoint(f"{checkpoint} is incomplete: {folder / name} is missing")
    if others := sorted(present - {*weights, *optimizer}):
        raise DamagedCheckpoint(f"{saved_by}; {', '.join(others[:5])} in {folder} cannot belong to it: remove them")
    return weights, optimizer


def read_engine_file(file: Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """The contents. `mmap`: tensors are read from the file where they are used.

    Raises DamagedCheckpoint for what is no such file, is damaged, or would run code.
    """
    values = read_torch_file(file, _harmless_classes(), map_location, mmap, DamagedCheckpoint)
    if not isinstance(values, dict):
        raise DamagedCheckpoint(f"{file} holds no dict, but a {type(values).__name__}")
    return values


def check_crc(file: Path) -> None:
    """Raise DamagedCheckpoint if bytes of a file have changed since torch wrote it. Reads the whole file."""
    check_zip(file, DamagedCheckpoint)
    with zipfile.ZipFile(file) as archive:
        try:
            part = archive.testzip()
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
            raise DamagedCheckpoint(f"{file} is damaged: {error}") from None
    if part is not None:
        raise DamagedCheckpoint(f"{file} is damaged: the bytes of {part} in it have changed since they were saved")


def _harmless_classes() -> list[type]:
    """What DeepSpeed saves beside tensors and plain values: an enum of ints, a dataclass of two ints, a scale of 1.

    None of them does anything when it is made, and none has a __reduce__ or __setstate__ of its own.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _problem_of_weights(values: dict[str, Any], state: TrainState) -> str | None:
    step, module, optimizer = values.get("global_steps"), values.get("module"), values.get("optimizer")
    if not _are_tensors(module):
        return "holds no weights"
    if type(step) is not int or step != state.step:
        return f"is of step {step}, but state.json is of step {state.step}"
    if values.get("dp_world_size") != state.world_size:
        return f"was saved by {values.get('dp_world_size')} processes, but state.json by {state.world_size}"
    if state.zero_stage > 0:
        return None
    entries = _states(optimizer)
    if not entries:
        return "holds no state of the optimizer: training would go on with fresh moments"
    steps = [_step_of(entry) for entry in entries.values()]
    return _problem_of_steps([max(steps, default=0)] if any(steps) else [], state)


def _problem_of_optimizer(values: dict[str, Any], state: TrainState) -> str | None:
    zero = values.get("optimizer_state_dict")
    if not isinstance(zero, dict):
        return "holds no state of the optimizer"
    weights_key, state_key = SHARD_KEYS[state.zero_stage]
    groups, entries = zero.get(weights_key), _states(zero.get(state_key))
    if not isinstance(groups, list) or not groups or not all(isinstance(group, Tensor) for group in groups):
        return "holds no weights in float32"
    if entries.keys() != set(range(len(groups))):
        return "holds no state of the optimizer, or not of all weights: training would go on with fresh moments"
    paddings = [0] * len(groups) if state.zero_stage == 3 else zero.get("group_paddings")
    if not isinstance(paddings, list) or [type(padding) for padding in paddings[: len(groups)]] != [int] * len(groups):
        return "does not say how its weights are padded"
    for number, (group, padding) in enumerate(zip(groups, paddings, strict=False)):
        # DeepSpeed takes the padding off the weights, not off their moments.
        shape = (group.numel() + padding,)
        moments = [value for value in entries[number].values() if isinstance(value, Tensor) and value.ndim > 0]
        if not moments or group.ndim != 1 or any(moment.shape != shape for moment in moments):
            return f"holds moments of the optimizer that do not fit its weights (group {number})"
    if any(zero.get(key, False) is not False for key in ("dynamic_loss_scale", "overflow")):
        return "scales the loss, which no run of ours does"
    scaler = zero.get("loss_scaler")
    if scaler is not None and not (isinstance(scaler, _harmless_classes()[0]) and _is_no_scaling(vars(scaler))):
        return "scales the loss, which no run of ours does"
    return _problem_of_steps([_step_of(entry) for entry in entries.values()], state)


def _states(optimizer: Any) -> dict[int, dict[str, Any]]:
    """What an optimizer of torch keeps of each parameter, by its number; nothing if this is not the state of one."""
    try:
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        states = dict(optimizer["state"])
        whole = all(type(number) is int for number in [*numbers, *states]) and numbers == list(range(len(numbers)))
        whole = whole and states.keys() <= set(numbers) and all(isinstance(state, dict) for state in states.values())
    except (KeyError, TypeError, ValueError, IndexError):
        return {}
    return states if whole else {}


def _problem_of_steps(steps: list[float], state: TrainState) -> str | None:
    wrong = [step for step in steps if step != state.step]
    return f"has moments of step {wrong[0]:g}, but state.json is of step {state.step}" if wrong else None


def _step_of(entry: Any) -> float:
    """Steps of AdamW that made this state; 0 for a state without them (Muon's)."""
    step = entry.get(STEP_KEY, 0) if isinstance(entry, dict) else 0
    is_number = step.numel() == 1 if isinstance(step, Tensor) else type(step) in (int, float)
    return float(step) if is_number else -1.0


def _is_no_scaling(attributes: dict[str, Any]) -> bool:
    scale = attributes.get("cur_scale")
    return set(attributes) == {"cur_scale", "dynamic"} and (
        type(scale) in (int, float) and scale == 1 and attributes["dynamic"] is False
    )


def _are_tensors(module: Any) -> bool:
    return (
        isinstance(module, dict)
        and bool(module)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in module.items())
    )
