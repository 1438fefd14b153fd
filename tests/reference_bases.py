"""Small checkpoints under the key names of released bases (docs/model.md), and their forward pass in plain loops.

Nothing here uses pixel_sail's model or converters, so that the two implementations cannot share a mistake.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pixel_sail.weights.convert.scratch import train_tokenizer

TEXTS = ["Where is the red mug on the table?", "Please segment the ball.", "It is here."] * 3
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Base:
    """A family at a small size: its config.json, the tokens added to its tokenizer, its patch side."""

    name: str
    patch: int
    tokens: tuple[str, ...]
    hidden: int = 48
    mlp: int = 80
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 330  # more rows than the tokenizer has tokens, as Qwen2.5 and others are padded
    settings: dict = field(
        default_factory=lambda: {"rms_norm_eps": 1e-5, "rope_theta": 50_000.0, "max_position_embeddings": 512}
    )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SOLO = Base("solo", 32, ("<vision>", "<vpatch>", "<vrow_sep>"))
SAIL = Base("sail", 14, ("<vision>", "<vpatch>", "</vision>"))
EVEV2 = Base("evev2", 32, ())
SUB_PATCH, SUB_WIDTH = 16, 20  # of EVEv2's two convolutions


def weights_of(base: Base) -> dict[str, Tensor]:
    """Random weights, large enough that a wrong one changes the results."""
    generator = torch.Generator().manual_seed(len(base.name))
    weights: dict[str, Tensor] = {}

    def add(name: str, *shape: int, scale: float = 0.15, around: float = 0.0) -> None:
        weights[name] = around + scale * torch.randn(*shape, generator=generator)

    width, queries, keys = base.hidden, base.heads * base.head_dim, base.kv_heads * base.head_dim
    add("model.embed_tokens.weight", base.vocabulary, width, scale=0.5)
    add("lm_head.weight", base.vocabulary, width)
    add("model.norm.weight", width, around=1.0)
    for layer in range(base.layers):
        for twin in ("", "moe_") if base is EVEV2 else ("",):
            at = f"model.layers.{layer}."
            for name, size in (("q", queries), ("k", keys), ("v", keys)):
                add(f"{at}self_attn.{twin}{name}_proj.weight", size, width)
                if base is EVEV2:
                    add(f"{at}self_attn.{twin}{name}_proj.bias", size)
            add(f"{at}self_attn.{twin}o_proj.weight", width, queries)
            add(f"{at}{twin}mlp.gate_proj.weight", base.mlp, width)
            add(f"{at}{twin}mlp.up_proj.weight", base.mlp, width)
            add(f"{at}{twin}mlp.down_proj.weight", width, base.mlp)
            add(f"{at}{twin}input_layernorm.weight", width, around=1.0)
            add(f"{at}{twin}post_attention_layernorm.weight", width, around=1.0)
    if base is SOLO:
        add("model.embed_vision_patch.weight", width, 3 * base.patch**2, scale=0.02)
    elif base is SAIL:
        add("model.vis_embed.weight", width, 3 * base.patch**2, scale=0.05)
    else:
        tower = "model.vision_tower."
        add(f"{tower}patch_embedding.0.weight", SUB_WIDTH, 3, SUB_PATCH, SUB_PATCH, scale=0.05)
        add(f"{tower}patch_embedding.0.bias", SUB_WIDTH, scale=0.5)
        add(f"{tower}patch_embedding.2.weight", width, SUB_WIDTH, 2, 2)
        add(f"{tower}patch_embedding.2.bias", width, scale=0.5)
        add(f"{tower}class_embedding", width, scale=0.5)
        add(f"{tower}split_embedding", width, scale=0.5)
    return weights


def write_base(base: Base, folder: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """A folder as it would be downloaded: two shards with an index, config.json, the tokenizer's files."""
    weights = weights_of(base) if weights is None else weights
    folder.mkdir(parents=True)
    names = sorted(weights)
    where = {name: f"model-{1 + (i % 2):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        save_file({name: weights[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    kind = "qwen2" if base is EVEV2 else "mistral"
    heads = {"num_attention_heads": base.heads, "num_key_value_heads": base.kv_heads}
    (folder / "config.json").write_text(json.dumps(base.settings | heads | {"model_type": kind}))
    tokenizer = train_tokenizer(TEXTS, 290)
    if base is not EVEV2:
        tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|endoftext|>"
    tokenizer.add_tokens(list(base.tokens), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def patch_embeddings(base: Base, weights: dict[str, Tensor], image: np.ndarray) -> Tensor:
    """(h, w, D) of an image (H, W, 3) uint8 whose sides are multiples of the patch side; without any token."""
    mean, std = (CLIP_MEAN, CLIP_STD) if base is EVEV2 else (IMAGENET_MEAN, IMAGENET_STD)
    pixels = (torch.from_numpy(image).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    pixels = pixels.permute(2, 0, 1)[None]  # (1, 3, H, W)
    if base is EVEV2:
        tower = "model.vision_tower.patch_embedding."
        small = F.conv2d(pixels, weights[f"{tower}0.weight"], weights[f"{tower}0.bias"], stride=SUB_PATCH)
        return F.conv2d(F.gelu(small), weights[f"{tower}2.weight"], weights[f"{tower}2.bias"], stride=2)[0].permute(
            1, 2, 0
        )
    linear = weights["model.embed_vision_patch.weight" if base is SOLO else "model.vis_embed.weight"]
    kernel = linear.view(base.hidden, 3, base.patch, base.patch)
    return F.conv2d(pixels, kernel, stride=base.patch)[0].permute(1, 2, 0)


def forward(
    base: Base, weights: dict[str, Tensor], embeds: Tensor, rows_columns: Tensor, may_see: Tensor, visual: Tensor
) -> tuple[Tensor, Tensor]:
    """States after the final norm (L, D) and logits (L, V) of embeddings (L, D).

    `rows_columns` (L, 2) positions of each token, `may_see` (L, L) bool, `visual` (L,) bool: which tokens go through
    EVEv2's moe_* weights.
    """
    x = embeds
    for layer in range(base.layers):
        at = f"model.layers.{layer}."
        x = x + _attention(base, weights, at, _norm(base, weights, at, "input_layernorm", x, visual), rows_columns,
                           may_see, visual)  # fmt: skip
        y = _norm(base, weights, at, "post_attention_layernorm", x, visual)
        gate, up = (_by_kind(weights, at, f"mlp.{name}_proj", y, visual) for name in ("gate", "up"))
        x = x + _by_kind(weights, at, "mlp.down_proj", F.silu(gate) * up, visual)
    x = _rms(x, weights["model.norm.weight"], base.settings["rms_norm_eps"])
    return x, x @ weights["lm_head.weight"].T


def _attention(
    base: Base, weights: dict[str, Tensor], at: str, x: Tensor, rows_columns: Tensor, may_see: Tensor, visual: Tensor
) -> Tensor:
    length = len(x)
    q, k, v = (_by_kind(weights, at, f"self_attn.{name}_proj", x, visual).view(length, -1, base.head_dim)
               for name in "qkv")  # fmt: skip
    q, k = _rotated(base, q, rows_columns), _rotated(base, k, rows_columns)
    out = torch.empty(length, base.heads, base.head_dim)
    for head in range(base.heads):
        kv = head // (base.heads // base.kv_heads)
        scores = q[:, head] @ k[:, kv].T / base.head_dim**0.5
        out[:, head] = scores.masked_fill(~may_see, float("-inf")).softmax(-1) @ v[:, kv]
    return _by_kind(weights, at, "self_attn.o_proj", out.flatten(1), visual)


def _rotated(base: Base, x: Tensor, rows_columns: Tensor) -> Tensor:
    """(L, heads, d): the fast half of the frequencies turns with the row, the slow half with the column."""
    half = base.head_dim // 2
    turned = x.clone()
    for i in range(half):
        axis = 0 if i < half // 2 else 1
        angle = rows_columns[:, axis, None].float() / base.settings["rope_theta"] ** (2 * i / base.head_dim)
        a, b = x[:, :, i], x[:, :, i + half]
        turned[:, :, i] = a * angle.cos() - b * angle.sin()
        turned[:, :, i + half] = b * angle.cos() + a * angle.sin()
    return turned


def _by_kind(weights: dict[str, Tensor], at: str, name: str, x: Tensor, visual: Tensor) -> Tensor:
    """A linear, token by token; moe_mlp.up_proj is the twin of mlp.up_proj, self_attn.moe_q_proj that of q_proj."""
    twin = f"moe_{name}" if name.startswith("mlp") else name.replace("self_attn.", "self_attn.moe_")
    out = []
    for token, is_visual in zip(x, visual.tolist(), strict=True):
        chosen = at + (twin if is_visual else name)
        value = weights[f"{chosen}.weight"] @ token
        out.append(value + weights[f"{chosen}.bias"] if f"{chosen}.bias" in weights else value)
    return torch.stack(out)


def _norm(base: Base, weights: dict[str, Tensor], at: str, name: str, x: Tensor, visual: Tensor) -> Tensor:
    eps = base.settings["rms_norm_eps"]
    return torch.stack(
        [
            _rms(token, weights[f"{at}{'moe_' if is_visual else ''}{name}.weight"], eps)
            for token, is_visual in zip(x, visual.tolist(), strict=True)
        ]
    )


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
