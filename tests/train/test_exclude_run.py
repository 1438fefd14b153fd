"""A run with data.exclude: its log says what was left out, and it resumes only with the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import edit_refs, write_refer_dataset
from tiny_run import tiny_config

from pixel_sail.config import ConfigError
from pixel_sail.train.loop import train
from pixel_sail.weights.publish import open_model, publish


def test_a_run_says_it_and_resumes_only_with_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_refer_dataset(tmp_path / "root", train=4, val=2)
    edit_refs(root, lambda refs: refs[0].update(split="val"))  # of the first training image
    mixture = "data.mixture=[{source: refcoco}]"
    train(tiny_config(tmp_path, root, mixture, "train.steps=2", "data.exclude=[refcoco:val]", "train.save_every=1"))
    printed = capsys.readouterr().out
    assert "data.exclude: refcoco (train): 1 of 4 samples are left out" in printed
    publish(open_model(tmp_path / "run/export"), tmp_path / "published", torch.float32, 2**30, "tiny", None, None)
    card = (tmp_path / "published/README.md").read_text()
    assert "benchmarks were kept out of the training data (`data.exclude`): refcoco:val." in card
    for other, was in (("[]", 'data.exclude was ["refcoco:val"], is []'), ("[grefcoco:val]", "data.exclude.0 was")):
        with pytest.raises(ConfigError) as error:
            train(tiny_config(tmp_path, root, mixture, "train.steps=4", f"data.exclude={other}"))
        assert was in str(error.value) and "the data changed (samples and keys" in str(error.value)
