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
from pixel_sail.layout import Span, VarlenCall, attended, blocks_of, two_way_run

IGNORE_LABEL = -100
CLICK_VALUES = 4  # that describe a click, see Clicks
UNPROMPTED = -1


class BadSample(UserError):
    """A sample that cannot be used. The message gives its key and what is wrong. The loader counts and lists them."""


class NoPixels(BadSample):
    """An object that has no pixel, or that the patches cannot show: no fault of a file.

    Readers leave out the turn or phrase that needs it. A sample that has nothing else is skipped and counted, but not
    against data.max_bad_samples.
    """


class UnseenRegion(NoPixels):
    """A prompted region that no patch shows."""

    def __init__(self, message: str, prompt: int) -> None:
        """`prompt`: the K of its <PromptK>."""
        super().__init__(message)
        self.prompt = prompt

    def __reduce__(self) -> tuple[type[UnseenRegion], tuple[str, int]]:
        return type(self), (str(self), self.prompt)  # it may come from another process


class RLE(TypedDict):
    """COCO compressed run-length mask: column-major runs as in pycocotools, with `counts` as text."""

    size: list[int]  # [height_px, width_px]
    counts: str


@dataclass(frozen=True)
class Click:
    """A point that belongs to the mask (positive) or does not, in pixels of the stored image."""

    x: float
    y: float
    positive: bool


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `[SEG]` in the answer stands for a mask, `<PromptK>` names a region."""

    question: str
    answer: str
    clicks: tuple[Click, ...] = ()  # one for each CLICK token of the question, in reading order


@dataclass(frozen=True)
class Sample:
    """One annotated image, or several that are asked about together. No tensors, no tokenizer, no patches."""

    key: str  # unique in its source and says where the sample comes from: "refcoco/train/image=12"
    image: Path | bytes | None  # path or bytes of the image file, or None for a text-only conversation
    turns: tuple[Turn, ...]
    masks: tuple[RLE, ...] = ()  # one per [SEG] of the answers, in reading order, at the size of the stored image
    prompts: dict[int, RLE] = field(default_factory=dict)  # K of <PromptK> -> its region
    dropped_turns: int = 0  # left out when the sample was drawn, because a mask or region of theirs has no pixel
    # expert -> (C, h, w) float16, if a shard carries its features; not compared, because arrays have no plain ==
    features: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    # Of a sample with several images: those after `image`, in order; the number of the image, from 0, that each mask is
    # on; and of K the number of the image that its region is on. What is left out is on the first.
    more_images: tuple[Path | bytes, ...] = ()
    mask_images: tuple[int, ...] = ()
    prompt_images: dict[int, int] = field(default_factory=dict)
    text: str = ""  # plain text without an image, every token of which is learned; there are no turns then

    @property
    def images(self) -> tuple[Path | bytes, ...]:
        """All images, in order; () of a text-only conversation."""
        return () if self.image is None else (self.image, *self.more_images)

    @property
    def image_of_masks(self) -> tuple[int, ...]:
        """The number of the image of each mask."""
        return self.mask_images or (0,) * len(self.masks)


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
class ImageBlock:
    """An image of a sequence: its tokens, and the masks that are on it."""

    span: tuple[int, int]  # tokens of the sequence: [<vision>, one past the last </vision>)
    grid_hw: tuple[int, int]  # (h, w)
    masks: Masks  # of size (h P, w P), in the order of their [SEG]s
    segs: tuple[int, ...]  # the numbers of these, from 0, among the [SEG]s of the sequence that have a label


@dataclass(frozen=True)
class Clicks:
    """The clicks of a sequence, or of a batch: each is a token of the text, and the patch that it is on."""

    tokens: Tensor  # (n,) int64, among the tokens of the sequence or the batch
    patches: Tensor  # (n,) int64, among the patches of all images of the sequence or the batch
    # (n, 4) float32: positive, negative (one is 1, the other 0), and its place in the patch from the centre, x and y in
    # -1..1
    values: Tensor

    def __len__(self) -> int:
        return self.tokens.numel()

    @classmethod
    def none(cls) -> Clicks:
        empty = torch.empty(0, dtype=torch.int64)
        return cls(empty, empty, torch.empty(0, CLICK_VALUES))


@dataclass(frozen=True)
class Encoded:
    """One sequence of tokens and patches, ready to be packed."""

    key: str
    seed: int  # of the random points at which masks are supervised; independent of the packing
    input_ids: Tensor  # (T,) int64
    labels: Tensor  # (T,) int64; labels[i] is the token at i if it must be predicted, else IGNORE_LABEL
    position_ids: Tensor  # (3, T) int64; axes t, h, w
    # (sum N, 3 P P) uint8, image by image, each (channel, row, column); float32 zeros, normalized, with data.hide=image
    patches: Tensor
    prompt_ids: Tensor  # (sum N,) int64; K of the <PromptK> whose region covers the patch, or UNPROMPTED
    images: tuple[ImageBlock, ...] = ()  # in order, each with its masks: one for every [SEG] with a label
    image_attention: str = "two_way"  # that of the architecture: which of the image's tokens see each other
    lm_weight: float = 1.0  # weight of this sequence's language loss
    dropped_turns: int = 0  # too long, or with a mask (of a phrase, too) or region that cannot be seen at this size
    # of each image: expert -> its features (C, h, w) float16, or the image (3, H, W) uint8 that it is shown; () without
    # experts
    expert_features: tuple[dict[str, Tensor], ...] = ()
    is_text: bool = False  # plain text: its labels answer nothing
    clicks: Clicks = field(default_factory=Clicks.none)

    def __len__(self) -> int:
        return self.input_ids.numel()

    @property
    def two_way_spans(self) -> tuple[tuple[int, int], ...]:
        """Of each image, the tokens that see each other both ways."""
        return tuple(two_way_run(image.span, self.image_attention) for image in self.images)


@dataclass(frozen=True)
class Batch:
    """Several sequences end to end, which never attend to each other. Indices refer to the L packed tokens.

    What is "one per image" has one entry for each image of each sequence, and one that is empty for a sequence without.
    """

    keys: tuple[str, ...]
    seeds: tuple[int, ...]  # one per image
    spans: tuple[Span, ...]  # one per sequence, host integers: which tokens see each other
    grids_hw: tuple[tuple[int, int], ...]  # one per image, (0, 0) for a sequence without
    masks_per_image: tuple[int, ...]
    input_ids: Tensor  # (L,) int64
    position_ids: Tensor  # (3, L) int64
    patches: Tensor  # (sum N, 3 P P) uint8; float32 where they are normalized already
    patch_index: Tensor  # (sum N,) int64, position of each patch in the packed tokens
    prompt_ids: Tensor  # (sum N,) int64, K of <PromptK> or UNPROMPTED
    prompted: Tensor  # (number of prompted patches,) int64, which of the patches they are
    predict_index: Tensor  # (M,) int64, position whose hidden state predicts label m: the one before the labelled token
    labels: Tensor  # (M,) int64
    label_weights: Tensor  # (M,) float32
    seg_index: Tensor  # (sum K,) int64, positions of the [SEG]s with a mask: image by image, then in sequence order
    masks: tuple[Masks, ...]  # one per image, K of size (h P, w P)
    # of each answer, in sequence order: the position of the last token before it, (A,) int64, and whether it has a
    # mask, (A,) float32
    asked_index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    with_mask: Tensor = field(default_factory=lambda: torch.empty(0))
    # one per sequence, host integers: which tokens are those of its images; empty: as in `spans`
    image_spans: tuple[Span, ...] = ()
    varlen: tuple[VarlenCall, ...] = ()  # what flash attention reads; empty: made from `spans` where it is needed
    dropped_turns: int = 0
    # expert -> one tensor per image, (0,) for a sequence without
    expert_features: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    clicks: Clicks = field(default_factory=Clicks.none)

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

    @property
    def grids_by_sequence(self) -> list[tuple[tuple[int, int], ...]]:
        """The grids of the images of each sequence."""
        grids = iter(self.grids_hw)
        return [tuple(next(grids) for _ in blocks_of(span)) for span in self.image_spans or self.spans]

    def counts(self) -> dict[str, float]:
        """Denominators of the losses. They are summed over all batches of an optimizer step."""
        return {
            "lm": float(self.labels.numel()),
            "mask": float(sum(self.masks_per_image)),
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
    mask_features: Sequence[Tensor]  # one per image: (S, h', w') with h' = h * 2**blocks
    mask_logits: Sequence[Tensor]  # one per image: (K, h', w'); (0, h', w') without masks
    # of a model with a score head, else None; float32
    score_logits: Tensor | None = None  # (sum K,), of the IoU of each mask, in the order of `seg_index`
    presence_logits: Tensor | None = None  # (A,), of each answer: that it has a mask
