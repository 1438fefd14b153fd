"""The one description of a model: a section of a run's config and of a checkpoint's config.json, passed on whole.

It holds everything that decides which weights a model has. Where weights come from, how a chat is written and how a run
is trained belong elsewhere. A new field is written here and where it is used, nowhere else.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_MASK_CHANNELS = 1024  # largest width of the mask head's first block; wider states are reduced to it
MAX_WIDTH = 65_536  # channels or features of any layer, and pixels of any side: more is a slip
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


class Section(BaseModel):
    """A part of a config. Unknown keys are refused, and values cannot be changed. No number is NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SmallImages(Section):
    """Options for models that train from random weights, or only for minutes, on small images.

    None of them is part of Pixel-SAIL. Without this section the model is the paper's.
    """

    # widths of convolutions before the patch embedding, each of which halves the image: the model learns shapes sooner
    # (model/stem.py)
    stem_widths: list[Width] | None = Field(None, min_length=1)
    # embeds the position of each patch in its image: the model learns places sooner (model/patch_positions.py)
    patch_positions: bool = False
    # what its values are multiplied by. The equal pixels of a flat patch add up: with patch_size, a position weighs as
    # much as they do; with 1, it is lost as the weights of pixels grow (docs/results/scenes.md)
    position_scale: float = Field(1.0, gt=0)
    # halves: as in the paper, columns get the slow frequencies; interleaved: rows and columns are read equally sharply
    rope_layout: Literal["halves", "interleaved"] = "halves"


class Architecture(Section):
    """What turns a decoder into a pixel-grounded model. docs/model.md explains the terms."""

    patch_size: Width = 16  # pixels of a patch's side
    # side in pixels of the squares into which a patch is cut before embedding, as in EVEv2; None: it is embedded whole
    sub_patch_size: Width | None = None
    sub_patch_width: Width = 64  # channels of each embedded square
    # base of the frequencies by which an embedded square turns with its row and column, as in NEO; None: it does not
    sub_patch_theta: float | None = Field(None, gt=0)
    # fused: a visual prompt is added to its patches (the paper); pooled: their mean is added to its name <PromptK>
    region_embedding: Literal["fused", "pooled"] = "fused"
    prompt_linear: bool = True  # a fused prompt goes through a linear; false: its name's embedding itself is added
    max_side_px: Width = 1024  # largest longer side of a resized image; otherwise the root of its width x height
    # longer_side: as in Pixel-SAIL, smaller images keep their size; area: every image gets about the same number of
    # pixels, as in EVEv2; nearest: smaller images keep theirs, rounded to the nearest multiples, as in NEO
    # (data/image.py)
    resize_by: Literal["longer_side", "area", "nearest"] = "longer_side"
    resize_filter: Literal["bilinear", "bicubic"] = "bilinear"  # of Pillow, with antialiasing
    pixel_statistics: Literal["imagenet", "clip"] = "imagenet"  # mean and deviation that normalize pixels
    row_ends: bool = False  # </vision> ends every row of patches, as in EVEv2, and not only the last
    # grid: (row, column), as in Pixel-SAIL; one_step: the same, but the text goes on as after one token, as in NEO;
    # sequence: one after the other, like text, as in EVEv2
    image_positions: Literal["grid", "one_step", "sequence"] = "grid"
    # two_way: the tokens of an image see each other, as in Pixel-SAIL; patches: without <vision> and </vision>, as in
    # NEO; causal: they see those before them, as in EVEv2
    image_attention: Literal["two_way", "patches", "causal"] = "two_way"
    # base of the rotary frequencies of rows and columns, which then have queries and keys of their own in every layer,
    # as in NEO (model/axis_attention.py); None: they share those of the text
    axis_theta: float | None = Field(None, gt=0)
    mask_stride: Width = 4  # pixels per mask logit: patch_size divided by a power of two
    mask_dim: Width = 256  # S, width of the mask features
    # widths before, between and after the upsampling blocks; None: those of `channels`
    mask_channels: list[Width] | None = None
    # a score for each mask (its expected IoU) and the presence of what is asked for (model/score_head.py)
    mask_scores: bool = False
    # positive and negative clicks in questions, which refine a mask without reading the image again (model/clicks.py)
    clicks: bool = False
    vision_experts: bool = False  # a twin of every linear and norm for visual tokens, as in EVEv2
    small_images: SmallImages | None = None

    @property
    def small(self) -> SmallImages:
        """The section `small_images`, or its defaults (everything off) if it is absent."""
        return self.small_images or SmallImages()

    @property
    def size_rule(self) -> str:
        """How large images are, in words."""
        side = self.max_side_px
        return {
            "longer_side": f"up to {side} px on the longer side",
            "area": f"of about {side} x {side} px",
            "nearest": f"up to {side} x {side} px in area",
        }[self.resize_by]

    def image_tokens(self, h: int, w: int) -> int:
        """Tokens of the block of an image of h x w patches: <vision>, the patches, and the </vision>s."""
        return 1 + h * w + (h if self.row_ends else 1)

    @property
    def upsample_blocks(self) -> int:
        """U: the number of doublings from the patch grid to `mask_stride`."""
        return int(math.log2(self.patch_size // self.mask_stride))

    def channels(self, hidden_size: int) -> list[int]:
        """The U + 1 widths of the mask head: min(D, 1024), halved at each doubling of the resolution, at least 64."""
        if self.mask_channels is not None:
            return self.mask_channels
        first = min(hidden_size, MAX_MASK_CHANNELS)
        return [max(first >> block, min(first, 64)) for block in range(self.upsample_blocks + 1)]

    @model_validator(mode="after")
    def _patches(self) -> Architecture:
        if self.max_side_px % self.patch_size:
            raise ValueError(f"max_side_px {self.max_side_px} must be a multiple of patch_size {self.patch_size}")
        if self.sub_patch_size is not None and self.patch_size % self.sub_patch_size:
            raise ValueError(f"sub_patch_size {self.sub_patch_size} does not divide patch_size {self.patch_size}")
        if self.sub_patch_theta is not None and (self.sub_patch_size is None or self.sub_patch_width % 4):
            raise ValueError("sub_patch_theta needs sub_patch_size, and a sub_patch_width that is a multiple of 4")
        if self.sub_patch_size is not None and self.small.stem_widths is not None:
            raise ValueError("give sub_patch_size or small_images.stem_widths: a patch is embedded through one of them")
        if self.patch_size % 2 ** len(self.small.stem_widths or ()):
            raise ValueError(
                f"small_images.stem_widths has {len(self.small.stem_widths)} stages, which do not halve patch_size "
                f"{self.patch_size} so often"
            )
        return self

    @model_validator(mode="after")
    def _mask_head(self) -> Architecture:
        doublings, rest = divmod(self.patch_size, self.mask_stride)
        if rest or doublings & (doublings - 1):
            raise ValueError(f"mask_stride {self.mask_stride} must be patch_size {self.patch_size} over a power of two")
        if self.mask_channels is not None and len(self.mask_channels) != self.upsample_blocks + 1:
            raise ValueError(
                f"mask_channels has {len(self.mask_channels)} widths; patch_size {self.patch_size} and mask_stride "
                f"{self.mask_stride} need {self.upsample_blocks + 1}"
            )
        return self


# Before 0.2.0 these keys stood side by side in config.json and in the section `model` of a run's config. Such folders
# still load.
_SMALL = ("stem_widths", "patch_positions", "rope_layout")
FLAT_KEYS = (*Architecture.model_fields.keys() - {"small_images"}, *_SMALL)


def from_flat(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an Architecture from the flat keys in `values`; other keys are ignored."""
    nested = {key: values[key] for key in FLAT_KEYS if key in values and key not in _SMALL}
    if values.get("mask_channels") is not None:
        nested["mask_stride"] = values["patch_size"] // 2 ** (len(values["mask_channels"]) - 1)
    small = {key: values[key] for key in _SMALL if key in values}
    if small and SmallImages(**small) != SmallImages():
        nested["small_images"] = small
    return nested
