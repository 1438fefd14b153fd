"""A checkpoint of somebody else runs nothing; a damaged one is named, and the older whole one is gone on from."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_refer_dataset
from tiny_run import assert_same_bits, tiny_config

from pixel_sail.config import ConfigError
from pixel_sail.errors import UserError
from pixel_sail.train.checkpoint import SaveFailed
from pixel_sail.train.loop import train
from pixel_sail.weights.checksums import CHECKSUMS, problem_of, write_checksums
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.run_folder import DamagedCheckpoint, saved_steps
from pixel_sail.weights.start import find_model

STAGES = (0, 2, 3)
STEP_2, STEP_4 = "step_00000002", "step_00000004"
MODEL_FILE = {stage: "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
              for stage in STAGES}  # fmt: skip
OPTIMIZER_FILE = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("damaged") / "root")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[int, Path]:
    """Finished runs that saved at steps 2 and 4, by ZeRO stage. Copy one before changing it."""
    folders = {}
    for stage in STAGES:
        folders[stage] = tmp_path_factory.mktemp(f"stage_{stage}")
        train(tiny_config(folders[stage], root, "train.save_every=2", f"train.zero_stage={stage}"))
    return folders


class Case:
    """A copy of a run without its export, whose newest checkpoint is to be damaged."""

    def __init__(self, folder: Path, root: Path, source: Path, stage: int):
        self.folder, self.root, self.stage = folder, root, stage
        self.run = Path(shutil.copytree(source / "run", folder / "run"))
        shutil.rmtree(self.run / "export")
        self.older, self.newest = (self.run / "checkpoints" / name for name in (STEP_2, STEP_4))

    def resume(self, *overrides: str) -> None:
        train(tiny_config(self.folder, self.root, "train.save_every=2", f"train.zero_stage={self.stage}", *overrides))

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the contents of an engine file, and the checksums too, as somebody would who means it."""
        file = self.newest / "engine" / name
        values = torch.load(file, weights_only=False)
        change(values)
        torch.save(values, file)
        self.renew_checksums()

    def renew_checksums(self) -> None:
        (self.newest / CHECKSUMS).unlink(missing_ok=True)
        write_checksums(self.newest, {})

    def refused(self, *parts: str, export: bool = True) -> None:
        """Resuming and exporting name the fault and the older checkpoint that is whole."""
        with pytest.raises(DamagedCheckpoint) as caught:
            self.resume()
        for part in (*parts, f"{self.older} is whole: to go on from there, add train.resume={self.older}"):
            assert part in str(caught.value)
        if export:
            with pytest.raises(DamagedCheckpoint) as caught:
                model_of_checkpoint(find_model(self.run))
            for part in (*parts, f"{self.older} is whole: give that instead"):
                assert part in str(caught.value)


@pytest.fixture
def case(tmp_path: Path, root: Path, finished: dict[int, Path]) -> Callable[[int], Case]:
    return lambda stage: Case(tmp_path, root, finished[stage], stage)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
@pytest.mark.parametrize(
    "stage, name", [(stage, MODEL_FILE[stage]) for stage in STAGES] + [(2, OPTIMIZER_FILE), (3, OPTIMIZER_FILE)]
)
def test_a_pickle_that_runs_code_is_refused(stage: int, name: str, kind: str, case, tmp_path: Path) -> None:
    copy, marker = case(stage), tmp_path / "marker"
    file = copy.newest / "engine" / name
    if kind == "zip":
        values = torch.load(file, weights_only=False)
        torch.save(values | {"ds_config": Hostile(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(marker)))
    copy.renew_checksums()
    reason = "asks for posix.system, which could run code" if kind == "zip" else "is damaged or not complete"
    copy.refused(f"{file} {reason}")
    (copy.newest / CHECKSUMS).unlink()  # as an older checkpoint has none
    copy.refused(f"{file} {reason}")
    assert not marker.exists()


def test_no_file_of_a_checkpoint_is_unpickled(case, tmp_path: Path) -> None:
    """Whatever the name: those that are there, and those that DeepSpeed, torch or transformers would look for."""
    marker = tmp_path / "marker"
    for stage in (3,):
        copy = case(stage)
        names = [path.relative_to(copy.newest) for path in copy.newest.rglob("*") if path.is_file()]
        names += [Path("latest"), Path("model/pytorch_model.bin"), Path("model/training_args.bin")]
        names += [Path("engine/mp_rank_01_model_states.pt"), Path("engine/zero_pp_rank_1_mp_rank_00_optim_states.pt")]
        for name in names:
            before = (copy.newest / name).read_bytes() if (copy.newest / name).exists() else None
            (copy.newest / name).write_bytes(pickle.dumps(Hostile(marker)))
            for action in (copy.resume, lambda copy=copy: model_of_checkpoint(copy.newest)):
                try:
                    action()
                except UserError as error:
                    assert str(copy.newest) in str(error)
            assert not marker.exists(), name
            shutil.rmtree(copy.run / "export", ignore_errors=True)
            (copy.newest / name).unlink()
            if before is not None:
                (copy.newest / name).write_bytes(before)
        shutil.rmtree(copy.run)


def test_the_tensors_of_a_pickle_cannot_claim_more_than_the_file_has(case) -> None:
    copy = case(0)
    file = copy.newest / "engine" / MODEL_FILE[0]
    contents = file.read_bytes()
    assert b"M\x78\x01K \x86" in contents  # the shape (376, 32) of the embeddings
    file.write_bytes(contents.replace(b"M\x78\x01K \x86", b"M\xff\xffK \x86"))
    copy.renew_checksums()
    copy.refused(f"{file} is damaged")


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_bit_in_any_file_is_named(stage: int, case) -> None:
    copy, rng = case(stage), random.Random(stage)
    files = [path for path in copy.newest.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        contents = bytearray(path.read_bytes())
        place = rng.randrange(len(contents))
        contents[place] ^= 1 << rng.randrange(8)
        before = path.read_bytes()
        path.write_bytes(contents)
        problem = problem_of(copy.newest)
        assert problem is not None, (path, place)
        assert str(path) in problem or path.name == CHECKSUMS
        path.write_bytes(before[:-1])
        assert path.name == CHECKSUMS or f"{path} is damaged" in problem_of(copy.newest)
        path.unlink()
        problem = problem_of(copy.newest)
        assert path.name == CHECKSUMS or path.name in problem
        path.write_bytes(before)
    assert problem_of(copy.newest) is None


@pytest.mark.parametrize("stage", STAGES)
def test_an_older_checkpoint_without_checksums_has_its_tensors_checked(stage: int, case) -> None:
    copy = case(stage)
    (copy.newest / CHECKSUMS).unlink()
    assert problem_of(copy.newest) is None
    for path in (copy.newest / "engine").iterdir():
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 16
        before = path.read_bytes()
        path.write_bytes(contents)
        assert f"{path} is damaged" in problem_of(copy.newest)
        path.write_bytes(before)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_goes_on_from_the_older_checkpoint(stage: int, case, finished: dict[int, Path]) -> None:
    copy = case(stage)
    file = copy.newest / "engine" / MODEL_FILE[stage]
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    copy.refused(f"{file} is damaged: its bytes have changed since they were saved")
    copy.resume(f"train.resume={copy.older}")
    assert_same_bits(copy.run, finished[stage] / "run")
    names = sorted(path.name for path in copy.newest.parent.iterdir())
    assert names == [STEP_2, STEP_4, f"{STEP_4}.damaged"]
    with pytest.raises(ConfigError, match="leave train.resume out to go on from the newest"):
        copy.resume(f"train.resume={copy.older}")


def test_no_older_checkpoint_is_whole(case) -> None:
    copy = case(0)
    for checkpoint in (copy.older, copy.newest):
        (checkpoint / "state.json").write_text("{")
    with pytest.raises(DamagedCheckpoint, match=r"state.json is not valid JSON: .* No older checkpoint of this run is"):
        copy.resume()
    shutil.rmtree(copy.older)
    with pytest.raises(DamagedCheckpoint, match="No older checkpoint of this run is whole"):
        copy.resume()


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_engine_files_of_another_step(stage: int, checksums: bool, case) -> None:
    copy = case(stage)
    for name in sorted(path.name for path in (copy.newest / "engine").iterdir()):
        before = (copy.newest / "engine" / name).read_bytes()
        shutil.copy(copy.older / "engine" / name, copy.newest / "engine" / name)
        if not checksums:
            (copy.newest / CHECKSUMS).unlink(missing_ok=True)
        problem = problem_of(copy.newest)
        assert name in problem
        assert ("changed since" if checksums else "of step 2, but state.json is of step 4") in problem
        (copy.newest / "engine" / name).write_bytes(before)


def empty_state(values: dict[str, Any]) -> None:
    values["optimizer"]["state"] = {}


def of(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: values["optimizer_state_dict"][key]


def last_group_missing(values: dict[str, Any]) -> None:
    of("base_optimizer_state")(values)["state"].popitem()
    of("single_partition_of_fp32_groups")(values).pop()


def short_moments(values: dict[str, Any]) -> None:
    state = of("base_optimizer_state")(values)["state"]
    state[0]["exp_avg"] = state[0]["exp_avg"][:10].clone()


def short_everything(values: dict[str, Any]) -> None:
    """DeepSpeed fills what is missing with zeros."""
    state = of("base_optimizer_state")(values)["state"]
    state[0] |= {key: state[0][key][:10].clone() for key in ("exp_avg", "exp_avg_sq")}
    groups = of("single_partition_of_fp32_groups")(values)
    groups[0] = groups[0][:10].clone()


def fresh_moments(values: dict[str, Any]) -> None:
    for entry in of("optimizer_state_dict")(values)["state"].values():
        entry["step"] = torch.zeros(())


def scaled(values: dict[str, Any]) -> None:
    of("loss_scaler")(values).cur_scale = 0.0


@pytest.mark.parametrize(
    "stage, change, message",
    [
        (0, empty_state, "holds no state of the optimizer: training would go on with fresh moments"),
        (0, lambda values: values.update(optimizer=None), "holds no state of the optimizer"),
        (0, lambda values: values["optimizer"]["param_groups"][0].update(betas=(0.5, 0.5)), "other settings of the"),
        (0, lambda values: values["optimizer"]["state"][31].update(exp_avg=None), "exp_avg of "),
        (0, lambda values: values["optimizer"]["state"].update({15: []}), "holds no state of the optimizer"),
        (0, lambda values: values["optimizer"]["param_groups"][0]["params"].reverse(), "holds no state of the"),
        (0, lambda values: values["module"].popitem(), "does not fit the model"),
        (2, lambda values: of("base_optimizer_state")(values).update(state={}), "holds no state of the optimizer, or"),
        (2, last_group_missing, "1 of 2 states of the optimizer"),
        (2, lambda values: values["optimizer_state_dict"].update(group_paddings=[]), "how its weights are padded"),
        (2, short_moments, "moments of the optimizer that do not fit its weights (group 0)"),
        (2, short_everything, "has the shape (10,), not the shape (12736,)"),
        (2, lambda values: values["optimizer_state_dict"].update(overflow=[]), "scales the loss"),
        (2, scaled, "scales the loss"),
        (2, lambda values: values["optimizer_state_dict"].update(clip_grad=0.0), "other settings of the optimizer"),
        (3, lambda values: of("optimizer_state_dict")(values).update(state={}), "holds no state of the optimizer, or"),
        (3, lambda values: values["optimizer_state_dict"].update(fp32_flat_groups=[]), "holds no weights in float32"),
        (3, fresh_moments, "has moments of step 0, but state.json is of step 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", str(value)),
)
def test_what_deepspeed_would_take_silently(stage: int, change: Callable, message: str, case) -> None:
    copy = case(stage)
    copy.edit(MODEL_FILE[0] if stage == 0 else OPTIMIZER_FILE, change)
    copy.refused(message, export=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stage", STAGES)
def test_values_that_are_not_finite_are_named(stage: int, value: float, case) -> None:
    copy, name = case(stage), "language_model.model.norm.weight"

    def spoil(values: dict[str, Any]) -> None:
        if stage == 0:
            values["module"][f"model.{name}"][3] = value
        else:
            of("fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups")(values)[0].data[:] = value

    copy.edit(MODEL_FILE[0] if stage == 0 else OPTIMIZER_FILE, spoil)
    with pytest.raises(DamagedCheckpoint, match="not finite"):
        copy.resume()
    with pytest.raises(DamagedCheckpoint, match=f"not finite .*{name}"):
        model_of_checkpoint(copy.newest)


def test_moments_that_are_not_finite_are_named(case) -> None:
    copy = case(0)
    copy.edit(MODEL_FILE[0], lambda values: values["optimizer"]["state"][0]["exp_avg_sq"].fill_(float("nan")))
    copy.refused("exp_avg_sq of language_model.model.embed_tokens.weight in the optimizer has values", export=False)


def changed(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: "", "is not valid JSON"),
        (lambda text: "[]", "it holds no object"),
        (lambda text: "null", "it holds no object"),
        (lambda text: "[" * 100_000, "nested too deep"),
        (lambda text: '{"step": ' + "[" * 500 + "]" * 500 + "}", "is missing"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "data"}), "data is missing"),
        (changed(extra=1), "unknown keys: extra"),
        (changed(step="4"), "step is no int"),
        (changed(step=4.0), "step is no int"),
        (changed(step=True), "step is no int"),
        (changed(step=-4), "step is -4"),
        (changed(step=6), "is of step 6, but its folder is named step_00000004"),
        (changed(world_size=0), "world_size is 0"),
        (changed(bad_samples=None), "bad_samples is no int"),
        (changed(data={}), "data is no list"),
        (changed(data=[1]), "data is no list of objects"),
        (changed(experts=[]), "experts is no dict"),
        (changed(experts={"a": 1}), "experts are no text"),
        (changed(config=[]), "config is no dict"),
        (changed(config={}), "config has no train.zero_stage"),
        (changed(config={"train": {"zero_stage": True}}), "config has no train.zero_stage"),
        (changed(config={"train": {"zero_stage": 7}}), "config has no train.zero_stage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_state_json_that_no_run_wrote(edit: Callable[[str], str], message: str, case) -> None:
    copy = case(0)
    path = copy.newest / "state.json"
    path.write_text(edit(path.read_text()))
    copy.refused(str(path), message)


def test_a_number_of_processes_that_no_files_are_for(case) -> None:
    copy = case(2)
    path = copy.newest / "state.json"
    path.write_text(changed(world_size=10**12)(path.read_text()))
    with pytest.raises(DamagedCheckpoint, match="saved by 1000000000000 process"):
        model_of_checkpoint(copy.newest)
    path.write_text(changed(world_size=2)(path.read_text()))
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt is missing" in problem_of(copy.newest)


def test_checksums_that_are_no_checksums(case) -> None:
    copy = case(0)
    path = copy.newest / CHECKSUMS
    entry = json.loads(path.read_text())["state.json"]
    odd = [{"../../secret": entry}, {"/etc/passwd": entry}, {"a": entry | {"bytes": "1"}}, {"a": entry | {"b": 1}}]
    for text in ("", "[]", "{}", "{", '{"a": 1}', *map(json.dumps, odd), json.dumps({"state.json": entry})):
        path.write_text(text)
        assert str(path) in problem_of(copy.newest)


def odd(checkpoints: Path, kind: str) -> None:
    path = checkpoints / "step_00000006"
    if kind == "file":
        path.touch()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(checkpoints / "nowhere")
    elif kind == "empty":
        path.mkdir()
    else:
        shutil.copytree(checkpoints / STEP_4, path)
        (path / "state.json").unlink()
        if kind == "pipe":
            os.mkfifo(path / "state.json")
        elif kind == "folder":
            (path / "state.json").mkdir()


@pytest.mark.parametrize("kind", ["file", "loop", "dangling", "empty", "pipe", "folder", "no state"])
def test_odd_things_with_the_name_of_a_checkpoint(kind: str, case, finished: dict[int, Path]) -> None:
    """They are the newest, and nobody may go around them without being told."""
    copy = case(0)
    odd(copy.newest.parent, kind)
    with pytest.raises(DamagedCheckpoint) as caught:
        copy.resume()
    assert "step_00000006" in str(caught.value) and f"add train.resume={copy.newest}" in str(caught.value)
    with pytest.raises(DamagedCheckpoint, match=f"step_00000006.*{STEP_4} is whole: give that instead"):
        find_model(copy.run)
    copy.resume(f"train.resume={copy.newest}")
    assert_same_bits(copy.run, finished[0] / "run")


def test_other_names_are_no_checkpoints(case, finished: dict[int, Path]) -> None:
    copy = case(0)
    folder = copy.newest.parent
    for name in ("step_x", "step_", "step_-0000005", "step_00000006.bak", "step_6", "step_" + "9" * 30, "steps"):
        (folder / name).mkdir()
    (folder / "step_00000008.damaged").touch()
    assert saved_steps(folder) == [copy.older, copy.newest]
    copy.resume()
    assert_same_bits(copy.run, finished[0] / "run")


def test_more_steps_than_digits(tmp_path: Path) -> None:
    for name in ("step_100000000", "step_99999999"):
        (tmp_path / name).mkdir()
    assert [path.name for path in saved_steps(tmp_path)] == ["step_99999999", "step_100000000"]


@contextlib.contextmanager
def small_files() -> Iterator[Callable[[int], None]]:
    """Yields what keeps files from growing beyond a size: what writing meets on a full disk. It ends with the block:

    pytest may write its own lines into a file after each test.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage, limit", [(0, 0), (0, 300_000), (3, 1_000), (3, 800_000)])
def test_a_disk_that_is_full_while_saving(stage: int, limit: int, case, finished: dict[int, Path]) -> None:
    copy = case(stage)
    shutil.rmtree(copy.newest)
    message = f"cannot save {copy.newest}: .*File too large.*of before are still there"
    with small_files() as limit_to, pytest.raises(SaveFailed, match=message):
        fill_at_save(copy, limit, limit_to)
    assert os.listdir(copy.newest.parent) == [STEP_2]
    copy.resume()
    assert_same_bits(copy.run, finished[stage] / "run")


def fill_at_save(copy: Case, limit: int, limit_to: Callable[[int], None]) -> None:
    from pixel_sail.train import checkpoint

    begin = checkpoint._begin

    def full(partial: Path) -> None:
        begin(partial)
        limit_to(limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_begin", full)
        copy.resume()


@pytest.mark.parametrize("limit", [0, 200, 10_000, 200_000])
def test_a_disk_that_is_full_while_exporting(limit: int, case) -> None:
    from pixel_sail.train import loop

    copy, export = case(0), loop.export_model

    with (
        small_files() as limit_to,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(OSError, match="File too large") as caught,
    ):
        patch.setattr(loop, "export_model", lambda *arguments: (limit_to(limit), export(*arguments)))
        copy.resume()
    assert str(copy.run / "export") in str(caught.value.filename)
    assert not list(copy.run.glob("export*"))


def test_files_can_be_read_by_others_and_nothing_is_a_program(finished: dict[int, Path]) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    for stage in STAGES:
        files = [path for path in (finished[stage] / "run").rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
        assert not list((finished[stage] / "run").rglob("*.py"))
        recorded = json.loads((finished[stage] / "run/checkpoints" / STEP_4 / CHECKSUMS).read_text())
        folder = finished[stage] / "run/checkpoints" / STEP_4
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert recorded.keys() == present - {CHECKSUMS}
