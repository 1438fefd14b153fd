"""Defaults of a folder's generation_config.json, and the two filters of sampling against transformers' own generate."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_export import save_export
from transformers import GenerationConfig

from pixel_sail.errors import WeightsError
from pixel_sail.model.generation import Sampling, _choose
from pixel_sail.model.generation_config import read_generation_config, write_generation_config
from pixel_sail.serve.predictor import Predictor

BASE = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05,
        "max_new_tokens": 7, "eos_token_id": [3, 5]}  # fmt: skip


def write(folder: Path, values: dict) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def test_the_keys_are_those_of_transformers(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == (Sampling(), ())
    GenerationConfig(**BASE).save_pretrained(tmp_path)
    assert read_generation_config(tmp_path) == (Sampling(7, temperature=0.7, top_k=20, top_p=0.8), (3, 5))
    assert read_generation_config(write(tmp_path, BASE | {"do_sample": False})) == (Sampling(7), (3, 5))
    assert read_generation_config(write(tmp_path, {"eos_token_id": 4, "max_length": 20})) == (Sampling(), (4,))
    for sampling in (Sampling(9), Sampling(9, min_presence=0.4), Sampling(9, temperature=0.5, top_k=4, top_p=0.9)):
        write_generation_config(tmp_path, sampling, 11)
        assert read_generation_config(tmp_path) == (sampling, (11,))
        theirs = GenerationConfig.from_pretrained(tmp_path)
        assert (theirs.max_new_tokens, theirs.eos_token_id, theirs.do_sample) == (9, 11, sampling.temperature > 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 10**9}, "max_new_tokens is 1000000000; give a number from 1 to 32768"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; give true or false"),
        ({"do_sample": True, "temperature": -1}, "temperature is -1; give a number from 0 to 100"),
        ({"do_sample": True, "top_p": 0}, "top_p is 0"),
        ({"min_presence": 2}, "min_presence is 2; give a number from 0 to 1"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id is ['</s>']; give a token id"),
    ],
)
def test_values_that_mean_nothing(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        read_generation_config(write(tmp_path, values))
    assert f"{tmp_path}/generation_config.json: {message}" in str(error.value)


def test_a_predictor_answers_as_its_folder_says(tmp_path: Path) -> None:
    folder = save_export(tmp_path / "export")
    plain = Predictor.from_pretrained(folder, "cpu")
    put: list[torch.Tensor] = []
    streamer = SimpleNamespace(put=put.append, end=lambda: None)
    (answer,) = plain.chat(None, "What is red?", sampling=Sampling(12), streamer=streamer)
    write(folder, {"max_new_tokens": 3})
    (short,) = Predictor.from_pretrained(folder, "cpu").chat(None, "What is red?")
    assert answer.text.startswith(short.text) and len(short.text) < len(answer.text)
    write(folder, {"max_new_tokens": 12, "eos_token_id": put[1].item()})
    assert Predictor.from_pretrained(folder, "cpu").chat(None, "What is red?")[0].text == ""
    assert Predictor.from_pretrained(folder, "cpu").sampling == Sampling(12)


def test_top_k_and_top_p_draw_what_they_may() -> None:
    """Probabilities 0.5, 0.25, 0.15, 0.1: top_k and top_p keep the first ones, and keep their proportions."""
    logits = torch.tensor([0.15, 0.5, 0.1, 0.25]).log().expand(20_000, 4)

    def shares(**options: float) -> list[float]:
        sampling = Sampling(temperature=1.0, generator=torch.Generator().manual_seed(0), **options)
        return (torch.bincount(torch.tensor(_choose(logits, sampling)), minlength=4) / len(logits)).tolist()

    assert shares() == pytest.approx([0.15, 0.5, 0.1, 0.25], abs=0.015)
    assert shares(top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.015)
    assert shares(top_p=0.8) == pytest.approx([1 / 6, 5 / 9, 0, 5 / 18], abs=0.015)
    assert shares(top_k=3, top_p=0.5) == [0, 1, 0, 0]
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="sampling needs top_k >= 0 and 0 < top_p <= 1"):
            Sampling(**wrong)
