"""The same run under every launcher, as a user starts it: the same weights, and an error of one rank ends all."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from conftest import LAUNCHER_KEYS, REPOSITORY, free_port, write_refer_dataset
from tiny_run import write_config
from warm import TIMEOUT_S, start_tool

# Stage 2: rank 1 writes a file of its own at every save.
RUN = ("train.zero_stage=2", "train.steps=100000", "train.save_every=1", "train.keep_checkpoints=100000")
FIRST = "checkpoints/step_00000002"


def launchers() -> dict[str, list[str]]:
    """The commands before tools/train.py, for two processes."""
    bin_folder, port = Path(sys.executable).parent, str(free_port())
    slurm = ["--nodes=1", "--ntasks-per-node=2", "--immediate=60", "--quiet"]
    return {
        "deepspeed": [str(bin_folder / "deepspeed"), "--num_accelerators=2", f"--master_port={port}"],
        "torchrun": [str(bin_folder / "torchrun"), "--nproc_per_node=2", f"--master_port={port}"],
        "accelerate": [str(bin_folder / "accelerate"), "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
        + ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"],
        "slurm": ["salloc", *slurm, "bash", "docs/slurm_train.sh"],  # which calls srun
    }


def skip_where_missing(command: list[str]) -> None:
    name = Path(command[0]).name
    if shutil.which(command[0]) is None:
        pytest.skip(f"{name} is not installed")
    if name == "salloc":
        srun = ["srun", "--immediate=10", "--ntasks=2", "true"]
        try:  # without its daemons it asks for them for minutes
            answer = subprocess.run(srun, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired:
            pytest.skip("srun does not answer")
        if answer.returncode:
            pytest.skip(f"srun gives no two tasks here: {answer.stderr.strip()[-200:]}")


def rank_1(config: Path) -> psutil.Process | None:
    """Its first process; data workers, which are forked, come later."""
    ranks = [p for p in psutil.process_iter() if str(config) in _words(p) and _environment(p).get("RANK") == "1"]
    return min(ranks, key=lambda p: p.create_time(), default=None)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def fail_in_rank_1(run: Path, is_alive: Callable[[], bool], process: Callable[[], int]) -> None:
    """After the second save, rank 1 may write no large files any more."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (run / FIRST).exists() and is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_alive():
        resource.prlimit(process(), resource.RLIMIT_FSIZE, (3000, 3000))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("launchers") / "root")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, torch.Tensor]:
    """Weights after two steps of two processes without a launcher."""
    folder = tmp_path_factory.mktemp("reference")
    started = start_tool("tools/train.py", write_config(folder, root), *RUN, processes=2)
    fail_in_rank_1(folder / "run", started.ranks[1].is_alive, lambda: started.ranks[1].pid)
    check_end(*started.finish())
    return weights_after_2_steps(folder)


def weights_after_2_steps(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run" / FIRST / "engine/mp_rank_00_model_states.pt")["module"]


def check_end(status: int, output: str) -> None:
    assert status not in (0, None), output
    assert output.count("error: cannot save ") == output.count(": File too large") == 1, output


@pytest.mark.parametrize("launcher", launchers())
def test_the_same_weights_and_one_error(
    launcher: str, tmp_path: Path, root: Path, reference: dict[str, torch.Tensor]
) -> None:
    command = launchers()[launcher]
    skip_where_missing(command)
    config = write_config(tmp_path, root)
    script = [] if launcher == "slurm" else ["tools/train.py"]
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHER_KEYS}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    with (tmp_path / "output").open("w") as output:
        run = subprocess.Popen(
            [*command, *script, str(config), *RUN], cwd=REPOSITORY, env=environment, stdout=output, stderr=output
        )
        try:
            fail_in_rank_1(tmp_path / "run", lambda: run.poll() is None, lambda: rank_1(config).pid)
            status = run.wait(TIMEOUT_S)
        finally:
            run.kill()
    printed = (tmp_path / "output").read_text()
    check_end(status, printed)
    assert not [process for process in psutil.process_iter() if str(config) in _words(process)], printed
    weights = weights_after_2_steps(tmp_path)
    assert [name for name in reference if not torch.equal(weights[name], reference[name])] == []
