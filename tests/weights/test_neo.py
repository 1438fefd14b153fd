"""A converted NEO against a forward pass written from its published code and names, in plain loops (1e-4).

The mask head and the rows of new tokens are read from the converted files; everything else from the base's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reference_bases import IMAGENET_MEAN, IMAGENET_STD, TEXTS
from safetensors.torch import load_file, save_file
from test_evev2 import close, plain_masks
from torch import Tensor
from transformers import AutoTokenizer

from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.errors import UserError, WeightsError
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.model.attention import AttentionLayout, mixed_attention
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import Encoded, Sample, Turn
from pixel_sail.weights.convert.neo import plan_neo
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.scratch import train_tokenizer
from pixel_sail.weights.convert.streaming import check, write

LAYERS, HEADS, KV_HEADS, WIDTH, HIDDEN, MLP, VOCABULARY = 3, 4, 2, 16, 40, 56, 330  # heads of 16, more than 40 / 4
SQUARE_WIDTH, EPS, THETA, THETA_HW, THETA_VISION = 24, 1e-6, 1_000_000.0, 500.0, 300.0
LLM = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": WIDTH, "rms_norm_eps": EPS}
LLM |= {"rope_theta": THETA, "rope_theta_hw": THETA_HW, "max_position_embeddings": 512, "model_type": "qwen3"}
SIZE_WH, SEEN_WH, ROWS, COLUMNS = (70, 45), (128, 96), 3, 4  # enlarged to 96 x 96: 119.7 x 77.0, rounded up
VISUAL = 1 + ROWS * COLUMNS + 1
VISION, DECODER = "vision_model.embeddings.", "language_model.model."


def weights_of_neo() -> dict[str, Tensor]:
    generator, weights = torch.Generator().manual_seed(1), {}

    def add(name: str, *shape: int, scale: float = 0.15, around: float = 0.0) -> None:
        weights[name] = around + scale * torch.randn(*shape, generator=generator)

    add(f"{DECODER}embed_tokens.weight", VOCABULARY, HIDDEN, scale=0.5)
    add("language_model.lm_head.weight", VOCABULARY, HIDDEN)
    add(f"{DECODER}norm.weight", HIDDEN, around=1.0)
    for layer in range(LAYERS):
        at = f"{DECODER}layers.{layer}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS)):
            add(f"{at}self_attn.{name}_proj.weight", heads * WIDTH, HIDDEN)
            add(f"{at}self_attn.{name}_proj_hw.weight", heads * WIDTH, HIDDEN)
            add(f"{at}self_attn.{name}_norm.weight", WIDTH, around=1.0)
            add(f"{at}self_attn.{name}_norm_h.weight", WIDTH // 2, around=1.0)
            add(f"{at}self_attn.{name}_norm_w.weight", WIDTH // 2, around=1.0)
        add(f"{at}self_attn.v_proj.weight", KV_HEADS * WIDTH, HIDDEN)
        add(f"{at}self_attn.o_proj.weight", HIDDEN, HEADS * WIDTH)
        add(f"{at}mlp.gate_proj.weight", MLP, HIDDEN)
        add(f"{at}mlp.up_proj.weight", MLP, HIDDEN)
        add(f"{at}mlp.down_proj.weight", HIDDEN, MLP)
        add(f"{at}input_layernorm.weight", HIDDEN, around=1.0)
        add(f"{at}post_attention_layernorm.weight", HIDDEN, around=1.0)
    add(f"{VISION}patch_embedding.weight", SQUARE_WIDTH, 3, 16, 16, scale=0.05)
    add(f"{VISION}patch_embedding.bias", SQUARE_WIDTH, scale=0.5)
    add(f"{VISION}dense_embedding.weight", HIDDEN, SQUARE_WIDTH, 2, 2)
    add(f"{VISION}dense_embedding.bias", HIDDEN, scale=0.5)
    return weights


def write_neo(
    folder: Path, weights: dict[str, Tensor] | None = None, tokens: tuple[str, ...] = ("<img>", "</img>")
) -> Path:
    """A folder as it would be downloaded."""
    folder.mkdir()
    save_file(weights_of_neo() if weights is None else weights, folder / "model.safetensors")
    vision = {"hidden_size": SQUARE_WIDTH, "patch_size": 16, "rope_theta_vision": THETA_VISION}
    config = {"model_type": "neo_chat", "llm_config": LLM, "vision_config": vision, "downsample_ratio": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = train_tokenizer(TEXTS, 290)
    tokenizer.add_tokens([*tokens, "<IMG_CONTEXT>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """One vector: channel i turns with channel i + half."""
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = torch.tensor(position / theta ** (2 * i / len(x)))
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
    return out


def turned_square(x: Tensor, row: int, column: int) -> Tensor:
    """One square: neighbouring channels turn together, the first half of all with the column."""
    half, out = len(x) // 2, x.clone()
    for first, position in ((0, column), (half, row)):
        for i in range(0, half, 2):
            a, b = x[first + i], x[first + i + 1]
            angle = torch.tensor(position / THETA_VISION ** (i / half))
            out[first + i] = a * angle.cos() - b * angle.sin()
            out[first + i + 1] = a * angle.sin() + b * angle.cos()
    return out


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


class Converted:
    """The folder that is converted once for all tests, its model, and the weights of base and folder."""

    def __init__(self, folder: Path):
        self.folder, self.base = folder / "ours", weights_of_neo()
        torch.manual_seed(0)
        write(plan_neo(write_neo(folder / "base"), NewParts(max_side_px=96, mask_dim=16)), self.folder)
        self.files = {name: x for file in self.folder.glob("*.safetensors") for name, x in load_file(file).items()}
        self.model = PixelSail.from_pretrained(self.folder)
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.encoder = Encoder(tokenizer, self.model.config.architecture, self.model.config.chat_format)
        self.pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_WH[::-1], 3), dtype=np.uint8)
        self.image = folder / "image.png"
        Image.fromarray(self.pixels).save(self.image)

    def pack(self, *encoded: Encoded):
        return pack(encoded, self.encoder.tokens.seg, self.encoder.tokens.vision_patch)

    def patches(self) -> Tensor:
        """(ROWS COLUMNS, D): two convolutions, between them GELU and the turn of each square."""
        resized = np.array(Image.fromarray(self.pixels).resize(SEEN_WH, Image.Resampling.BICUBIC))
        x = (torch.from_numpy(resized).float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        first, second = (
            (self.base[f"{VISION}{name}_embedding.weight"], self.base[f"{VISION}{name}_embedding.bias"])
            for name in ("patch", "dense")
        )
        squares = F.gelu(F.conv2d(x.permute(2, 0, 1)[None], *first, stride=16))[0].clone()  # (m, 6, 8)
        for row in range(2 * ROWS):
            for column in range(2 * COLUMNS):
                squares[:, row, column] = turned_square(squares[:, row, column], row, column)
        return F.conv2d(squares[None], *second, stride=2)[0].flatten(1).T

    def embeddings(self, ids: list[int]) -> Tensor:
        """<img>, patches with the prompt <Prompt3> in the first column, </img>, then the text `ids`."""
        table, words = self.files[f"{DECODER}embed_tokens.weight"], self.base[f"{DECODER}embed_tokens.weight"]
        tokenizer = AutoTokenizer.from_pretrained(self.folder.parent / "base")
        opening, closing = words[tokenizer.convert_tokens_to_ids(["<img>", "</img>"])]
        patches = self.patches()
        patches[::COLUMNS] += table[self.encoder.tokens.prompts[3]]
        return torch.cat([opening[None], patches, closing[None], table[ids]])

    def plain_forward(self, ids: list[int], image: bool = True) -> tuple[Tensor, Tensor]:
        """States (L, D) and logits (L, V)."""
        table = self.files[f"{DECODER}embed_tokens.weight"]
        x = self.embeddings(ids) if image else table[ids]
        times = [(t, 0, 0) for t in range(len(ids))]
        if image:  # the patches share one step in time
            grid = [(1, row, column) for row in range(ROWS) for column in range(COLUMNS)]
            times = [(0, 0, 0), *grid, (2, 0, 0), *((3 + i, 0, 0) for i in range(len(ids)))]
        index, time = torch.arange(len(x)), torch.tensor([place[0] for place in times])
        may_see = (index[:, None] >= index) | (time[:, None] == time)
        for layer in range(LAYERS):
            at = f"{DECODER}layers.{layer}."
            w = {name.removeprefix(at): value for name, value in self.base.items() if name.startswith(at)}
            x = x + self.attention(w, rms(x, w["input_layernorm.weight"]), times, may_see)
            y = rms(x, w["post_attention_layernorm.weight"])
            gated = F.silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
            x = x + gated @ w["mlp.down_proj.weight"].T
        x = rms(x, self.base[f"{DECODER}norm.weight"])
        return x, x @ self.files["language_model.lm_head.weight"].T

    def attention(self, w: dict[str, Tensor], x: Tensor, times: list[tuple[int, int, int]], may_see: Tensor) -> Tensor:
        def three(name: str) -> Tensor:
            """(L, heads, 2 WIDTH)"""
            at = f"self_attn.{name}"
            time = rms((x @ w[f"{at}_proj.weight"].T).view(len(x), -1, WIDTH), w[f"{at}_norm.weight"])
            rows, columns = (x @ w[f"{at}_proj_hw.weight"].T).view(len(x), -1, WIDTH).chunk(2, dim=-1)
            rows, columns = rms(rows, w[f"{at}_norm_h.weight"]), rms(columns, w[f"{at}_norm_w.weight"])
            out = torch.empty(len(x), time.shape[1], 2 * WIDTH)
            for i, place in enumerate(times):
                for head in range(time.shape[1]):
                    parts = zip((time, rows, columns), place, (THETA, THETA_HW, THETA_HW), strict=True)
                    out[i, head] = torch.cat([turned(part[i, head], at, theta) for part, at, theta in parts])
            return out

        q, k, v = three("q"), three("k"), (x @ w["self_attn.v_proj.weight"].T).view(len(x), -1, WIDTH)
        out = torch.empty(len(x), HEADS, WIDTH)
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            scores = q[:, head] @ k[:, kv].T / WIDTH**0.5
            out[:, head] = scores.masked_fill(~may_see, -torch.inf).softmax(-1) @ v[:, kv]
        return out.flatten(1) @ w["self_attn.o_proj.weight"].T


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("neo"))


def sample(converted: Converted) -> Sample:
    region, mask = np.zeros(SIZE_WH[::-1], bool), np.zeros(SIZE_WH[::-1], bool)
    region[:, :7], mask[10:30, 20:50] = True, True  # columns of patches are 17.5 pixels wide
    turns = (Turn("Segment the mug <Prompt3>.", "It is [SEG]."),)
    return Sample("image", converted.image, turns, masks=(encode_mask(mask),), prompts={3: encode_mask(region)})


@torch.no_grad()
def test_image_prompt_text_and_mask(converted: Converted) -> None:
    """In a packed batch after a text, which it does not see."""
    encode, seg = converted.encoder.encode, converted.encoder.tokens.seg
    one, text = encode(sample(converted)), encode(Sample("text", None, (Turn("the ball?", "Here."),)))
    batch, first = converted.pack(text, one), len(text)
    output = converted.model(batch)
    hidden, logits = converted.plain_forward(one.input_ids.tolist()[VISUAL:])
    close(output.hidden[first:], hidden)
    mine = batch.predict_index >= first
    close(output.logits[mine], logits[batch.predict_index[mine] - first])
    seg_state, patches = hidden[one.labels.tolist().index(seg)], hidden[1 : VISUAL - 1]
    masks = next(masks for masks in output.mask_logits if len(masks))
    close(masks[0], plain_masks(converted.files, patches.view(ROWS, COLUMNS, -1), seg_state))
    words, _ = converted.plain_forward(text.input_ids.tolist(), image=False)
    close(output.hidden[:first], words)


@torch.no_grad()
def test_answers_continue_from_a_shared_image(converted: Converted) -> None:
    """And one that has no image."""
    encoder, shown = converted.encoder, sample(converted)
    prefix = encoder.image_prefix(Image.open(shown.image), shown.prompts, "image")
    questions = [encoder.question_ids(text) for text in ("Where is the red mug?", "ball", "ball")]
    requests = [GenerationRequest(question, image) for question, image in zip(questions, (0, 0, None), strict=True)]
    sampling, batch = Sampling(max_new_tokens=2), converted.pack(prefix)
    answers = generate(converted.model, batch, requests, encoder.tokens.seg, (), sampling)
    for request, answer in zip(requests, answers, strict=True):
        ids = list(request.question_ids)
        for _ in range(2):
            _, logits = converted.plain_forward(ids, image=request.image is not None)
            ids.append(int(logits[-1].argmax()))
        assert answer.token_ids == ids[len(request.question_ids) :]


@pytest.mark.parametrize("kernel", ["flex", "flash"])
def test_values_narrower_than_keys(kernel: str) -> None:
    """All kernels as SDPA; flash attention, which wants one width, by a stand-in that insists on it."""
    torch.manual_seed(0)
    spans = ((0, 1, 6, 9), (9, 9, 9, 12))
    q, k, v = torch.randn(1, 4, 12, 32), torch.randn(1, 2, 12, 32), torch.randn(1, 2, 12, 16)

    def flash(q: Tensor, k: Tensor, v: Tensor, call, scaling: float) -> Tensor:
        assert q.shape[2] == k.shape[2] == v.shape[2]
        starts, ends = call.cu_queries.tolist(), call.cu_keys.tolist()
        pieces = []
        for a, b, c, d in zip(starts, starts[1:], ends, ends[1:], strict=False):
            queries, keys, values = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - b + a) if call.causal else None
            keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
            pieces.append(F.scaled_dot_product_attention(queries, keys, values, mask, scale=scaling)[0].transpose(0, 1))
        return torch.cat(pieces)

    def run(kind: str) -> Tensor:
        layout = AttentionLayout(spans, kind, q.device, flash=flash if kind == "flash" else None)
        return mixed_attention(torch.nn.Module(), q, k, v, None, scaling=0.25, layout=layout)[0]

    with torch.no_grad():
        assert run(kernel).shape == (1, 12, 4, 16)
        torch.testing.assert_close(run(kernel), run("sdpa"), atol=1e-5, rtol=1e-5)


def test_a_step_reaches_every_weight(converted: Converted) -> None:
    """Also through activation checkpointing."""
    model = converted.model.train()
    model.gradient_checkpointing_enable()
    try:
        output = model(converted.pack(converted.encoder.encode(sample(converted))))
        (output.logits.square().sum() + output.mask_logits[0].square().sum()).backward()
        missed = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
        assert missed == set()
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()
        model.eval()


def test_what_is_not_neo_is_refused(tmp_path: Path) -> None:
    weights = weights_of_neo()
    del weights[f"{DECODER}layers.1.self_attn.q_norm_h.weight"]
    with pytest.raises(WeightsError, match="missing language_model.model.layers.1.self_attn.q_norm_h.weight"):
        check(plan_neo(write_neo(tmp_path / "a", weights), NewParts()))
    with pytest.raises(WeightsError, match="the tokenizer lacks <img>, </img>: it does not belong to NEO weights"):
        plan_neo(write_neo(tmp_path / "b", tokens=()), NewParts())
    folder = write_neo(tmp_path / "c")
    values = json.loads((folder / "config.json").read_text())
    for broken, message in (
        ({"llm_config": None}, "config.json has no section llm_config: it is not NEO's"),
        ({"llm_config": {k: v for k, v in LLM.items() if k != "rope_theta_hw"}}, "config.json lacks rope_theta_hw"),
        ({"vision_config": {"rope_theta_vision": -1.0}}, "greater than 0"),
    ):
        (folder / "config.json").write_text(json.dumps(values | broken))
        with pytest.raises(UserError, match=message):
            plan_neo(folder, NewParts())
    assert len(WeightFiles(folder).shapes) == len(weights_of_neo())
