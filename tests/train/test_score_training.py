"""Training with a score head: it learns, changes nothing else, and can be added to a model that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_refer_dataset
from tiny_run import log_lines, run_cli, tiny_config, weights, write_config

from pixel_sail.config import ConfigError
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.loop import train
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.start import with_start

HEAD = "architecture.mask_scores=true"
CLIPPED = "train.clip_norm=0.05"
LORA = "train.lora={rank: 2}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("scores") / "root")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(tiny_config(folder, root, CLIPPED))
    return folder / "run"


def of_head(run: Path) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights(run).items() if name.startswith("score_head.")}


def assert_rest_has_same_bits(run: Path, without: Path) -> None:
    """The log and the weights, apart from the score head, are those of a run without one."""
    for line, bare in zip(log_lines(run), log_lines(without), strict=True):
        assert line["score"] > 0 and line["presence"] > 0
        assert {key: line[key] for key in bare if key != "loss"} == {key: bare[key] for key in bare if key != "loss"}
    mine, bare = weights(run), weights(without)
    assert mine.keys() - of_head(run).keys() == bare.keys()
    assert [name for name in bare if not torch.equal(mine[name], bare[name])] == []


@pytest.mark.parametrize("options", [[], ["train.muon={}", LORA], ["train.precision=bf16"]], ids=str)
def test_everything_else_is_the_same_to_the_bit(options: list[str], plain: Path, root: Path, tmp_path: Path) -> None:
    train(tiny_config(tmp_path, root, CLIPPED, HEAD, f"run.dir={tmp_path / 'head'}", *options))
    if options:
        train(tiny_config(tmp_path, root, CLIPPED, *options))
        plain = tmp_path / "run"
    assert_rest_has_same_bits(tmp_path / "head", plain)
    head = of_head(tmp_path / "head")
    assert len(head) == 8 and all(weight.abs().max() > 0 for weight in head.values())  # all of it has learned


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shards_of_the_head_come_together(stage: int, root: Path, tmp_path: Path) -> None:
    """Unclipped, every ZeRO stage learns what stage 0 does; a checkpoint and the export hold it."""
    options = ("train.clip_norm=0", HEAD, "train.steps=2", "train.save_every=1")
    train(tiny_config(tmp_path, root, *options))
    train(tiny_config(tmp_path, root, *options, f"train.zero_stage={stage}", f"run.dir={tmp_path / 'zero'}"))
    reference, sharded = of_head(tmp_path / "run"), of_head(tmp_path / "zero")
    assert len(reference) == 8
    for name, weight in reference.items():
        torch.testing.assert_close(sharded[name], weight, atol=1e-5, rtol=1e-4)
    model, _ = model_of_checkpoint(tmp_path / "zero/checkpoints/step_00000002")
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in sharded.items())


def test_two_processes_with_unequal_batches_learn_what_one_does(root: Path, tmp_path: Path) -> None:
    """ZeRO-3 with more micro-batches than samples, so that some are fillers: no rank waits for another for ever."""
    options = ("train.clip_norm=0", HEAD, "train.steps=2", "train.micro_batch_tokens=16")
    train(tiny_config(tmp_path, root, *options))
    status, printed = run_cli(
        write_config(tmp_path, root), *options, "train.batch_size=6", "train.zero_stage=3",
        f"run.dir={tmp_path / 'two'}", processes=2,
    )  # fmt: skip
    assert status == 0, printed
    for name, weight in of_head(tmp_path / "run").items():
        torch.testing.assert_close(of_head(tmp_path / "two")[name], weight, atol=1e-5, rtol=1e-3)


def test_a_model_without_a_head_may_get_one(plain: Path, root: Path, tmp_path: Path) -> None:
    start = f"train.init_from={plain / 'export'}"
    for name, head in (("bare", []), ("head", [HEAD])):
        config = tiny_config(tmp_path, root, start, "model={}", "architecture={}", *head, f"run.dir={tmp_path / name}")
        assert with_start(config).architecture.mask_scores == bool(head)
        train(config)
    assert_rest_has_same_bits(tmp_path / "head", tmp_path / "bare")
    export = PixelSail.from_pretrained(tmp_path / "head/export")
    assert export.config.architecture.mask_scores and export.config.architecture.patch_size == 16
    from_head = (f"train.init_from={tmp_path / 'head'}", "model={}")
    assert with_start(tiny_config(tmp_path, root, *from_head, "architecture={}")).architecture.mask_scores  # it stays
    with pytest.raises(ConfigError, match="architecture.mask_scores: config False, checkpoint True"):
        with_start(tiny_config(tmp_path, root, *from_head, "architecture={mask_scores: false}"))


def test_the_head_can_be_trained_alone(plain: Path, root: Path, tmp_path: Path) -> None:
    frozen = "train.freeze=['language_model.*','fusion.*','mask_head.*']"
    start = f"train.init_from={plain / 'export'}"
    train(tiny_config(tmp_path, root, start, "model={}", "architecture={}", HEAD, frozen))
    assert all(line["grad_norm"] > 0 for line in log_lines(tmp_path / "run"))  # that of the head
    before, after = weights(plain), weights(tmp_path / "run")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(weight.abs().max() > 0 for weight in of_head(tmp_path / "run").values())
