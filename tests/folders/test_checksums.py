"""A model folder is what was written, or says so; one that was edited on purpose can still be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_export import save_export

from pixel_sail.errors import WeightsError
from pixel_sail.folders import values
from pixel_sail.folders.checksums import CHECKSUMS, write_sums
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.publish import open_model, publish


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_of_a_weight_is_seen(tmp_path: Path) -> None:
    export = save_export(tmp_path / "export")
    flip(export / "model.safetensors", -2)
    for load in (PixelSail.from_pretrained, open_model):
        with pytest.raises(WeightsError, match=r"model.safetensors is not what was written \(checksums.json\)"):
            load(export)
    (export / CHECKSUMS).unlink()
    PixelSail.from_pretrained(export)


def test_an_edit_on_purpose_loads_once_the_file_is_deleted(tmp_path: Path) -> None:
    export = save_export(tmp_path / "export")
    config = export / "config.json"
    config.write_text(config.read_text().replace("Segment {expression}", "Find {expression}"))
    with pytest.raises(WeightsError, match="changed on purpose, delete .*checksums.json"):
        PixelSail.from_pretrained(export)
    (export / CHECKSUMS).unlink()
    assert PixelSail.from_pretrained(export).config.question == "Find {expression}."


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({"model.safetensors": 7}, "'model.safetensors' has no SHA-256"),
        ({"../a": "0" * 64}, "'../a' has no SHA-256"),
        ({"other": "0" * 64}, "lacks other, which checksums.json lists"),
    ],
)
def test_a_damaged_list(tmp_path: Path, sums: dict, message: str) -> None:
    export = save_export(tmp_path / "export")
    (export / CHECKSUMS).write_text(json.dumps(sums))
    with pytest.raises(WeightsError, match=message):
        PixelSail.from_pretrained(export)


def test_what_is_published_has_them(tmp_path: Path) -> None:
    model = open_model(save_export(tmp_path / "export"))
    publish(model, tmp_path / "out", None, 60_000, "x", None, None)
    listed = json.loads((tmp_path / "out" / CHECKSUMS).read_text())
    assert {"config.json", "tokenizer.json"} | {p.name for p in (tmp_path / "out").glob("*.safetensors")} <= set(listed)
    PixelSail.from_pretrained(tmp_path / "out")


def with_values(folder: Path, name: str, value: float, dtype: torch.dtype = torch.float32) -> None:
    """Write `value` into one weight of a folder, and its weights in `dtype`, as a run that diverged would have."""
    path = folder / "model.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})
    write_sums(folder)


def test_a_flipped_bit_is_named_before_the_nan_that_it_made(tmp_path: Path) -> None:
    export = save_export(tmp_path / "export")
    with_values(export, "mask_head.pixel_projector.2.bias", float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinite values in mask_head.pixel_projector.2.bias"):
        PixelSail.from_pretrained(export)
    flip(export / "model.safetensors", -2)
    with pytest.raises(WeightsError, match="is not what was written"):
        PixelSail.from_pretrained(export)


@pytest.mark.parametrize(
    "stored, value, loaded", [(torch.float32, 3.4e38, torch.bfloat16), (torch.float64, 1e39, torch.float32)]
)
def test_values_that_become_infinite(tmp_path: Path, stored: torch.dtype, value: float, loaded: torch.dtype) -> None:
    """They are finite in the file."""
    export = save_export(tmp_path / "export")
    with_values(export, "mask_head.pixel_projector.2.bias", value, stored)
    with pytest.raises(WeightsError, match="NaN or infinite values in mask_head.pixel_projector.2.bias"):
        PixelSail.from_pretrained(export, dtype=loaded)


def test_extremes_of_a_weight_in_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the largest value of each weight, and the hash of the whole file, from pieces of 64 bytes."""
    monkeypatch.setattr(values, "CHUNK_BYTES", 64)
    tensors = {"a": torch.randn(5, 31), "b": torch.randn(16).bfloat16(), "c": torch.arange(40), "d": torch.empty(0)}
    save_file(tensors, tmp_path / "model.safetensors")
    write_sums(tmp_path)
    extremes = values.read_values(WeightFiles(tmp_path, buffers=True)).extremes
    assert {name: pair.tolist() for name, pair in extremes.items()} == {
        name: [tensors[name].min().item(), tensors[name].max().item()] for name in ("a", "b")
    }
    flip(tmp_path / "model.safetensors", -3)  # in an integer
    with pytest.raises(WeightsError, match="is not what was written"):
        values.read_values(WeightFiles(tmp_path, buffers=True))
