"""A run goes on with another number of processes: the same weights, moments, batches and rates, to rounding."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import write_refer_dataset
from tiny_run import assert_same_curve, tiny_config
from warm import run_tool

from pixel_sail.train.loop import train
from pixel_sail.train.recut import cut, split
from pixel_sail.weights.run_folder import DamagedCheckpoint, complete_checkpoints

# Scaled rates make several groups of the optimizer.
LORA = "train.lora={rank: 4, rows_lr_scale: 0.5}"
OPTIONS = {
    "0, Muon, LoRA": ["train.zero_stage=0", "train.muon={}", LORA],
    "1": ["train.zero_stage=1", "train.new_parts_lr_scale=2"],
    "2, LoRA": ["train.zero_stage=2", LORA],
    "3": ["train.zero_stage=3", "train.new_parts_lr_scale=2"],
    "3, LoRA": ["train.zero_stage=3", LORA],
}
PADDED = ("1", "3, LoRA")  # with three processes: few sizes are multiples of 3
SAVING = ("train.save_every=1", "train.keep_checkpoints=4")
TOLERANCE = 3e-4  # as for LoRA in test_finetune_end_to_end.py


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("world_size") / "root")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Finished runs of one process, by name; each has a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("one")
    for name, options in OPTIONS.items():
        (folder / name).mkdir()
        train(tiny_config(folder / name, root, *SAVING, *options))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, one: Path) -> Path:
    """The same, but steps 3 and 4 are of two processes."""
    return go_on(one, tmp_path_factory.mktemp("two"), tuple(OPTIONS), processes=2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, one: Path) -> Path:
    return go_on(one, tmp_path_factory.mktemp("three"), PADDED, processes=3)


def go_on(source: Path, folder: Path, names: tuple[str, ...], processes: int) -> Path:
    """Copies of runs, which `processes` processes finish from the checkpoint of step 2 on."""
    command: list[str] = []
    for name in names:
        run = Path(shutil.copytree(source / name, folder / name)) / "run"
        forget_after(run, 2)
        command += [str(folder / name / "tiny.yaml"), f"run.dir={run}", *SAVING, *OPTIONS[name], "--"]
    status, output = run_tool("tests/train/several_runs.py", *command, processes=processes)
    assert status == 0, output
    said = f"step_00000002 was saved by 1 process(es); the run goes on with {processes}"
    assert output.count(said) == len(names), output
    return folder


def forget_after(run: Path, step: int) -> None:
    """Leaves a finished run of 4 steps as a kill after `step` would."""
    shutil.rmtree(run / "export")
    for checkpoint in complete_checkpoints(run / "checkpoints")[step:]:
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    "processes, name", [*((2, name) for name in OPTIONS), *((3, name) for name in PADDED)], ids=str
)
def test_one_several_one(
    processes: int, name: str, one: Path, root: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    """Steps 1 and 2 of one process, 3 of several, 4 of one again, are the four steps of one."""
    several = request.getfixturevalue({2: "two", 3: "three"}[processes]) / name
    assert_same_curve(one / name / "run", several / "run", TOLERANCE)
    forget_after(several / "run", 3)
    train(tiny_config(several, root, *SAVING, *OPTIONS[name]))
    said = f"step_00000003 was saved by {processes} process(es); the run goes on with 1"
    assert said in capsys.readouterr().out
    assert_same_curve(one / name / "run", several / "run", TOLERANCE)


def test_a_lost_shard_is_one_message(two: Path, tmp_path: Path, root: Path) -> None:
    shutil.copytree(two / "1", tmp_path, dirs_exist_ok=True)
    forget_after(tmp_path / "run", 3)
    lost = tmp_path / "run/checkpoints/step_00000003/engine/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    lost.unlink()
    with pytest.raises(DamagedCheckpoint, match=f"is incomplete: {lost} is missing.*step_00000002 is whole"):
        train(tiny_config(tmp_path, root, *SAVING, *OPTIONS["1"]))


def test_shards_are_cut_as_they_would_have_been_saved() -> None:
    for numel, old, new in product(range(1, 20), range(1, 6), range(1, 6)):
        whole = torch.arange(1, numel + 1)
        before, after = (-(-numel // processes) for processes in (old, new))
        parts = list(F.pad(whole, (0, old * before - numel), value=-1).split(before))  # padding is not to be taken
        cuts = [cut(parts, numel, rank * after, after, "w") for rank in range(new)]
        assert torch.cat(cuts).tolist() == F.pad(whole, (0, new * after - numel)).tolist()
        with pytest.raises(DamagedCheckpoint, match=f"of w, which has {old * before + 1}"):
            cut(parts, old * before + 1, 0, after, "w")
    vectors = [torch.arange(6), torch.arange(6, 9)]
    assert [part.tolist() for part in split(vectors, [2, 4, 1, 2])] == [[0, 1], [2, 3, 4, 5], [6], [7, 8]]
    for sizes in ([2, 5, 2], [2, 4], [2, 4, 1, 3]):
        with pytest.raises(DamagedCheckpoint, match=f"a shard has 9 values, but its weights need {sum(sizes)}"):
            split(vectors, sizes)
