"""A model folder is what was written, or says so; one that was edited on purpose can still be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_export import save_export

from pixel_sail.errors import WeightsError
from pixel_sail.folders.checksums import CHECKSUMS
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
