"""A tiny model folder of ours with checksums, as tools/export.py and training write it, and edits of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tiny_predictor import tiny_predictor

from pixel_sail.folders.checksums import CHECKSUMS, write_sums
from pixel_sail.serve.predictor import Predictor


def save_export(folder: Path, predictor: Predictor | None = None) -> Path:
    predictor = predictor or tiny_predictor()
    predictor.model.save_pretrained(folder)
    predictor.encoder.tokenizer.save_pretrained(folder)
    write_sums(folder)
    return folder


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file after `change(values)`, and what was known of its bytes."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    (path.parent / CHECKSUMS).unlink(missing_ok=True)


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite model.safetensors after `change(tensors)`, and what was known of its bytes."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / CHECKSUMS).unlink(missing_ok=True)
