"""Publish a model (tools/export.py): a self-contained folder, from an export folder or a resume checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pixel_sail.data.chat import ChatFormat
from pixel_sail.errors import FileError
from pixel_sail.files import read_json
from pixel_sail.folders.checksums import check_sums
from pixel_sail.folders.weight_files import Shapes, WeightFiles
from pixel_sail.model.configuration import PixelSailConfig, load_own_config, load_own_tokenizer
from pixel_sail.model.generation import Sampling, check_has_presence
from pixel_sail.model.generation_config import write_generation_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.files import check_new, check_weights, new_folder, write_shards
from pixel_sail.weights.lineage import TRAINING_CONFIG, lineage
from pixel_sail.weights.model_card import Provenance, chat_example, model_card, public, published
from pixel_sail.weights.remote_code import AUTO_MAP, write_remote_code
from pixel_sail.weights.run_folder import is_checkpoint


@dataclass(frozen=True)
class PublishedModel:
    """A model to publish: its parts, its weights one at a time, and its folder: an export or a checkpoint."""

    config: PixelSailConfig
    tokenizer: PreTrainedTokenizerBase
    shapes: Shapes
    dtypes: dict[str, torch.dtype]
    tensor: Callable[[str], Tensor]
    folder: Path


def open_model(folder: Path) -> PublishedModel:
    """The model of an export folder or a checkpoint. Raises UserError for weights that do not fit."""
    return _open_checkpoint(folder) if is_checkpoint(folder) else _open_export(folder)


def _open_export(folder: Path) -> PublishedModel:
    config = load_own_config(folder)
    tokenizer = load_own_tokenizer(folder, config)
    files = WeightFiles(folder)
    check_weights(config, files)
    check_sums(folder)
    return PublishedModel(config, tokenizer, files.shapes, files.dtypes, files.finite_tensor, folder)


def _open_checkpoint(checkpoint: Path) -> PublishedModel:
    model, tokenizer = model_of_checkpoint(checkpoint)
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    return PublishedModel(model.config, tokenizer, shapes, dtypes, state.__getitem__, checkpoint)


def publish(
    model: PublishedModel,
    out: Path,
    dtype: torch.dtype | None,
    shard_bytes: int,
    name: str,
    metrics: dict[str, Any] | None,
    license_name: str | None,
    remote_code: bool = False,
    command: str | None = None,
    sampling: Sampling | None = None,
) -> None:
    """Write `out`, which appears only when it is complete. Raises UserError if it is not empty, or would not fit.

    `dtype` None: each weight keeps its own. `remote_code`: with the Python files for transformers' AutoModel.
    `command`: what repeats the whole training, for the card. `sampling`: how answers are made by default.
    """
    config, dtypes = model.config, {key: dtype or stored for key, stored in model.dtypes.items()}
    config.architectures = [PixelSail.__name__]
    if remote_code:
        config.auto_map = {auto: code for auto, code in AUTO_MAP.items() if auto != "AutoProcessor"}
    config.dtype = max(dtypes.values(), key=list(dtypes.values()).count)
    sampling = sampling or Sampling()
    check_has_presence(config.architecture, sampling.min_presence)
    stages = lineage(model.folder)
    provenance = Provenance(stages, command, metrics, license_name, remote_code, sampling.min_presence)
    chat = ChatFormat.of(config.chat_format, model.tokenizer, config.chat_pieces)
    parameters = sum(torch.Size(shape).numel() for shape in model.shapes.values())
    check_new(out, sum(torch.Size(shape).numel() * dtypes[key].itemsize for key, shape in model.shapes.items()))
    with new_folder(out) as folder:
        write_shards(folder, model.shapes, dtypes, model.tensor, shard_bytes)
        config.save_pretrained(folder)
        write_generation_config(folder, sampling, model.tokenizer(chat.end, add_special_tokens=False)["input_ids"][0])
        if remote_code:
            write_remote_code(folder)
        model.tokenizer.save_pretrained(folder)
        (folder / "chat_format.json").write_text(json.dumps(chat_example(chat), indent=1), encoding="utf-8")
        if stages:
            text = yaml.safe_dump(public(stages[-1].training), sort_keys=False)
            (folder / TRAINING_CONFIG).write_text(text, encoding="utf-8")
        if metrics is not None:
            kept = {"benchmarks": published(metrics["benchmarks"])}
            kept |= {key: metrics[key] for key in ("definitions", "runs") if key in metrics}
            (folder / "metrics.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
        card = model_card(name, config, chat, parameters, str(config.dtype).removeprefix("torch."), provenance)
        (folder / "README.md").write_text(card, encoding="utf-8")


def read_metrics(file: Path) -> dict[str, Any]:
    """The content of a metrics.json of tools/test.py. Raises FileError for any other file, and for odd scores."""
    if not file.exists():
        raise FileError(f"no {file}: tools/test.py writes metrics.json into its --out")
    metrics = read_json(file)
    benchmarks = metrics.get("benchmarks") if isinstance(metrics, dict) else None
    if not isinstance(benchmarks, dict) or not all(isinstance(scores, dict) for scores in benchmarks.values()):
        raise FileError(f"{file} is no metrics.json of tools/test.py (it has no benchmarks); move it away")
    for key in ("runs", "definitions"):
        parts = metrics.get(key, {})
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            raise FileError(f"{file}: {key} is not an object of objects; score it again")
    for name, scores in benchmarks.items():
        for score, value in scores.items():
            if not _is_score(value):
                raise FileError(f"{file}: {score} of {name} is {value!r}, which is no score; score it again")
    return metrics


def _is_score(value: Any) -> bool:
    """A finite number, nothing, or what explains a score: lists and objects."""
    if type(value) in (int, float):
        return math.isfinite(value)
    return value is None or isinstance(value, dict | list)
