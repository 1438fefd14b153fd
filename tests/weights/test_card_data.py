"""The front matter of a model card, read back by huggingface_hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from pixel_sail.weights.card_data import front_matter

BENCHMARKS = {
    "refcoco:val": {"ciou": 76.41234, "cases": 12, "n_acc": 70, "per_size": {"small": 1.0}, "meteor": None},
    "<b>x</b>": {"acc": 0.5},
}
METRICS = {"benchmarks": BENCHMARKS, "definitions": {"refcoco:val": {"ciou": "...", "n_acc": "..."}}}


def data_of(training: dict | None = None, remote_code: bool = False) -> ModelCardData:
    text = front_matter("a model", [] if training is None else [training], METRICS, "apache-2.0", remote_code)
    return ModelCard(f"{text}\n\n# a model\n").data


def test_scores_are_results_of_the_model_index() -> None:
    results = [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in data_of().eval_results]
    assert results == [
        ("refcoco", "val", "ciou", 76.4123),
        ("refcoco", "val", "n_acc", 70),
        ("&lt;b&gt;x&lt;/b&gt;", None, "acc", 0.5),
    ]
    assert data_of().model_name == "a model" and data_of().base_model is None and data_of().datasets is None
    assert data_of(remote_code=True).library_name == "transformers" and "custom_code" in data_of(remote_code=True).tags
    assert ModelCard(front_matter("m", [], {}, None, False)).data.eval_results is None


@pytest.mark.parametrize(
    ("training", "base"),
    [
        ({"train": {"init_from": "org/tiny@v1"}, "model": {"base": "org/other"}}, "org/tiny"),
        ({"model": {"base": "Qwen/Qwen2.5-0.5B"}}, "Qwen/Qwen2.5-0.5B"),
        ({"model": {"base": "smollm2-135m"}}, None),
        ({"train": {"init_from": "runs/quickstart"}}, None),
        ({"train": {"init_from": "here/model"}}, None),
        ({"train": {"init_from": "/data/me/model"}}, None),
    ],
)
def test_a_base_is_a_hub_id_and_no_folder(training: dict, base: str | None, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert data_of(training).base_model == base


def test_datasets_are_hub_ids() -> None:
    mixture = [
        {"source": "refcoco", "weight": 1.0},
        {"source": "hf", "path": "org/set"},
        {"source": "a", "path": "b/c"},
    ]
    assert data_of({"data": {"mixture": mixture}}).datasets == ["org/set"]


def test_the_base_is_that_of_the_first_stage_and_datasets_are_those_of_all() -> None:
    first = {"model": {"base": "org/base"}, "data": {"mixture": [{"source": "hf", "path": "org/early"}]}}
    last = {"train": {"init_from": "runs/first"}, "data": {"mixture": [{"source": "hf", "path": "org/late"}]}}
    data = ModelCard(front_matter("m", [first, last], {}, None, False)).data
    assert data.base_model == "org/base" and data.datasets == ["org/early", "org/late"]
