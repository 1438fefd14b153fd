"""config.json values that no model has, and sizes that its weights do not have: refused at load, by name."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import save_base
from tiny_export import edit_json, edit_weights, save_export
from transformers import AutoImageProcessor, CLIPImageProcessor

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.errors import UserError, WeightsError
from pixel_sail.folders.load import load_processor
from pixel_sail.model.configuration import load_own_config, load_own_tokenizer
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.language_model import from_language_model, plan_language_model
from pixel_sail.weights.convert.streaming import check, write
from pixel_sail.weights.files import peak_bytes
from pixel_sail.weights.publish import open_model, publish
from pixel_sail.weights.start import load_start

PARTS = Architecture(patch_size=8, mask_stride=4, mask_dim=16, max_side_px=64)
QUESTION = "Segment {expression}."
ROPE = "text_config.rope_parameters"
VALUES: list[tuple[str, Any, str]] = [
    (f"{ROPE}.rope_theta", 0, "rope_theta is 0; it must be a number above 0"),
    (f"{ROPE}.rope_theta", -1e4, "rope_theta is -10000.0; it must be a number above 0"),
    (f"{ROPE}.rope_theta", 1e-300, "NaN or infinite values in .*inv_freq"),
    ("text_config.rms_norm_eps", float("nan"), "rms_norm_eps is NaN, which is no value of a model"),
    ("text_config.rms_norm_eps", -1e-6, "rms_norm_eps is -1e-06; it must lie between 0 and 1"),
    ("text_config.num_attention_heads", 3, "num_attention_heads|num_key_value_heads"),
    ("text_config.num_key_value_heads", 3, "num_key_value_heads is 3; it must divide num_attention_heads 4"),
    ("text_config.hidden_act", "squared", "hidden_act is 'squared'; known: .*silu"),
    ("text_config.eos_token_id", 10**6, "eos_token_id is 1000000; the vocabulary has ids from 0 to"),
    ("text_config.eos_token_id", -1, "eos_token_id is -1; the vocabulary"),
    ("text_config.dtype", "float33", "text_config.dtype is float33; weights have no such type; give float32"),
    ("text_config.model_type", "qwen9", "cannot be loaded: .*qwen9"),
    ("text_config", [1, 2], "config"),
    ("text_config", None, "holds no model of pixel_sail"),
    ("model_type", "qwen9", "model_type is 'qwen9', which this version of transformers does not know"),
    ("model_type", "llama", "holds no model of pixel_sail"),
    ("model_type", ["llama"], "model_type is .*llama"),
    ("architecture.max_side_px", 63, "max_side_px 63 must be a multiple of patch_size 8"),
    ("architecture.mask_channels", [], "mask_channels has 0 widths"),
    ("architecture.mask_channels", [-4, 16], "mask_channels"),
    ("architecture.mask_stride", -4, "mask_stride"),
    ("architecture.patch_size", 10**40, "patch_size is 1000.*are accepted"),
    ("architecture", "none", "rchitecture"),
    ("hide", "everything", "hide is 'everything'; known: none, text, image, prompts"),
    ("chat_format", "alpaca", "chat_format is 'alpaca'; known: research, inst, template"),
    ("chat_pieces", {"first": 1}, "chat_pieces must have first and next"),
    ("question", "Segment it.", r"question is 'Segment it.'; give a text with \{expression\}"),
    ("prompt_token_ids", None, "prompt_token_ids is 'None'; give 15 different ids"),
    ("prompt_token_ids", [1] * 15, "give 15 different ids"),
    ("prompt_token_ids", list(range(15)), "have the ids .* in the tokenizer and .* they do not belong together"),
    ("differences", {"a": 1}, "differences is .*; give a list of texts"),
    ("_attn_implementation", "someone/kernels", "attention kernels are not downloaded; remove this key"),
    # sizes: nothing may be allocated for them
    ("text_config.vocab_size", 60_000_000, "vocab_size is 60000000; 1 to 16,777,216 are accepted"),
    ("text_config.vocab_size", 16_000_000, r"wrong shape language_model.model.embed_tokens.weight: file \(\d+, 32\)"),
    ("text_config.num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; 0 to 1,024 are accepted"),
    ("text_config.num_hidden_layers", 0, "num_hidden_layers is 0; a decoder has a whole number above 0|layer_types"),
    ("text_config.intermediate_size", 1_000_000, "wrong shape .*mlp"),
    ("text_config.hidden_size", 10**9, "hidden_size is 1000000000; 0 to 1,048,576 are accepted"),
    ("text_config.hidden_size", 1_000_000, "wrong shape"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    save_export(root / "export")
    save_base(root / "base")
    return root


@pytest.fixture
def export(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "export", tmp_path / "export"))


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "base", tmp_path / "base"))


def set_value(folder: Path, key: str, value: Any) -> None:
    def change(values: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            values = values[parent]
        values[last] = value

    edit_json(folder / "config.json", change)


@pytest.mark.parametrize(("key", "value", "message"), VALUES, ids=lambda value: str(value)[:40])
def test_values_that_no_model_has(export: Path, key: str, value: Any, message: str) -> None:
    set_value(export, key, value)
    before, start = peak_bytes(), time.monotonic()
    with pytest.raises(ValueError, match=message):  # UserError, which is one
        Predictor.from_pretrained(export, "cpu")
    assert peak_bytes() - before < 2**30 and time.monotonic() - start < 20


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 16_000_000), ("intermediate_size", 1_000_000)])
def test_a_base_larger_than_its_weights(base: Path, key: str, value: int) -> None:
    set_value(base, key, value)
    before = peak_bytes()
    for load in (
        lambda: check(plan_language_model(base, PARTS, QUESTION)),
        lambda: from_language_model(ModelSection(base=str(base)), PARTS, QUESTION),
    ):
        with pytest.raises(WeightsError, match=r"describes a model of .* its weight files hold .*: file \("):
            load()
    assert peak_bytes() - before < 2**30


def test_a_base_with_random_parts_is_refused(base: Path) -> None:
    edit_weights(base, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match="no fitting weights for 1 tensors .*, first model.layers.1.mlp.up_proj"):
        from_language_model(ModelSection(base=str(base)), PARTS, QUESTION)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(export: Path, base: Path, tmp_path: Path, value: float) -> None:
    """They would be predicted "", scored, and published with status 0."""
    name = "mask_head.pixel_projector.2.bias"
    edit_weights(export, lambda tensors: tensors[name].__setitem__(3, value))
    for load in (PixelSail.from_pretrained, lambda folder: Predictor.from_pretrained(folder, "cpu"), load_start):
        with pytest.raises(UserError, match=f"export: NaN or infinite values in {name}"):
            load(export)
    with pytest.raises(WeightsError, match=f"NaN or infinite values in {name}"):
        publish(open_model(export), tmp_path / "out", None, 10**9, "x", None, None)
    theirs = "model.layers.0.mlp.up_proj.weight"
    edit_weights(base, lambda tensors: tensors[theirs].__setitem__((0, 0), value))
    with pytest.raises(WeightsError, match=f"NaN or infinite values in {theirs}"):
        write(plan_language_model(base, PARTS, QUESTION), tmp_path / "out")
    with pytest.raises(WeightsError, match=f"NaN or infinite values in {theirs}"):
        from_language_model(ModelSection(base=str(base)), PARTS, QUESTION)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_type_that_cannot_hold_the_weights(export: Path, tmp_path: Path) -> None:
    name = "mask_head.pixel_projector.2.bias"
    edit_weights(export, lambda tensors: tensors[name].__setitem__(3, 1e5))
    with pytest.raises(WeightsError, match=f"{name} has values that torch.float16 cannot hold"):
        publish(open_model(export), tmp_path / "out", torch.float16, 10**9, "x", None, None)


def test_a_tokenizer_of_another_model(export: Path) -> None:
    config = load_own_config(export)
    load_own_tokenizer(export, config)
    rows = config.text_config.vocab_size

    def add(values: dict[str, Any]) -> None:
        values["added_tokens"].append(values["added_tokens"][-1] | {"content": "<more>", "id": rows})

    edit_json(export / "tokenizer.json", add)
    with pytest.raises(WeightsError, match=f"ids up to {rows} .'<more>'., the model embeddings for {rows} tokens"):
        load_own_tokenizer(export, config)


def test_two_tokens_of_one_id(export: Path) -> None:
    edit_json(
        export / "tokenizer.json", lambda values: values["model"]["vocab"].update(a=values["model"]["vocab"]["b"])
    )
    with pytest.raises(WeightsError, match="'b' and 'a' have the same id|'a' and 'b' have the same id"):
        load_own_tokenizer(export, load_own_config(export))


def test_a_tokenizer_without_our_tokens(export: Path, base: Path) -> None:
    for path in base.glob("tokenizer*"):
        shutil.copy(path, export)
    with pytest.raises(WeightsError, match="the tokenizer lacks the special tokens"):
        load_own_tokenizer(export, load_own_config(export))


@pytest.mark.parametrize("length", [0.5, "many", [4]])
def test_a_tokenizer_of_an_impossible_length(export: Path, length: Any) -> None:
    edit_json(export / "tokenizer_config.json", lambda values: values.update(model_max_length=length))
    with pytest.raises(WeightsError, match=f"{export}.*model_max_length|cannot be loaded"):
        load_own_tokenizer(export, load_own_config(export))


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", {"height": 10**6, "width": 10**6}), ("size", {"longest_edge": 10**9}), ("image_seq_length", 10**9)],
)
def test_a_processor_that_would_make_huge_images(tmp_path: Path, key: str, value: Any) -> None:
    CLIPImageProcessor().save_pretrained(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", lambda values: values.update({key: value}))
    with pytest.raises(WeightsError, match="preprocessor_config.json: .* are accepted"):
        load_processor(AutoImageProcessor, tmp_path)
