"""tools/train.py --keys: every key of a config, its default and its meaning."""

from __future__ import annotations

from warm import run_tool

from pixel_sail.config import Config
from pixel_sail.config_keys import COLUMNS, keys, keys_text


def test_every_key_has_a_meaning() -> None:
    assert not [key.name for key in keys() if not key.meaning]
    assert len({key.name for key in keys()}) == len(keys()) > 80


def test_keys_are_those_that_a_config_accepts() -> None:
    names = {key.name for key in keys()}
    assert {section for section in Config.model_fields} <= names
    assert {
        "train.lora.rank",
        "data.mixture[].source",
        "architecture.small_images.stem_widths",
        "experts[].at",
    } <= names
    found = {key.name: key for key in keys()}
    assert found["train.lr"].default == "4e-05" and found["run.dir"].default == "required"
    assert found["train.betas"].default == "[0.9, 0.999]"
    assert found["train.muon"].default == "null" and found["loss.points"].meaning == "supervised points of each mask"
    types = {
        name: found[name].type
        for name in ("train.offload", "train.compile", "train.betas", "data.questions", "model.base")
    }
    assert types == {
        "train.offload": "none | optimizer | parameters",
        "train.compile": "auto | true | false",
        "train.betas": "[float, float]",
        "data.questions": "list of str | null",
        "model.base": "str | null",
    }
    above = found["architecture.small_images.stem_widths"].meaning
    assert above.startswith("widths of convolutions before the patch embedding, each of which halves the image")


def test_the_tool_prints_them() -> None:
    status, printed = run_tool("tools/train.py", "--keys", "train.lora")
    assert status == 0 and "train.lora.rank: int = 16" in printed and "train.lr:" not in printed
    assert max(map(len, keys_text().splitlines())) <= COLUMNS
    status, printed = run_tool("tools/train.py")
    assert status == 2 and "give a config" in printed
