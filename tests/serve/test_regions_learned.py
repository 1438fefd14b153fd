"""A tiny model that has learned to name the colour of a region: its answers depend on the region alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_predictor import tiny_predictor

from pixel_sail.config import LossConfig
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.losses import compute_losses
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import Sample, Turn

STEPS = 320
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}


def draw_image(colours: list[str]) -> Image.Image:
    """Four cells of 8 pixels in a row."""
    cells = [np.full((8, 8, 3), COLOURS[colour], dtype=np.uint8) for colour in colours]
    return Image.fromarray(np.concatenate(cells, axis=1))


def cell(i: int) -> np.ndarray:
    mask = np.zeros((8, 32), dtype=bool)
    mask[2:5, 8 * i + 1 : 8 * i + 6] = True
    return mask


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    rng = np.random.default_rng(0)
    predictor = tiny_predictor(
        ["red green blue ?"] * 3,
        "{expression}?",
        scratch={"hidden_size": 48, "kv_heads": 4, "mlp_size": 96, "vocab_size": 300, "rope_theta": 100.0},
        architecture={"mask_stride": 8, "max_side_px": 32, "small_images": {"rope_layout": "interleaved"}},
    )
    model = predictor.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = predictor.encoder.tokens
    for step in range(STEPS):
        batch = [predictor.encoder.encode(draw(rng)) for _ in range(32)]
        packed = pack(batch, tokens.seg, tokens.vision_patch)
        loss = compute_losses(model(packed), packed, LossConfig())["lm"] / packed.counts()["lm"]
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS)
        optimizer.step()
    model.eval()
    return predictor


def draw(rng: np.random.Generator) -> Sample:
    """Two random cells of a random image are prompted; the question is about one of them."""
    colours = [list(COLOURS)[i] for i in rng.integers(3, size=4)]
    buffer = io.BytesIO()
    draw_image(colours).save(buffer, "PNG")
    cells = rng.permutation(4)[:2].tolist()
    k = int(rng.integers(2))
    turns = (Turn(f"<Prompt{k}>?", colours[cells[k]]),)
    prompts = {k: encode_mask(cell(c)) for k, c in enumerate(cells)}
    return Sample("cells", buffer.getvalue(), turns, prompts=prompts)


def test_swapped_regions_swap_the_answers(predictor: Predictor) -> None:
    image = draw_image(["blue", "red", "green", "red"])
    questions = ["<Prompt0>?", "<Prompt1>?"]
    for first, second, expected in ((0, 1, ["blue", "red"]), (1, 0, ["red", "blue"]), (2, 3, ["green", "red"])):
        answers = predictor.chat(image, questions, [cell(first), cell(second)])
        assert [answer.text for answer in answers] == expected


def test_without_fusion_the_region_cannot_matter(predictor: Predictor) -> None:
    image = draw_image(["blue", "red", "green", "red"])
    predictor.encoder.hide = "prompts"
    try:
        first, second = (predictor.chat(image, "<Prompt0>?", [cell(i)])[0].text for i in (0, 1))
    finally:
        predictor.encoder.hide = "none"
    assert first == second
