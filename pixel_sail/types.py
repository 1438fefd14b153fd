"""The nouns that travel through pixel_sail, in the order in which they are made: Sample, Encoded, Batch, Output.

Shape legend, used in every comment of the package:

    L   tokens of a packed batch              T   tokens of one sequence
    N   image patches (h * w of one image)    P   patch side in pixels
    M   supervised positions (labels)         V   vocabulary
    K   masks of one image                    S   mask feature width
    D   hidden width of the decoder           B   sequences in a batch
    C   feature width of an expert
    h, w       patch grid                     H, W  image in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

IGNORE_LABEL = -100
UNPROMPTED = -1


class BadSample(ValueError):
    """A sample that cannot be used; the message names its key and what is wrong. The loader counts and lists these."""


class RLE(TypedDict):
    """COCO compressed run-length mask: column-major runs, as pycocotools writes them, `counts` as text."""

    size: list[int]  # [height_px, width_px]
    counts: str


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `[SEG]` stands in the answer where a mask belongs, `<PromptK>` names a region."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One annotated image. No tensors, no tokenizer, no patches."""

    key: str  # says where it came from and is unique in its source: "refcoco/train/image=12"
    image: Path | bytes | None  # file, encoded file contents, or None for a text-only conversation
    turns: tuple[Turn, ...]
    masks: tuple[RLE, ...] = ()  # one for each [SEG] of the answers, in reading order; size of the stored image
    prompts: dict[int, RLE] = field(default_factory=dict)  # K of <PromptK> -> its region
    # expert -> (C, h, w) float16, where a shard carries its features; arrays have no plain ==, so it is left out of it
    features: dict[str, np.ndarray] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Encoded:
    """One sequence, ready to be packed. The only tensors that know both tokens and patches."""

    key: str
    seed: int  # of the random points at which its masks are supervised: the same however it is packed
    input_ids: Tensor  # (T,) int64
    labels: Tensor  # (T,) int64; labels[i] is the token at i if it is to be predicted, else IGNORE_LABEL
    position_ids: Tensor  # (3, T) int64; axes t, h, w
    patches: Tensor  # (N, 3 P P) float32, normalized; rows (channel, row, column)
    prompt_ids: Tensor  # (N,) int64; K of the <PromptK> drawn on the patch, or UNPROMPTED
    grid_hw: tuple[int, int]  # (h, w); (0, 0) without an image
    image_span: tuple[int, int]  # tokens [<vision>, one past </vision>); (0, 0) without an image
    masks: Tensor  # (K, h P, w P) uint8 in {0, 1}; one for each [SEG] with a label, in order
    lm_weight: float = 1.0  # weight of this sequence's language loss
    dropped_turns: int = 0  # turns that did not fit into the length limit, gone with their masks
    # expert -> its features (C, h, w) float16, or the image (3, H, W) uint8 that it is to see; none without an image
    expert_features: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.input_ids.numel()


@dataclass(frozen=True)
class Batch:
    """Several sequences end to end; they never see each other. Index tensors point into the L packed tokens."""

    keys: tuple[str, ...]
    seeds: tuple[int, ...]  # one a sequence
    # one a sequence, host integers: (start, first image token, one past the last image token, stop)
    spans: tuple[tuple[int, int, int, int], ...]
    grids_hw: tuple[tuple[int, int], ...]  # one a sequence, (0, 0) without an image
    masks_per_sequence: tuple[int, ...]
    input_ids: Tensor  # (L,) int64
    position_ids: Tensor  # (3, L) int64
    patches: Tensor  # (sum N, 3 P P) float32
    patch_index: Tensor  # (sum N,) int64, position of each patch in L
    prompt_ids: Tensor  # (sum N,) int64, K of <PromptK> or UNPROMPTED
    predict_index: Tensor  # (M,) int64, the position whose state predicts label m (one before the labelled token)
    labels: Tensor  # (M,) int64
    label_weights: Tensor  # (M,) float32
    seg_index: Tensor  # (sum K,) int64, positions of the [SEG]s that own a mask, in sequence order
    masks: tuple[Tensor, ...]  # one a sequence, (K, h P, w P) uint8
    dropped_turns: int = 0
    expert_features: dict[str, tuple[Tensor, ...]] = field(
        default_factory=dict
    )  # one a sequence; (0,) without an image

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`; `dtype` casts the patches only (indices, labels and masks keep theirs)."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
                return tuple(move(item) for item in value)
            if isinstance(value, dict):
                return {name: move(item) for name, item in value.items()}
            return value

        moved = replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})
        return moved if dtype is None else replace(moved, patches=moved.patches.to(dtype))

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()

    def counts(self) -> dict[str, float]:
        """Denominators of the losses that this batch contributes to; summed over a whole optimizer step."""
        return {
            "lm": float(self.labels.numel()),
            "mask": float(sum(self.masks_per_sequence)),
            "image": float(sum(h * w > 0 for h, w in self.grids_hw)),
        }


@dataclass
class Output:
    """What the model says about a Batch: what losses and metrics read."""

    logits: Tensor  # (M, V) at the supervised positions only
    hidden: Tensor  # (L, D) after the final norm
    mask_features: Sequence[Tensor]  # one a sequence with an image: (S, h', w') with h' = h * 2**blocks
    mask_logits: Sequence[Tensor]  # one a sequence: (K, h', w'); (0, h', w') where it owns no mask
