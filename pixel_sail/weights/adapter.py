"""tools/export.py --adapter: the adapters of a run with train.lora as a folder in PEFT's format, without its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pixel_sail.config import Config
from pixel_sail.durable import rust_errors
from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import ADAPTER_CONFIG
from pixel_sail.model.adapter import LORA_A, LORA_B, PREFIX, ROWS
from pixel_sail.model.configuration import load_own_config
from pixel_sail.weights.consolidate import read_unmerged
from pixel_sail.weights.files import new_folder
from pixel_sail.weights.run_folder import MODEL, complete_checkpoints, is_checkpoint

_DECODER = "language_model."
_TRAINED_A, _TRAINED_B, _TRAINED_ROWS = ".lora_A.default.weight", ".lora_B.default.weight", ".rows"


def write_adapter(source: Path, out: Path) -> Path:
    """Write `out` from a checkpoint, or the newest one of a run. Returns the checkpoint.

    Float32: LoRA weights, the trained rows of the token tables, and the parts beside the decoder in full. Raises
    WeightsError for a run without adapters, one whose base is no model of ours, and one with weights in 4 bits.
    """
    checkpoint = _checkpoint(source)
    weights, config = read_unmerged(checkpoint)
    _check(config, checkpoint)
    tied = load_own_config(checkpoint / MODEL).text_config.tie_word_embeddings
    head = f"{_DECODER}lm_head{_TRAINED_ROWS}"
    tensors: dict[str, Tensor] = {}
    tokens: dict[str, list[int]] = {}
    for name, tensor in weights.items():
        if name.endswith(_TRAINED_A):
            tensors[f"{PREFIX}{name.removesuffix(_TRAINED_A)}{LORA_A}"] = tensor
        elif name.endswith(_TRAINED_B):
            tensors[f"{PREFIX}{name.removesuffix(_TRAINED_B)}{LORA_B}"] = tensor
        elif name.endswith(_TRAINED_ROWS) and not (tied and name == head):
            module = name.removesuffix(_TRAINED_ROWS)
            tensors[f"{PREFIX}{module}{ROWS}"] = tensor
            tokens[module] = weights[f"{module}.ids"].long().tolist()
        elif not name.startswith(_DECODER):
            tensors[f"{PREFIX}{name}"] = tensor
    with new_folder(out) as folder, rust_errors(folder):
        copies = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(_settings(config, list(tensors), tokens), indent=1)
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    return checkpoint


def _settings(config: Config, names: list[str], tokens: dict[str, list[int]]) -> dict[str, Any]:
    """adapter_config.json; what is not in it has PEFT's default."""
    plain = [name.removeprefix(PREFIX) for name in names]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(config.train.init_from),
        "r": config.train.lora.rank,
        "lora_alpha": config.train.lora.alpha,
        "lora_dropout": config.train.lora.dropout,
        "target_modules": sorted(name.removesuffix(LORA_A) for name in plain if name.endswith(LORA_A)),
        "modules_to_save": sorted({name.split(".")[0] for name in plain if not name.startswith(_DECODER)}),
        "trainable_token_indices": tokens or None,
        "bias": "none",
        "inference_mode": True,
    }


def _checkpoint(source: Path) -> Path:
    if is_checkpoint(source):
        return source
    whole = complete_checkpoints(source / "checkpoints")
    if not whole:
        raise WeightsError(f"{source} has no checkpoint step_*, and an export has no adapters: they are merged into it")
    return whole[-1]


def _check(config: Config, checkpoint: Path) -> None:
    lora = config.train.lora
    if lora is None:
        raise WeightsError(f"{checkpoint} has no adapters: its run trained the weights themselves (no train.lora)")
    if config.train.init_from is None:
        raise WeightsError(
            f"{checkpoint}: its run began with model.base, which is no model of ours to put an adapter on. Convert it "
            "first (tools/convert.py) and train from that (train.init_from), or export the merged model"
        )
    if lora.quantize != "none":
        raise WeightsError(
            f"{checkpoint}: its adapters belong to weights in 4 bits (train.lora.quantize), and on the base's own they "
            "answer differently; export the merged model"
        )
