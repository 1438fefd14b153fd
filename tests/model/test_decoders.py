"""Any Hugging Face decoder, unmodified: text alone is the base model; folders survive the round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from pixel_sail.architecture import Architecture
from pixel_sail.data.encode import Encoder
from pixel_sail.data.pack import pack
from pixel_sail.errors import WeightsError
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import Sample, Turn
from pixel_sail.weights.convert.language_model import assemble
from pixel_sail.weights.convert.scratch import train_tokenizer

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DECODERS = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen2 tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "llama": LlamaConfig(**SIZES),
    "llama scaled rope": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
}
PARTS = Architecture(patch_size=16, mask_stride=4, mask_dim=24, max_side_px=64)
TEXTS = ["Where is the red mug on the table?", "Please segment the ball.", "It is here."] * 3


@pytest.fixture(params=DECODERS.values(), ids=DECODERS.keys())
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(request.param).eval()


def grown(base: PreTrainedModel) -> tuple[PixelSail, Encoder]:
    model, tokenizer = assemble(base, train_tokenizer(TEXTS, 290), "auto", PARTS, "Segment {expression}.", "none")
    return model.eval(), Encoder(tokenizer, Architecture(patch_size=16, max_side_px=64), model.config.chat_format)


def test_text_alone_is_the_base_model(base: PreTrainedModel) -> None:
    model, encoder = grown(base)
    sample = Sample("text", None, (Turn("Where is the red mug?", "It is here."), Turn("the ball?", "Here.")))
    batch = pack([encoder.encode(sample), encoder.encode(sample)], encoder.tokens.seg, encoder.tokens.vision_patch)
    length = batch.tokens // 2
    with torch.no_grad():
        wanted = base(batch.input_ids[None, :length]).logits[0]
        output = model(batch)
    half = len(batch.labels) // 2
    for rows in (slice(0, half), slice(half, None)):  # the second sequence does not see the first
        torch.testing.assert_close(output.logits[rows], wanted[batch.predict_index[:half]], atol=1e-5, rtol=1e-5)


def test_save_and_load(base: PreTrainedModel, tmp_path: Path) -> None:
    model, _ = grown(base)
    model.save_pretrained(tmp_path)
    loaded = PixelSail.from_pretrained(tmp_path)
    for key in ("architecture", "chat_format", "question", "hide"):
        assert getattr(loaded.config, key) == getattr(model.config, key)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for (name, a), b in zip(model.named_buffers(), loaded.buffers(), strict=True):
        assert torch.equal(a, b), name  # rotary frequencies are not saved, they are made again


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_damaged_folders_are_refused(tmp_path: Path, damage: str) -> None:
    model, _ = grown(AutoModelForCausalLM.from_config(DECODERS["qwen2"]))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "mask_head.seg_projector.0.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        weights["mask_head.expert.weight"] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(3, 4)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = {
        "missing": f"missing {name}",
        "extra": "unexpected mask_head.expert.weight",
        "shape": f"wrong shape {name}",
    }
    with pytest.raises(ValueError, match=message[damage]):
        PixelSail.from_pretrained(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Give the export/ folder of a run"):
        PixelSail.from_pretrained(tmp_path / "nowhere")


def test_mask_stride_decides_the_blocks() -> None:
    assert [Architecture(mask_stride=s).upsample_blocks for s in (16, 8, 4, 2)] == [0, 1, 2, 3]
    assert Architecture(mask_stride=4).channels(896) == [896, 448, 224]
    assert Architecture(mask_stride=2).channels(4096) == [1024, 512, 256, 128]
    assert Architecture(mask_stride=4).channels(64) == [64, 64, 64]


def test_mask_head_of_wide_models_and_its_two_ways() -> None:
    """D > 1024 goes through the reducing layers; logits are the same with and without features, batched or alone."""
    torch.manual_seed(0)
    head = MaskHead(Architecture(mask_stride=8, mask_dim=16, mask_channels=[1024, 64]), 1056)
    assert head.reduce is not None
    states = [torch.randn(2, 3, 1056), torch.randn(4, 2, 1056), torch.randn(2, 3, 1056)]
    segs = [torch.randn(2, 1056), torch.randn(0, 1056), torch.randn(1, 1056)]
    logits, _ = head(states, segs)
    with_features, features = head(states, segs, with_features=True)
    assert [tuple(x.shape) for x in logits] == [(2, 4, 6), (0, 8, 4), (1, 4, 6)]
    assert [tuple(x.shape) for x in features] == [(16, 4, 6), (16, 8, 4), (16, 4, 6)]
    for i in (0, 2):
        alone, _ = head([states[i]], [segs[i]])
        torch.testing.assert_close(logits[i], with_features[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[i], alone[0], atol=1e-5, rtol=1e-5)


def test_activation_checkpointing_changes_nothing() -> None:
    model, encoder = grown(AutoModelForCausalLM.from_config(DECODERS["qwen2"]))
    sample = Sample("text", None, (Turn("Where is the red mug?", "It is here."),))
    batch = pack([encoder.encode(sample)], encoder.tokens.seg, encoder.tokens.vision_patch)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.language_model.get_decoder().layers[0].gradient_checkpointing
        model.zero_grad()
        model(batch).logits.square().sum().backward()
        gradients.append(model.language_model.get_decoder().layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)
