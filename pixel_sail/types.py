"""The types that pass through pixel_sail, in order: Sample, Encoded, Batch, Output.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from pixel_sail.errors import UserError
from pixel_sail.layout import Span, VarlenCall, attended, two_way_run

IGNORE_LABEL = -100
UNPROMPTED = -1


class BadSample(UserError):
    """A sample that cannot be used. The message gives its key and what is wrong. The loader counts and lists them."""


class NoPixels(BadSample):
    """An object that has no pixel, or that the patches cannot show: no fault of a file.

    Readers leave out the turn or phrase that needs it. A sample that has nothing else is skipped and counted, but not
    against data.max_bad_samples.
    """


class RLE(TypedDict):
    """COCO compressed run-length mask: column-major runs as in pycocotools, with `counts` as text."""

    size: list[int]  # [height_px, width_px]
    counts: str


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `[SEG]` in the answer stands for a mask, `<PromptK>` names a region."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One annotated image. No tensors, no tokenizer, no patches."""

    key: str  # unique in its source and says where the sample comes from: "refcoco/train/image=12"
    image: Path | bytes | None  # path or bytes of the image file, or None for a text-only conversation
    turns: tuple[Turn, ...]
    masks: tuple[RLE, ...] = ()  # one per [SEG] of the answers, in reading order, at the size of the stored image
    prompts: dict[int, RLE] = field(default_factory=dict)  # K of <PromptK> -> its region
    dropped_turns: int = 0  # left out when the sample was drawn, because a mask or region of theirs has no pixel
    # expert -> (C, h, w) float16, if a shard carries its features; not compared, because arrays have no plain ==
    features: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    text: str = ""  # plain text without an image, every token of which is learned; there are no turns then


@dataclass(frozen=True)
class Masks:
    """Masks of one size, as runs of equal pixels: a few kilobytes, where the pixels of an image of 1024 px are a MB.

    Runs go column by column, as in RLE, and alternate between 0s and 1s. Each mask begins with 0s and has an even
    number of them, so that the value of a pixel is the parity of its run in the whole list.
    """

    runs: Tensor  # (R,) int32, lengths in pixels; of all masks together
    count: int  # K
    size_hw: tuple[int, int]  # (H, W) pixels

    def __len__(self) -> int:
        return self.count

    def pixels(self) -> Tensor:
        """(K, H, W) uint8 in {0, 1}, a transposed view of (K, W, H). On a GPU nobody waits."""
        height, width = self.size_hw
        run = torch.repeat_interleave(self.runs, output_size=self.count * height * width)
        return run.bitwise_and_(1).to(torch.uint8).view(self.count, width, height).mT


@dataclass(frozen=True)
class Encoded:
    """One sequence of tokens and patches, ready to be packed."""

    key: str
    seed: int  # of the random points at which masks are supervised; independent of the packing
    input_ids: Tensor  # (T,) int64
    labels: Tensor  # (T,) int64; labels[i] is the token at i if it must be predicted, else IGNORE_LABEL
    position_ids: Tensor  # (3, T) int64; axes t, h, w
    patches: Tensor  # (N, 3 P P) uint8, each (channel, row, column); float32 zeros, normalized, with data.hide=image
    prompt_ids: Tensor  # (N,) int64; K of the <PromptK> whose region covers the patch, or UNPROMPTED
    grid_hw: tuple[int, int]  # (h, w); (0, 0) without an image
    image_span: tuple[int, int]  # tokens [<vision>, one past the last </vision>); (0, 0) without an image
    masks: Masks  # of size (h P, w P); one per [SEG] with a label, in order
    image_attention: str = "two_way"  # that of the architecture: which of the image's tokens see each other
    lm_weight: float = 1.0  # weight of this sequence's language loss
    dropped_turns: int = 0  # over the length limit, or with a mask (of a phrase, too) that has no pixel at this size
    # expert -> its features (C, h, w) float16, or the image (3, H, W) uint8 that it is shown; empty without an image
    expert_features: dict[str, Tensor] = field(default_factory=dict)
    is_text: bool = False  # plain text: its labels answer nothing

    def __len__(self) -> int:
        return self.input_ids.numel()

    @property
    def two_way_span(self) -> tuple[int, int]:
        """The tokens that see each other both ways."""
        return two_way_run(self.image_span, self.image_attention)


@dataclass(frozen=True)
class Batch:
    """Several sequences end to end, which never attend to each other. Indices refer to the L packed tokens."""

    keys: tuple[str, ...]
    seeds: tuple[int, ...]  # one per sequence
    spans: tuple[Span, ...]  # one per sequence, host integers: which tokens see each other
    grids_hw: tuple[tuple[int, int], ...]  # one per sequence, (0, 0) without an image
    masks_per_sequence: tuple[int, ...]
    input_ids: Tensor  # (L,) int64
    position_ids: Tensor  # (3, L) int64
    patches: Tensor  # (sum N, 3 P P) uint8; float32 where they are normalized already
    patch_index: Tensor  # (sum N,) int64, position of each patch in the packed tokens
    prompt_ids: Tensor  # (sum N,) int64, K of <PromptK> or UNPROMPTED
    prompted: Tensor  # (number of prompted patches,) int64, which of the patches they are
    predict_index: Tensor  # (M,) int64, position whose hidden state predicts label m: the one before the labelled token
    labels: Tensor  # (M,) int64
    label_weights: Tensor  # (M,) float32
    seg_index: Tensor  # (sum K,) int64, positions of the [SEG]s with a mask, in sequence order
    masks: tuple[Masks, ...]  # one per sequence, K of size (h P, w P)
    # of each answer, in sequence order: the position of the last token before it, (A,) int64, and whether it has a
    # mask, (A,) float32
    asked_index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    with_mask: Tensor = field(default_factory=lambda: torch.empty(0))
    # one per sequence, host integers: which tokens are those of its image; empty: as in `spans`
    image_spans: tuple[Span, ...] = ()
    varlen: tuple[VarlenCall, ...] = ()  # what flash attention reads; empty: made from `spans` where it is needed
    dropped_turns: int = 0
    # expert -> one tensor per sequence, (0,) without an image
    expert_features: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`. From pinned memory (`pin_memory`) to a GPU, nobody waits for the copies."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory of the host; torch's DataLoader calls this too. Needs a GPU."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `change` applied to each of its tensors."""
        return _map_tensors(self, change)

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def bytes(self) -> int:
        """Of all its tensors: what a worker sends, and what is copied to the GPU."""
        sizes: list[int] = []
        self.map(lambda tensor: sizes.append(tensor.nbytes) or tensor)
        return sum(sizes)

    @property
    def attended(self) -> int:
        """Pairs of a token and a token that it attends to: what attention costs, see train/flops.py."""
        return attended(self.spans)

    def counts(self) -> dict[str, float]:
        """Denominators of the losses. They are summed over all batches of an optimizer step."""
        return {
            "lm": float(self.labels.numel()),
            "mask": float(sum(self.masks_per_sequence)),
            "answer": float(self.asked_index.numel()),
            "image": float(sum(h * w > 0 for h, w in self.grids_hw)),
        }


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change` applied to every tensor in it, through tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {name: _map_tensors(item, change) for name, item in value.items()}
    if is_dataclass(value):
        return replace(value, **{f.name: _map_tensors(getattr(value, f.name), change) for f in fields(value)})
    return value


LOGITS_AT_ONCE = 2**27  # logits (rows x vocabulary) that exist at one time: half a GiB in float32


@dataclass(frozen=True)
class DeferredLogits:
    """More than LOGITS_AT_ONCE logits: the states that they come from, and the head that computes them."""

    states: Tensor  # (M, D)
    head: Callable[[Tensor], Tensor]  # (rows, D) -> (rows, V)
    vocabulary: int  # V


@dataclass
class Output:
    """The outputs of the model for a Batch, which losses and metrics read."""

    logits: Tensor | DeferredLogits  # (M, V), only at the supervised positions
    hidden: Tensor  # (L, D) after the final norm
    mask_features: Sequence[Tensor]  # one per sequence with an image: (S, h', w') with h' = h * 2**blocks
    mask_logits: Sequence[Tensor]  # one per sequence: (K, h', w'); (0, h', w') without masks
    # of a model with a score head, else None; float32, in sequence order
    score_logits: Tensor | None = None  # (sum K,), of the IoU of each mask
    presence_logits: Tensor | None = None  # (A,), of each answer: that it has a mask
