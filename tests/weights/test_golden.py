"""The research model's recorded values, reproduced through the converter and the whole data path (golden/tiny)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pixel_sail import losses
from pixel_sail.architecture import Architecture
from pixel_sail.config import LossConfig
from pixel_sail.data.encode import Encoder, image_positions
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.losses import compute_losses, dice_loss, next_token_loss, sample_points
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.model.pixels import normalize
from pixel_sail.types import Batch, Sample, Turn
from pixel_sail.weights.convert.research import from_research, plan_research

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny(golden):
    folder = golden / "tiny"
    model, tokenizer = from_research(folder)
    encoder = Encoder(tokenizer, Architecture(patch_size=16, max_side_px=1024), "research", lm_weight_with_masks=0.1)
    return folder, model, encoder


def golden_sample(folder: Path) -> Sample:
    recorded = np.load(folder / "inputs.npz")
    file = io.BytesIO()
    Image.fromarray(recorded["image"]).save(file, "PNG")
    prompts = zip(recorded["prompt_ids"], recorded["prompt_masks_px"], strict=True)
    return Sample(
        key="golden",
        image=file.getvalue(),
        turns=(Turn("What is <Prompt3>?", "It is [SEG] and [SEG]."),),
        masks=tuple(encode_mask(mask > 0) for mask in recorded["gt_masks"]),
        prompts={int(k): encode_mask(mask) for k, mask in prompts},
    )


def golden_batch(folder: Path, encoder: Encoder) -> Batch:
    return pack([encoder.encode(golden_sample(folder))], encoder.tokens.seg, encoder.tokens.vision_patch)


def close(actual: torch.Tensor, recorded: np.ndarray) -> None:
    torch.testing.assert_close(actual.detach(), torch.from_numpy(np.asarray(recorded)), atol=TOLERANCE, rtol=TOLERANCE)


def test_encoding(tiny) -> None:
    folder, _, encoder = tiny
    recorded = np.load(folder / "inputs.npz")
    encoded = encoder.encode(golden_sample(folder))
    assert encoded.input_ids.tolist() == recorded["input_ids"][0].tolist()
    assert encoded.labels.tolist() == recorded["labels"][0].tolist()
    assert np.array_equal(encoded.position_ids, recorded["position_ids"][:, 0])
    close(normalize(encoded.patches), recorded["vision_patches"])
    indices = recorded["vp_token_indices"][0]
    indices = indices[indices != -1]  # -1: text
    assert encoded.prompt_ids.tolist() == np.where(indices == -2, -1, indices).tolist()


def test_position_ids(golden) -> None:
    recorded = np.load(golden / "helpers" / "position_ids.npz")
    assert len(recorded.files) >= 10
    for name in recorded.files:
        before, h, w, after = map(int, name.removeprefix("pos_").split("_"))
        assert np.array_equal(image_positions(before, h, w, after), recorded[name]), name


def test_forward(tiny) -> None:
    folder, model, encoder = tiny
    recorded = np.load(folder / "outputs.npz")
    batch = golden_batch(folder, encoder)
    output = model(batch, with_features=True)
    close(model.embed(batch), recorded["hidden_states"][0])
    close(output.hidden, recorded["hidden_states"][2])
    close(output.logits, recorded["logits"][0][batch.predict_index])
    close(output.hidden[batch.patch_index].view(4, 5, -1), recorded["lowres_image_features"])
    close(output.mask_features[0].permute(1, 2, 0), recorded["image_seg_features"])
    close(output.mask_logits[0], recorded["mask_logits"])
    close(model(batch).mask_logits[0], recorded["mask_logits"])  # the shorter way, without features
    lm = next_token_loss(output.logits, batch.labels, torch.ones_like(batch.label_weights)) / batch.labels.numel()
    close(lm, recorded["lm_loss"])
    full = torch.nn.functional.interpolate(output.mask_logits[0][None], (64, 80), mode="bilinear", align_corners=False)
    close(full[0], recorded["mask_logits_fullres"])


def test_hidden_states_of_every_layer(tiny) -> None:
    folder, model, encoder = tiny
    batch = golden_batch(folder, encoder)
    states = []
    layers = model.language_model.get_decoder().layers
    handles = [layer.register_forward_pre_hook(lambda _m, args: states.append(args[0][0])) for layer in layers]
    output = model(batch)
    for handle in handles:
        handle.remove()
    recorded = np.load(folder / "outputs.npz")["hidden_states"]
    for state, expected in zip([*states, output.hidden], recorded, strict=True):
        close(state, expected)


def sampled_losses(model, batch: Batch, points: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted losses at given points, per mask and per label, as the research code adds them."""
    output = model(batch)
    at_points = sample_points(output.mask_logits[0], points)
    truth = sample_points(batch.masks[0].pixels().float(), points)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(at_points, truth)
    lm = next_token_loss(output.logits, batch.labels, batch.label_weights) / batch.labels.numel()
    return {"mask": 2.0 * bce, "dice": 0.5 * dice_loss(at_points, truth).mean(), "llm": lm}


def recorded_gradients(folder: Path) -> dict[str, torch.Tensor]:
    """By research key, of the weight's shape: every seventh element, and NaN at the others."""
    recorded, gradients = np.load(folder / "grads_sampled_total.npz"), {}
    for name, weight in load_file(folder / "model.safetensors").items():
        gradients[name] = torch.full(weight.shape, torch.nan)
        gradients[name].view(-1)[::7] = torch.from_numpy(recorded[name])
    return gradients


def test_sampled_losses_and_gradients(tiny) -> None:
    folder, model, encoder = tiny
    recorded = np.load(folder / "outputs.npz")
    losses = sampled_losses(
        model,
        golden_batch(folder, encoder),
        torch.from_numpy(recorded["point_coords_24_bits"].astype(np.float32) / 2**24),
    )
    close(losses["mask"], recorded["sampled_loss_mask"])
    close(losses["dice"], recorded["sampled_loss_dice"])
    close(losses["llm"], recorded["sampled_llm_loss"])
    total = sum(losses.values())
    close(total, recorded["sampled_total"])
    gradients, plan = recorded_gradients(folder), plan_research(folder)
    expected = {name: weight.derive(gradients[weight.sources[0]]) for name, weight in plan.derived.items()}
    parameters = dict(model.named_parameters())
    assert expected.keys() == parameters.keys()
    for name, gradient in zip(expected, torch.autograd.grad(total, [parameters[n] for n in expected]), strict=True):
        known = ~expected[name].isnan()
        assert known.sum() == -(-gradient.numel() // 7), name
        torch.testing.assert_close(
            gradient[known], expected[name][known], atol=TOLERANCE, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_dense_losses(tiny) -> None:
    folder, model, encoder = tiny
    recorded = np.load(folder / "outputs.npz")
    batch = golden_batch(folder, encoder)
    logits = model(batch).mask_logits[0]
    targets = batch.masks[0].pixels().float()[:, None]
    targets = torch.nn.functional.interpolate(targets, logits.shape[1:], mode="nearest")[:, 0]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    close(2.0 * bce, recorded["dense_loss_mask"])
    close(0.5 * dice_loss(logits.flatten(1), targets.flatten(1)).mean(), recorded["dense_loss_dice"])


def test_random_points_come_near_the_dense_losses(tiny, monkeypatch) -> None:
    """Without importance sampling the points estimate the dense loss: within 5 % with 50,000 of them."""
    monkeypatch.setattr(losses, "IMPORTANT_SHARE", 0.0)
    folder, model, encoder = tiny
    batch = golden_batch(folder, encoder)
    sums = compute_losses(model(batch), batch, LossConfig(points=50_000))
    logits, targets = model(batch).mask_logits[0], batch.masks[0].pixels().float()
    full = torch.nn.functional.interpolate(logits[None], targets.shape[1:], mode="bilinear", align_corners=False)[0]
    dense = torch.nn.functional.binary_cross_entropy_with_logits(full, targets)
    assert float(sums["bce"]) / 2 == pytest.approx(float(dense), rel=0.05)


@pytest.mark.parametrize("name", ["plain8", "plain", "prefixed"])
def test_greedy_generation(tiny, name: str) -> None:
    folder, model, encoder = tiny
    recorded = np.load(folder / "generation.npz")
    sequence = recorded[f"{name}_sequences"][0].tolist()
    prompt_length = len(recorded[f"{name}_input_ids"][0])
    sample = golden_sample(folder)
    image = Image.open(io.BytesIO(sample.image))
    prefix = encoder.image_prefix(image, sample.prompts, "golden")
    question = encoder.question_ids("What is <Prompt3>?")
    prefill = encoder.text_ids("It is [SEG] and [SEG].") if name == "prefixed" else []
    prefill = prefill[: prompt_length - len(prefix) - len(question)]
    assert [*prefix.input_ids.tolist(), *question, *prefill] == sequence[:prompt_length]
    stops = (encoder.end_ids[0],) if name == "plain" else ()
    sampling = Sampling(max_new_tokens=8)
    batch = pack([prefix], encoder.tokens.seg, encoder.tokens.vision_patch)
    # Three rows at once: a longer neighbour (padding) must not change an answer.
    requests = [GenerationRequest(ids, 0, tuple(prefill)) for ids in (question, question + question, question)]
    answers = generate(model, batch, requests, encoder.tokens.seg, stops, sampling)
    expected = [*sequence[prompt_length:]]
    expected = expected[: expected.index(stops[0])] if stops else expected
    assert answers[0].token_ids == answers[2].token_ids == [*prefill, *expected]
    if name == "prefixed":
        full = torch.nn.functional.interpolate(
            answers[0].mask_logits[None], (64, 80), mode="bilinear", align_corners=False
        )
        assert np.array_equal(full[0] > 0, recorded["prefixed_masks"])


def test_unprompted_is_bit_identical_to_no_prompt_machinery(tiny) -> None:
    folder, model, encoder = tiny
    sample = golden_sample(folder)
    plain = Sample(sample.key, sample.image, sample.turns, sample.masks)
    batch = pack([encoder.encode(plain)], encoder.tokens.seg, encoder.tokens.vision_patch)
    embeds = model.language_model.get_input_embeddings()(batch.input_ids)
    visual = model.fusion.patch_linear(normalize(batch.patches))
    assert torch.equal(model.embed(batch), embeds.index_add(0, batch.patch_index, visual))


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_a_damaged_checkpoint_is_refused(golden, tmp_path, damage: str) -> None:
    folder = golden / "tiny"
    weights = load_file(folder / "model.safetensors")
    name = "seg_token_projector.2.bias"
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        weights["expert.weight"] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(31)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    message = {
        "missing": r"missing mask_head.seg_projector.2.bias",
        "extra": r"no research Pixel-SAIL checkpoint has: \['expert.weight'\]",
        "shape": r"wrong shape mask_head.seg_projector.2.bias: file \(31,\), model \(32,\)",
    }[damage]
    with pytest.raises(ValueError, match=message):
        from_research(tmp_path)
