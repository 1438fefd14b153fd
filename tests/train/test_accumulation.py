"""Packing, accumulation and the number of processes change the speed of a run, not its result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_refer_dataset
from tiny_run import (
    assert_same_bits,
    assert_same_curve,
    forget_second_half,
    log_lines,
    run_cli,
    tiny_config,
    weights,
    write_config,
)

from pixel_sail.train.loop import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes: with equal ones, two processes would deal samples in turn."""
    root = write_refer_dataset(tmp_path_factory.mktemp("accumulation") / "root")
    write_refer_dataset(root / "narrow", size_wh=(32, 64))
    return root


def two_sizes(root: Path) -> str:
    return f"data.mixture=[{{source: refcoco}}, {{source: grefcoco, weight: 0.5, root: {root / 'narrow'}}}]"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """One process, all sequences of a step in one packed batch."""
    folder = tmp_path_factory.mktemp("reference")
    train(tiny_config(folder, root, two_sizes(root)))
    return folder / "run"


def test_the_reference_learns_in_one_micro_batch(reference: Path) -> None:
    lines = log_lines(reference)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["micro_batches"] == 1 and line["samples"] == 6 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["bce"] > 0 and line["dice"] > 0 and line["lm"] > 0 for line in lines)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.micro_batch_tokens=150"],
        ["train.micro_batch_tokens=16"],
        ["train.zero_stage=1", "train.micro_batch_tokens=150"],
        ["train.zero_stage=2", "train.micro_batch_tokens=150"],
        ["train.zero_stage=3", "train.micro_batch_tokens=16"],
        ["train.activation_checkpointing=true", "data.workers=2"],
    ],
    ids=" ".join,
)
def test_one_process(tmp_path: Path, root: Path, reference: Path, overrides: list[str]) -> None:
    train(tiny_config(tmp_path, root, two_sizes(root), *overrides))
    split = any("micro_batch" in override for override in overrides)
    assert all((line["micro_batches"] > 1) == split for line in log_lines(tmp_path / "run"))
    assert_same_curve(reference, tmp_path / "run")


@pytest.mark.parametrize("stage", [0, 2])
def test_two_processes(tmp_path: Path, root: Path, reference: Path, stage: int) -> None:
    overrides = [two_sizes(root), f"train.zero_stage={stage}", "train.micro_batch_tokens=150"]
    status, output = run_cli(write_config(tmp_path, root), *overrides, processes=2)
    assert status == 0, output
    assert_same_curve(reference, tmp_path / "run")
    assert {line["filler_passes"] for line in log_lines(tmp_path / "run")} == {0}


def test_two_processes_zero_3_and_resume(tmp_path: Path, root: Path, reference: Path) -> None:
    config = write_config(tmp_path, root)
    overrides = [two_sizes(root), "train.zero_stage=3", "train.micro_batch_tokens=150", "train.save_every=2"]
    status, output = run_cli(config, *overrides, processes=2)
    assert status == 0, output
    assert_same_curve(reference, tmp_path / "run")

    first = shutil.copytree(tmp_path / "run", tmp_path / "first")
    forget_second_half(tmp_path / "run")
    status, output = run_cli(config, *overrides, processes=2)
    assert status == 0 and "going on from step_00000002" in output, output
    assert_same_bits(first, tmp_path / "run")


def test_bf16_stays_near_float32(tmp_path: Path, root: Path, reference: Path) -> None:
    for stage in (0, 2):
        folder = tmp_path / str(stage)
        folder.mkdir()
        train(
            tiny_config(
                folder,
                root,
                two_sizes(root),
                "train.precision=bf16",
                f"train.zero_stage={stage}",
                "train.micro_batch_tokens=150",
            )
        )
        lines, exact = log_lines(folder / "run"), log_lines(reference)
        assert lines[0]["loss"] != exact[0]["loss"]
        assert max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, exact, strict=True)) < 0.1
        exported = weights(folder / "run")
        assert {tensor.dtype for tensor in exported.values()} == {torch.float32}
        # Master weights, not bf16 ones: low bits of the mantissa are in use.
        matrix = exported["fusion.patch_linear.weight"]
        assert not torch.equal(matrix, matrix.bfloat16().float())
