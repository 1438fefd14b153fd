"""Converted SOLO, SAIL and EVEv2 compute what an independent forward pass over the published keys computes (1e-4).

EVEv2 is here as it was converted before its ways were options of the architecture; test_evev2.py has it as it is now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_bases import (
    CLIP_MEAN,
    CLIP_STD,
    EVEV2,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SAIL,
    SOLO,
    SUB_PATCH,
    Base,
    forward,
    patch_embeddings,
    weights_of,
    write_base,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pixel_sail.data.encode import Encoder
from pixel_sail.data.pack import pack
from pixel_sail.errors import WeightsError
from pixel_sail.model.attention import AttentionLayout
from pixel_sail.model.generation import Sampling
from pixel_sail.model.modality_experts import Modality
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import Batch, Sample, Turn
from pixel_sail.weights.convert.evev2 import plan_evev2
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.sail import plan_sail
from pixel_sail.weights.convert.solo import plan_solo
from pixel_sail.weights.convert.streaming import check, write

PLANS = {"solo": plan_solo, "sail": plan_sail, "evev2": plan_evev2}
BASES = [SOLO, SAIL, EVEV2]
PARTS = NewParts(mask_dim=16)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Converted:
    base: Base
    weights: dict[str, Tensor]
    source: Path
    folder: Path
    model: PixelSail
    encoder: Encoder


@pytest.fixture(scope="module", params=BASES, ids=lambda base: base.name)
def converted(request: pytest.FixtureRequest, tmp_path_factory) -> Converted:
    base: Base = request.param
    folder = tmp_path_factory.mktemp(base.name)
    source = write_base(base, folder / "base")
    torch.manual_seed(0)
    write(PLANS[base.name](source, PARTS), folder / "ours", shard_bytes=60_000)
    if base is EVEV2:
        as_before(folder / "ours")
    model = PixelSail.from_pretrained(folder / "ours")
    tokenizer = AutoTokenizer.from_pretrained(folder / "ours")
    encoder = Encoder(tokenizer, model.config.architecture, model.config.chat_format)
    return Converted(base, weights_of(base), source, folder / "ours", model, encoder)


def as_before(folder: Path) -> None:
    """Make a converted EVEv2 what tools/convert.py wrote before the options: our ways, CLIP's statistics in weights."""
    weights = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in [*folder.glob("model*"), folder / "checksums.json"]:
        file.unlink()
    first, values = "fusion.sub_patch_linear", json.loads((folder / "config.json").read_text())
    mean, std, clip_mean, clip_std = map(torch.tensor, (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD))
    kernel = weights[f"{first}.weight"].view(-1, 3, SUB_PATCH**2)
    weights[f"{first}.bias"] += (kernel * ((mean - clip_mean) / clip_std)[:, None]).sum((1, 2))
    weights[f"{first}.weight"] = (kernel * (std / clip_std)[:, None]).flatten(1)
    weights["fusion.prompt_linear.weight"] = torch.eye(EVEV2.hidden)
    save_file(weights, folder / "model.safetensors")
    new = {"image_attention", "image_positions", "row_ends", "pixel_statistics", "prompt_linear"}
    new |= {"resize_by", "resize_filter"}
    assert new < values["architecture"].keys()
    kept = {key: value for key, value in values["architecture"].items() if key not in new}
    values["architecture"] = kept | {"max_side_px": 1024}
    (folder / "config.json").write_text(json.dumps(values))


def image(base: Base, rows: int = 2, columns: int = 3) -> np.ndarray:
    size = (rows * base.patch, columns * base.patch, 3)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def batch_of(converted: Converted, pixels: np.ndarray | None, count: int = 1) -> Batch:
    encoder, turns = converted.encoder, (Turn("Where is the red mug?", "It is here."), Turn("the ball?", "Here."))
    image = None
    if pixels is not None:
        image = Path(converted.folder, "image.png")
        Image.fromarray(pixels).save(image)
    encoded = encoder.encode(Sample("one", image, turns))
    return pack([encoded] * count, encoder.tokens.seg, encoder.tokens.vision_patch)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=TOLERANCE, rtol=TOLERANCE)


def base_embeddings(converted: Converted, ids: Tensor, patches: Tensor) -> Tensor:
    """The input of the base's first layer for our tokens, from the original weights."""
    base, weights, tokens = converted.base, converted.weights, converted.encoder.tokens
    table = weights["model.embed_tokens.weight"]
    queue, rows = list(patches.flatten(0, 1)), []
    vision = {tokens.vision_start: "class_embedding", tokens.vision_end: "split_embedding"}
    for token in ids.tolist():
        if token == tokens.vision_patch:
            rows.append(queue.pop(0) if base is EVEV2 else table[token] + queue.pop(0))
        elif base is EVEV2 and token in vision:
            rows.append(weights[f"model.vision_tower.{vision[token]}"])
        elif base is SOLO and token == tokens.vision_end:
            rows.append(table[tokens.vision_start])
        else:
            rows.append(table[token])
    return torch.stack(rows)


def test_an_image_with_our_positions_and_attention(converted: Converted) -> None:
    """The same weights in the same places; two packed sequences of which neither sees the other."""
    base, pixels = converted.base, image(converted.base)
    batch = batch_of(converted, pixels, count=2)
    length = batch.tokens // 2
    ids, (_, start, stop, _) = batch.input_ids[:length], batch.spans[0]
    index = torch.arange(length)
    visual = (index >= start) & (index < stop)
    may_see = (index[:, None] >= index) | (visual[:, None] & visual)
    rows_columns = torch.tensor(
        [[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3], *[[4 + i] * 2 for i in range(length - 7)]]
    )
    embeds = base_embeddings(converted, ids, patch_embeddings(base, converted.weights, pixels))
    hidden, logits = forward(base, converted.weights, embeds, rows_columns, may_see, visual & (base is EVEV2))
    output = converted.model(batch)
    close(converted.model.embed(batch)[length:], embeds)
    close(output.hidden[:length], hidden)
    close(output.hidden[length:], hidden)
    known = len(AutoTokenizer.from_pretrained(converted.source))
    half = len(batch.labels) // 2
    close(output.logits[:half, :known], logits[batch.predict_index[:half]][:, :known])


def test_an_image_as_the_base_reads_it(converted: Converted) -> None:
    """With the base's own separators, 1-D positions and causal attention: the base itself, from our weights."""
    base, pixels, model, tokens = converted.base, image(converted.base), converted.model, converted.encoder.tokens
    patches = patch_embeddings(base, converted.weights, pixels)
    table = model.language_model.get_input_embeddings().weight
    batch = batch_of(converted, pixels)
    ours = model.embed(batch)[batch.patch_index].view(2, 3, -1)
    text = converted.encoder.text_ids("the red mug on the table")
    row_end = converted.encoder.tokenizer.convert_tokens_to_ids("<vrow_sep>") if base is SOLO else tokens.vision_end
    # SOLO: <vision> row <vrow_sep> row <vision>; EVEv2: class, row, split, row, split; SAIL has no separators.
    between = [] if base is SAIL else [row_end]
    ids = [tokens.vision_start, *[tokens.vision_patch] * 3, *between, *[tokens.vision_patch] * 3, tokens.vision_end]
    ids = torch.tensor([*ids, *text])
    embeds = table[ids].clone()
    embeds[ids == tokens.vision_patch] = ours.flatten(0, 1)
    index = torch.arange(len(ids))
    visual = index < len(ids) - len(text)
    expected, _ = forward(
        base,
        converted.weights,
        base_embeddings(converted, ids, patches),
        index[:, None].expand(-1, 2),
        index[:, None] >= index,
        visual & (base is EVEV2),
    )
    causal = AttentionLayout(((0, 0, 0, len(ids)),), "sdpa", model.device)
    kinds = Modality.of([(0, 0, int(visual.sum()), len(ids))], model.device) if base is EVEV2 else None
    actual = model.language_model.get_decoder()(
        inputs_embeds=embeds[None], position_ids=index.expand(3, 1, -1), use_cache=False, layout=causal, modality=kinds
    )
    close(actual.last_hidden_state[0], expected)


def base_language_model(converted: Converted) -> torch.nn.Module:
    """The base's text part by transformers itself, without any of our code."""
    base, settings = converted.base, converted.base.settings
    kind, config = (Qwen2ForCausalLM, Qwen2Config) if base is EVEV2 else (MistralForCausalLM, MistralConfig)
    sizes = {
        "vocab_size": base.vocabulary,
        "hidden_size": base.hidden,
        "intermediate_size": base.mlp,
        "num_hidden_layers": base.layers,
        "num_attention_heads": base.heads,
        "num_key_value_heads": base.kv_heads,
    }
    rope = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    model = kind(config(**sizes, rms_norm_eps=settings["rms_norm_eps"], rope_parameters=rope))
    vision_words = ("moe_", "vision", "vis_embed")
    text = {
        name: tensor for name, tensor in converted.weights.items() if not any(word in name for word in vision_words)
    }
    model.load_state_dict(text)
    return model.eval()


@torch.no_grad()
def test_text_alone_is_the_base_token_for_token(converted: Converted) -> None:
    lm, batch = base_language_model(converted), batch_of(converted, None)
    known = len(AutoTokenizer.from_pretrained(converted.source))
    expected = lm(batch.input_ids[None]).logits[0, batch.predict_index]
    close(converted.model(batch).logits[:, :known], expected[:, :known])
    predictor = Predictor.from_pretrained(converted.folder)
    # Random weights would say anything: what means nothing in the base, and new tokens in ours, must stay silent.
    predictor.model.language_model.lm_head.weight[known:] = lm.lm_head.weight[known:] = 0
    encoder, stop = predictor.encoder, predictor.encoder.end_ids[0]
    texts = ["Where is the red mug?", "It", "the ball on the table, please"]
    answers = predictor.chat(None, texts, sampling=Sampling(max_new_tokens=24))
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.tensor([encoder.question_ids(text)])
        whole = lm.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=stop, pad_token_id=stop)
        new = [token for token in whole[0, ids.shape[1] :].tolist() if token != stop]
        assert answer.text == encoder.tokenizer.decode(new, skip_special_tokens=False)


def test_what_is_new_starts_as_it_should(converted: Converted) -> None:
    base, model, tokens = converted.base, converted.model, converted.encoder.tokens
    words = converted.weights["model.embed_tokens.weight"]
    new = model.language_model.get_input_embeddings().weight[list(tokens.prompts)].detach()
    assert 0.7 < float(new.std() / words.std()) < 1.4
    similar = torch.nn.functional.cosine_similarity(new[:, None], new[None], dim=-1) - torch.eye(len(new))
    assert similar.abs().max() < 0.7  # in rows that the base had left over
    assert torch.equal(model.fusion.prompt_linear.weight, torch.eye(base.hidden))
    assert model.config.architecture.max_side_px == 1024 // base.patch * base.patch
    assert len(model.mask_head.blocks) == {32: 3, 14: 1}[base.patch]
    assert model.config.chat_format == ("research" if base is EVEV2 else "inst")
    assert model.config.converted_from == base.name
    assert (len(model.config.differences) > 0) == (base is not SAIL)
    assert [PARTS.stride_for(side) for side in (32, 16, 14, 28, 8, 4)] == [4, 4, 7, 7, 4, 4]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_damaged_weights_are_listed_and_refused(base: Base, tmp_path: Path) -> None:
    weights = weights_of(base)
    del weights["model.layers.1.self_attn.o_proj.weight"], weights["model.norm.weight"]
    weights["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(5, base.hidden)
    with pytest.raises(ValueError) as refused:
        check(PLANS[base.name](write_base(base, tmp_path / "a", weights), PARTS))
    text = ".text" if base is EVEV2 else ""
    for problem in (
        f"missing language_model.model.layers.1.self_attn.o_proj{text}.weight",
        "missing language_model.model.norm.weight",
        f"wrong shape language_model.model.layers.0.self_attn.k_proj{text}.weight: file (5, 48), model (24, 48)",
    ):
        assert problem in str(refused.value)
    weights = weights_of(base) | {"expert.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"keys that no \w+ checkpoint has: \['expert.weight'\]"):
        PLANS[base.name](write_base(base, tmp_path / "b", weights), PARTS)
    weights = weights_of(base) | {"model.layers.0.mlp.adapter.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=f"unexpected language_model.model.layers.0.mlp{text}.adapter.weight"):
        check(PLANS[base.name](write_base(base, tmp_path / "c", weights), PARTS))


@pytest.mark.parametrize("key", ["class_embedding", "patch_embedding.2.bias", "patch_embedding.0.weight"])
def test_parts_that_go_into_other_weights_are_missed_too(tmp_path: Path, key: str) -> None:
    weights = weights_of(EVEV2)
    del weights[f"model.vision_tower.{key}"]
    with pytest.raises(ValueError, match=f"missing model.vision_tower.{key}"):
        check(plan_evev2(write_base(EVEV2, tmp_path / "a", weights), PARTS))
    weights = weights_of(EVEV2)
    weights["model.vision_tower.class_embedding"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"wrong shape language_model.model.embed_tokens.weight"):
        check(plan_evev2(write_base(EVEV2, tmp_path / "b", weights), PARTS))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    folder = write_base(SAIL, tmp_path / "sail")
    with pytest.raises(ValueError, match="missing model.embed_vision_patch.weight"):
        plan_solo(folder, PARTS)
    with pytest.raises(ValueError, match="--max-side-px 100 must be a multiple of the base's patch side 14"):
        plan_sail(folder, NewParts(max_side_px=100))
    write_base(EVEV2, tmp_path / "qwen")
    for file in (tmp_path / "qwen").glob("token*"):
        file.rename(folder / file.name)
    with pytest.raises(ValueError, match="the tokenizer lacks <vision>, <vpatch>, </vision>"):
        plan_sail(folder, PARTS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks model-00002-of-00002.safetensors, which .*index.json names"):
        plan_sail(folder, PARTS)
    with pytest.raises(WeightsError, match="needs config.json"):
        plan_sail(tmp_path, PARTS)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"needs at least one \*.safetensors"):
        plan_sail(tmp_path, PARTS)


def test_a_sliding_window_is_noted_and_scaled_frequencies_are_refused(tmp_path: Path) -> None:
    folder = write_base(SOLO, tmp_path / "solo")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"sliding_window": 4096}))
    config = plan_solo(folder, PARTS).config
    assert config.text_config.sliding_window is None and "beyond 4096 tokens" in config.differences[-1]
    (folder / "config.json").write_text(json.dumps(settings | {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    with pytest.raises(ValueError, match="scales its rotary frequencies"):
        plan_solo(folder, PARTS)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_base(SAIL, tmp_path / "sail")
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors is damaged or not complete"):
        plan_sail(folder, PARTS)
    (folder / "model.safetensors.index.json").unlink()
    weights = load_file(folder / "model-00002-of-00002.safetensors")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"is in .*00002.*safetensors and in .*00001"):
        plan_sail(folder, PARTS)
