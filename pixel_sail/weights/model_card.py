"""The README.md of a published model: what it is, how to load it, how it was trained, what it scores."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from pixel_sail.data.chat import ChatFormat
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.weights.card_data import dataset_name, front_matter
from pixel_sail.weights.lineage import Stage

CODE = "https://arxiv.org/abs/2504.10465"


@dataclass(frozen=True)
class Provenance:
    """What is known about the origin of a model; None for what is unknown."""

    stages: Sequence[Stage] = ()  # the run, and before it those that it started from; empty if there is none
    command: str | None = None  # what repeats the whole training
    metrics: dict[str, Any] | None = None  # metrics.json of tools/test.py
    license: str | None = None
    remote_code: bool = False  # whether the folder has the Python files for transformers' AutoModel
    min_presence: float = 0.0  # of generation_config.json


def model_card(
    name: str, config: PixelSailConfig, chat: ChatFormat, parameters: int, dtype: str, provenance: Provenance
) -> str:
    """Markdown with the front matter that model hubs read. Nothing is guessed: the card says what is unknown."""
    metrics = provenance.metrics or {}
    trainings = [stage.training for stage in provenance.stages]
    front = front_matter(name, trainings, metrics, provenance.license, provenance.remote_code)
    sections = [
        f"{front}\n\n# {name}\n\n{_summary(config, parameters, dtype)}",
        _use(chat, provenance),
        _origin(config, provenance),
        _training(provenance),
        _scores(provenance.metrics),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def chat_example(chat: ChatFormat) -> dict[str, str]:
    """The chat format as text, for other programs. The tokens of an image come before `first_question`."""
    return {
        "name": chat.name,
        "image": "<vision> + <vpatch> for each patch, row by row + </vision>",
        "first_question": chat.before(0, "{question}"),
        "next_question": chat.before(1, "{question}"),
        "answer": chat.answer("{answer}") + chat.end,
    }


def public(values: Any) -> Any:
    """The values of a config without the folders of its machine: an absolute path is cut to its last part."""
    if isinstance(values, dict):
        return {key: public(value) for key, value in values.items()}
    if isinstance(values, list):
        return [public(value) for value in values]
    return PurePath(values).name if isinstance(values, str) and PurePath(values).is_absolute() else values


def _summary(config: PixelSailConfig, parameters: int, dtype: str) -> str:
    text = config.text_config
    architecture = config.architecture
    return (
        "One decoder-only transformer that reads image patches and text together and answers in text and, at each "
        f"`[SEG]`, with a mask, in the manner of Pixel-SAIL ({CODE}).\n\n"
        f"{parameters / 1e6:.1f} million parameters in {dtype}; a {text.model_type} decoder of "
        f"{text.num_hidden_layers} layers, width {text.hidden_size}; patches of {architecture.patch_size} pixels, "
        f"images {architecture.size_rule}, one mask logit per {architecture.mask_stride} pixels."
    )


def _use(chat: ChatFormat, provenance: Provenance) -> str:
    transformers = """
With transformers alone (and einops, pycocotools and pydantic), by the Python files of this folder:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder", trust_remote_code=True)
model.segment("photo.jpg", "the red mug")[0].masks
```
"""
    absent = f"""
An answer whose presence is below {provenance.min_presence:g} has empty masks: nothing is there (`min_presence` in
generation_config.json).
"""
    return f"""## Use

```python
from pixel_sail.serve.predictor import Predictor

predictor = Predictor.from_pretrained("this folder")
answer = predictor.segment("photo.jpg", "the red mug")[0]
answer.text, answer.masks
```
{absent if provenance.min_presence else ""}{transformers if provenance.remote_code else ""}
`PixelSail.from_pretrained("this folder")` gives the model alone. Chat format `{chat.name}` (chat_format.json):

```
{chat.before(0, "{question}")}{chat.answer("{answer}")}{chat.end}
```"""


def _origin(config: PixelSailConfig, provenance: Provenance) -> str:
    training = provenance.stages[0].training if provenance.stages else {}
    base = (training.get("model") or {}).get("base")
    start = (training.get("train") or {}).get("init_from")
    facts = []
    if config.converted_from:
        facts.append(f"Its weights go back to a released checkpoint of the family `{config.converted_from}`.")
    if start or base:
        facts.append(f"Training started from `{public(start or base)}`.")
    elif provenance.stages:
        facts.append("Training started from random weights.")
    if config.differences:
        facts.append("It differs from that base and had to adapt in training:\n" + _list(config.differences))
    facts.append(f"License: {provenance.license or 'not stated; that of the base and of the training data may bind'}.")
    return "## Origin\n\n" + "\n\n".join(facts)


def _training(provenance: Provenance) -> str:
    if not provenance.stages:
        return "## Training\n\nNot trained by pixel_sail, or its config was not given."
    environment = provenance.stages[-1].environment or {}
    commit = environment.get("commit") or "not recorded"
    changed = len(environment.get("modified_files") or [])
    changed_text = f" and {changed} files that were not committed" if changed else ""
    packages = ", ".join(
        f"{name} {version}" for name, version in (environment.get("packages") or {}).items() if version
    )
    training = provenance.stages[-1].training
    values = yaml.safe_dump(public(training), sort_keys=False)
    parts = [
        "## Training",
        f"Repeated by `{_text(provenance.command)}`." if provenance.command else "",
        _stages(provenance.stages) if len(provenance.stages) > 1 else "",
        f"Code at commit `{commit}`{changed_text}. {packages}",
        _excluded(training),
        f"The whole config{' of the last stage' * (len(provenance.stages) > 1)} (training_config.yaml):",
        f"```yaml\n{values}```",
    ]
    return "\n\n".join(part for part in parts if part)


def _stages(stages: Sequence[Stage]) -> str:
    """A row for each run, the first one first."""
    rows = []
    for stage in stages:
        train, architecture = (stage.training.get(section) or {} for section in ("train", "architecture"))
        numbers = train.get("steps"), train.get("batch_size"), f"{architecture.get('max_side_px')} px"
        rows.append(f"| {' | '.join(map(_text, (stage.name, *numbers)))} | {_sources(stage.training)} |")
    head = "| stage, from the one before | steps | samples a step | images up to | learns from |\n"
    head += "| --- | --- | --- | --- | --- |\n"
    return head + "\n".join(rows)


def _sources(training: dict[str, Any]) -> str:
    """The sources of a mixture with their share of the samples, heaviest first."""
    mixture = [entry for entry in (training.get("data") or {}).get("mixture") or [] if isinstance(entry, dict)]
    weights = [float(w) if type(w := entry.get("weight")) in (int, float) else 0.0 for entry in mixture]
    total = sum(weights) or 1.0
    named = sorted(zip(weights, mixture, strict=True), key=lambda pair: -pair[0])
    return ", ".join(f"{_text(_source(entry))} {100 * weight / total:.0f} %" for weight, entry in named)


def _source(entry: dict[str, Any]) -> str:
    """The source of an entry, and those that it joins."""
    also = entry.get("also")
    others = [other for other in also if isinstance(other, dict)] if isinstance(also, list) else []
    return " with ".join(map(_named, (entry, *others)))


def _named(entry: dict[str, Any]) -> str:
    split = entry.get("split") or "train"
    return f"{entry.get('source')}{'' if split == 'train' else f' ({split})'}"


def _excluded(training: dict[str, Any]) -> str:
    """Whether images of benchmarks may have been in the training data."""
    excluded = (training.get("data") or {}).get("exclude")
    if excluded:
        names = ", ".join(map(str, excluded))
        return f"Images of these benchmarks were kept out of the training data (`data.exclude`): {names}."
    return (
        "No images were excluded from the training data (`data.exclude` is empty): images of a benchmark that shares "
        "them with a training source, as RefCOCO's splits do, may have been seen in training."
    )


def _scores(metrics: dict[str, Any] | None) -> str:
    if not metrics:
        return "## Scores\n\nNone were given."
    rows = [
        f"| {_text(dataset_name(name, metrics))} | "
        f"{', '.join(f'{_text(key)} {_number(value)}' for key, value in scores.items())} |"
        for name, scores in published(metrics["benchmarks"]).items()
    ]
    return "## Scores\n\n| benchmark | scores |\n| --- | --- |\n" + "\n".join(rows)


def published(benchmarks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores without `problems`, which names files of the machine."""
    return {
        name: {key: value for key, value in scores.items() if key != "problems"} for name, scores in benchmarks.items()
    }


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    """As words of a table: neither HTML nor a cell of its own, whatever a file of scores holds."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "&#124;")


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"* {item}" for item in items)
