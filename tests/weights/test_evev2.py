"""A converted EVEv2 reads images as EVEv2 does: against a forward pass written from the published names (1e-4).

The mask head and the rows of new tokens are read from the converted files; everything else from the base's own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reference_bases import EVEV2, forward, patch_embeddings, weights_of, write_base
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.model.configuration import load_own_config
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import Encoded, Sample, Turn
from pixel_sail.weights.convert.evev2 import plan_evev2
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.streaming import check, write

SIZE_WH, SEEN_WH = (70, 45), (128, 96)  # 70 x 45 times 96 / sqrt(70 x 45) is 119.7 x 77.0, rounded up to 32
ROWS, COLUMNS = 3, 4
VISUAL = 1 + ROWS * (COLUMNS + 1)  # tokens: the class token, and in each row its patches and a split token
TOWER = "model.vision_tower."


class Converted:
    """The folder that is converted once for all tests, its model, and the weights of base and folder."""

    def __init__(self, folder: Path):
        self.folder, self.base = folder / "ours", weights_of(EVEV2)
        torch.manual_seed(0)
        write(plan_evev2(write_base(EVEV2, folder / "base"), NewParts(max_side_px=96, mask_dim=16)), self.folder)
        self.files = {name: x for file in self.folder.glob("*.safetensors") for name, x in load_file(file).items()}
        self.model = PixelSail.from_pretrained(self.folder)
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.encoder = Encoder(tokenizer, self.model.config.architecture, self.model.config.chat_format)
        self.known = len(AutoTokenizer.from_pretrained(folder / "base"))
        self.pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_WH[::-1], 3), dtype=np.uint8)
        Image.fromarray(self.pixels).save(folder / "image.png")
        self.image = folder / "image.png"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("evev2"))


def sample(converted: Converted, image: bool = True) -> Sample:
    """The left seven columns of pixels are prompted: those of the first column of patches, 17.5 pixels wide."""
    if not image:
        return Sample("text", None, (Turn("Where is the ball?", "It is here."),))
    region, mask = np.zeros(SIZE_WH[::-1], bool), np.zeros(SIZE_WH[::-1], bool)
    region[:, :7], mask[10:30, 20:50] = True, True
    turns = (Turn("Please segment the mug <Prompt3>.", "It is [SEG]."), Turn("the ball?", "Here."))
    return Sample("image", converted.image, turns, masks=(encode_mask(mask),), prompts={3: encode_mask(region)})


def plain_embeddings(converted: Converted, ids: list[int]) -> Tensor:
    """What EVEv2's first layer reads: class token, rows of patches, each with a split token, then the text `ids`."""
    base, files = converted.base, converted.files
    table = files["language_model.model.embed_tokens.weight"]
    assert torch.equal(table[: converted.known], base["model.embed_tokens.weight"][: converted.known])
    resized = np.array(Image.fromarray(converted.pixels).resize(SEEN_WH, Image.Resampling.BICUBIC))
    patches = patch_embeddings(EVEV2, base, resized)  # with CLIP's statistics
    patches[:, 0] += table[converted.encoder.tokens.prompts[3]]
    rows = torch.cat([patches, base[f"{TOWER}split_embedding"].expand(ROWS, 1, -1)], dim=1)
    return torch.cat([base[f"{TOWER}class_embedding"][None], rows.flatten(0, 1), table[ids]])


def plain_forward(converted: Converted, ids: list[int]) -> tuple[Tensor, Tensor]:
    """States (L, D) and logits (L, V) of the image followed by `ids`: causal, positions 0, 1, 2, ..."""
    embeds = plain_embeddings(converted, ids)
    index = torch.arange(len(embeds))
    head = {"lm_head.weight": converted.files["language_model.lm_head.weight"]}
    positions, may_see = index[:, None].expand(-1, 2), index[:, None] >= index
    return forward(EVEV2, converted.base | head, embeds, positions, may_see, index < VISUAL)


def plain_masks(files: dict[str, Tensor], patches: Tensor, seg: Tensor) -> Tensor:
    """Mask logits (8 h, 8 w) of the states of patches (h, w, D) and of a [SEG] (D,), by the mask head in `files`."""
    w = {name.removeprefix("mask_head."): x for name, x in files.items() if name.startswith("mask_head.")}
    x = patches.permute(2, 0, 1)[None]
    for b in range(3):
        x = F.gelu(F.conv_transpose2d(x, w[f"blocks.{b}.up.weight"], w[f"blocks.{b}.up.bias"], stride=2))
        kernel, bias = w[f"blocks.{b}.depthwise.weight"], w[f"blocks.{b}.depthwise.bias"]
        x = F.conv2d(x, kernel, bias, padding=1, groups=len(kernel)).permute(0, 2, 3, 1)
        x = F.linear(x, w[f"blocks.{b}.pointwise.weight"], w[f"blocks.{b}.pointwise.bias"])
        x = F.layer_norm(x, x.shape[-1:], w[f"blocks.{b}.norm.weight"], w[f"blocks.{b}.norm.bias"], 1e-6)
        x = x.permute(0, 3, 1, 2)

    def project(name: str, y: Tensor) -> Tensor:
        hidden = F.relu(F.linear(y, w[f"{name}.0.weight"], w[f"{name}.0.bias"]))
        return F.linear(hidden, w[f"{name}.2.weight"], w[f"{name}.2.bias"])

    return project("pixel_projector", x[0].permute(1, 2, 0)) @ project("seg_projector", seg)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=1e-4, rtol=1e-4)


def packed(converted: Converted, *encoded: Encoded):
    tokens = converted.encoder.tokens
    return pack(encoded, tokens.seg, tokens.vision_patch)


def test_image_prompt_text_and_mask(converted: Converted) -> None:
    """In a packed batch whose sequences do not see each other: after a text, and before another."""
    encode, tokens = converted.encoder.encode, converted.encoder.tokens
    one, text = encode(sample(converted)), encode(sample(converted, image=False))
    ids = one.input_ids.tolist()
    block = [tokens.vision_start, *([tokens.vision_patch] * COLUMNS + [tokens.vision_end]) * ROWS]
    assert ids[:VISUAL] == block and one.images[0].grid_hw == (ROWS, COLUMNS)
    hidden, logits = plain_forward(converted, ids[VISUAL:])
    batch, first, last = packed(converted, text, one, text), len(text), len(text) + len(one)
    output = converted.model(batch)
    close(output.hidden[first:last], hidden)
    mine = (batch.predict_index >= first) & (batch.predict_index < last)
    close(output.logits[mine], logits[batch.predict_index[mine] - first])
    seg = one.labels.tolist().index(tokens.seg)
    masks = [masks for masks in output.mask_logits if len(masks)]
    assert len(masks) == 1 and masks[0].shape == (1, 24, 32)
    patches = hidden[1:VISUAL].view(ROWS, COLUMNS + 1, -1)[:, :COLUMNS]  # without class and split tokens
    close(masks[0][0], plain_masks(converted.files, patches, hidden[seg]))
    assert batch.attended == sum(n * (n + 1) // 2 for n in map(len, (text, one, text)))
    assert [call.causal for call in batch.varlen] == [True]


@torch.no_grad()
def test_answers_continue_from_a_shared_image(converted: Converted) -> None:
    """Two questions about one image, each as the plain forward pass answers it, token by token."""
    encoder, texts = converted.encoder, ["Where is the red mug?", "the ball"]
    shown = sample(converted)
    prefix = encoder.image_prefix(Image.open(shown.image), shown.prompts, "image")
    questions = [encoder.question_ids(text) for text in texts]
    requests = [GenerationRequest(question, 0) for question in questions]
    answers = generate(
        converted.model, packed(converted, prefix), requests, encoder.tokens.seg, (), Sampling(max_new_tokens=4)
    )
    for question, answer in zip(questions, answers, strict=True):
        ids = list(question)
        for _ in range(4):
            ids.append(int(plain_forward(converted, ids)[1][-1].argmax()))
        assert answer.token_ids == ids[len(question) :]


def test_what_the_folder_says(converted: Converted) -> None:
    """The base's convolutions to the bit; no linear for prompts; EVEv2's size where none is given."""
    kernel = converted.base[f"{TOWER}patch_embedding.0.weight"]
    assert torch.equal(converted.files["fusion.sub_patch_linear.weight"], kernel.flatten(1))
    assert "fusion.prompt_linear.weight" not in converted.files
    config = load_own_config(converted.folder)
    assert config.architecture.size_rule == "of about 96 x 96 px" and len(config.differences) == 2
    source = converted.folder.parent / "base"
    assert plan_evev2(source, NewParts()).config.architecture.max_side_px == 800


def test_the_class_token_by_its_later_name(tmp_path: Path) -> None:
    weights = weights_of(EVEV2)
    weights[f"{TOWER}start_embedding"] = weights.pop(f"{TOWER}class_embedding")
    plan = plan_evev2(write_base(EVEV2, tmp_path / "base", weights), NewParts(mask_dim=16))
    check(plan)
    row = plan.tensor("language_model.model.embed_tokens.weight")[plan.tokenizer.convert_tokens_to_ids("<vision>")]
    assert torch.equal(row, weights[f"{TOWER}start_embedding"])
