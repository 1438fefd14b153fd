"""What hubs read of a model card: the front matter of README.md, by huggingface_hub's own classes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pixel_sail.folders.find import may_be_id

TASK = "image-segmentation"


def front_matter(
    name: str,
    trainings: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
    license_name: str | None,
    remote_code: bool,
) -> str:
    """YAML between two lines of ---. Nothing is guessed: a key whose value is unknown is left out.

    `trainings`: the configs of all stages, the first one first. `base_model` and `datasets` are hub ids: a folder of
    the machine is no base for others. `model-index` has the benchmarks of `metrics`, metrics.json of tools/test.py,
    with a result for each score (where there are definitions, those that are defined).
    """
    results = _results(metrics)
    data = ModelCardData(
        base_model=_base(trainings[0]) if trainings else None,
        datasets=sorted({hub_id for training in trainings for hub_id in _datasets(training)}) or None,
        eval_results=results or None,
        library_name="transformers" if remote_code else "pixel_sail",
        license=license_name,
        model_name=name if results else None,  # it names the results
        pipeline_tag=TASK,
        tags=["pixel-grounding", "pixel_sail", *(["custom_code"] if remote_code else [])],
    )
    return f"---\n{data.to_yaml()}\n---"


def _base(training: dict[str, Any]) -> str | None:
    """The hub id that the run started from, without its revision."""
    for section, key in (("train", "init_from"), ("model", "base")):
        start = (training.get(section) or {}).get(key)
        if start is not None:
            return _hub_id(start)
    return None


def _datasets(training: dict[str, Any]) -> set[str]:
    """Hub ids of the datasets of source hf that the run was trained on."""
    mixture = (training.get("data") or {}).get("mixture")
    values = [
        source.get("path") for source in (mixture if isinstance(mixture, list) else [])
        if isinstance(source, dict) and source.get("source") == "hf"
    ]  # fmt: skip
    return {hub_id for value in values if (hub_id := _hub_id(value))}


def _hub_id(value: Any) -> str | None:
    """`value` if it can be an id org/name of a hub, and is no path of this machine."""
    text = str(value or "")
    if not may_be_id(text) or text.startswith((".", "runs/", "data/", "outputs/")):
        return None
    return text.partition("@")[0]


def dataset_name(benchmark: str, metrics: dict[str, Any]) -> str:
    """The benchmark, and on which data it was scored if not on its own."""
    data = metrics.get("runs", {}).get(benchmark, {}).get("data")
    return f"{benchmark} of {data}" if data else benchmark


def _results(metrics: dict[str, Any]) -> list[EvalResult]:
    results = []
    for benchmark, scores in metrics.get("benchmarks", {}).items():
        kind, _, split = benchmark.partition(":")
        defined = metrics.get("definitions", {}).get(benchmark)
        for score, value in scores.items():
            wanted = score in defined if isinstance(defined, dict) else type(value) is float
            if wanted and type(value) in (float, int):
                results.append(
                    EvalResult(
                        task_type=TASK,
                        dataset_type=_words(kind),
                        dataset_name=_words(dataset_name(benchmark, metrics)),
                        dataset_split=_words(split) or None,
                        metric_type=_words(score),
                        metric_value=round(value, 4),
                    )
                )
    return results


def _words(text: str) -> str:
    """Without HTML of its own, whatever a file of scores holds."""
    return html.escape(" ".join(text.split()), quote=False)
