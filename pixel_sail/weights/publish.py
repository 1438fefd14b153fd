"""What tools/export.py writes: a self-contained folder of a model, from an export folder or a resume checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixel_sail.data.chat import ChatFormat
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.convert.streaming import (
    WeightFiles,
    expected_shapes,
    partial_folder,
    refuse_differences,
    write_shards,
)
from pixel_sail.weights.model_card import Provenance, chat_example, model_card, public


@dataclass(frozen=True)
class Source:
    """A model to be published: its parts, its weights one at a time, and the run that it comes from, if any."""

    config: PixelSailConfig
    tokenizer: PreTrainedTokenizerBase
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    tensor: Callable[[str], Tensor]
    run: Path | None


def open_source(place: Path) -> Source:
    """Of an export folder or a checkpoint. Raises ValueError or ConfigError for weights that do not fit."""
    return _open_checkpoint(place) if (place / "state.json").is_file() else _open_export(place)


def _open_export(folder: Path) -> Source:
    config = PixelSailConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != PixelSailConfig.model_type or config.text_config is None:
        raise ValueError(f"{folder / 'config.json'} is not of pixel_sail: convert it with tools/convert.py first")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    weights = WeightFiles(folder)
    refuse_differences(expected_shapes(config), weights.shapes, folder)
    run = folder.parent if (folder.parent / "config.yaml").is_file() else None
    return Source(config, tokenizer, weights.shapes, weights.dtypes, weights.tensor, run)


def _open_checkpoint(checkpoint: Path) -> Source:
    model, tokenizer = model_of_checkpoint(checkpoint)
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    return Source(model.config, tokenizer, shapes, dtypes, state.__getitem__, checkpoint.parents[1])


def publish(
    source: Source,
    out: Path,
    dtype: torch.dtype | None,
    shard_bytes: int,
    name: str,
    metrics: dict[str, Any] | None,
    license_name: str | None,
) -> None:
    """Writes `out`, which appears only when it is whole."""
    config, dtypes = source.config, {key: dtype or own for key, own in source.dtypes.items()}
    config.architectures = [PixelSail.__name__]
    config.dtype = max(dtypes.values(), key=list(dtypes.values()).count)
    made = Provenance(_read(source.run, "config.yaml"), _read(source.run, "environment.json"), metrics, license_name)
    chat = ChatFormat.of(config.chat_format, source.tokenizer)
    parameters = sum(torch.Size(shape).numel() for shape in source.shapes.values())
    with partial_folder(out) as folder:
        write_shards(folder, source.shapes, dtypes, source.tensor, shard_bytes)
        config.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)
        (folder / "chat_format.json").write_text(json.dumps(chat_example(chat), indent=1))
        if made.training is not None:
            (folder / "training_config.yaml").write_text(yaml.safe_dump(public(made.training), sort_keys=False))
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps({"benchmarks": metrics["benchmarks"]}, indent=1))
        card = model_card(name, config, chat, parameters, str(config.dtype).removeprefix("torch."), made)
        (folder / "README.md").write_text(card)


def read_metrics(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: tools/test.py writes metrics.json into its --out")
    metrics = json.loads(file.read_text())
    if not isinstance(metrics, dict) or not isinstance(metrics.get("benchmarks"), dict):
        raise ValueError(f"{file} is no metrics.json of tools/test.py: it has no benchmarks")
    return metrics


def _read(run: Path | None, name: str) -> dict[str, Any] | None:
    """A YAML or JSON file of the run; None where there is none."""
    return yaml.safe_load((run / name).read_text()) if run is not None and (run / name).is_file() else None
