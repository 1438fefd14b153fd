"""The one description of a model: nested in a run's config and in a checkpoint's config.json, and handed on whole.

What is not in it does not change a model's weights: where they come from, how a chat is written, how a run is trained.
A new field is written here and where it is used, nowhere else.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_MASK_CHANNELS = 1024  # width of the mask head's first block at most; wider states are reduced to it


class Section(BaseModel):
    """A part of a config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SmallImages(Section):
    """What helps models that learn from random weights, or for minutes only, on small images.

    None of it is part of Pixel-SAIL: without this section the paper's model remains.
    """

    # convolutions before the patch embedding, each halving the image: shapes are learned sooner (model/stem.py)
    stem_widths: list[int] | None = Field(None, min_length=1)
    # tells every patch where in its image it lies: places are learned sooner (model/patch_positions.py)
    patch_positions: bool = False
    # halves: as in the paper, columns get the slow frequencies; interleaved: rows and columns are read as sharply
    rope_layout: Literal["halves", "interleaved"] = "halves"


class Architecture(Section):
    """What makes of a decoder a pixel-grounded model. docs/model.md has the terms."""

    patch_size: int = Field(16, ge=1)  # pixels of a patch's side
    # pixels of the squares into which a patch is cut before it is embedded, as in EVEv2; None: it is embedded whole
    sub_patch_size: int | None = Field(None, ge=1)
    sub_patch_width: int = Field(64, ge=1)
    # fused: a visual prompt is added to its patches (the paper); pooled: their mean is added to its name <PromptK>
    region_embedding: Literal["fused", "pooled"] = "fused"
    max_side_px: int = Field(1024, ge=1)  # the longer side of a resized image at most
    mask_stride: int = Field(4, ge=1)  # pixels of the resized image per mask logit; the patch side over a power of two
    mask_dim: int = Field(256, ge=1)  # S, width of the mask features
    # widths before, between and after the upsampling blocks; None: those of `channels`
    mask_channels: list[int] | None = None
    vision_experts: bool = False  # twins of every linear and norm for visual tokens, as in EVEv2
    small_images: SmallImages | None = None

    @property
    def small(self) -> SmallImages:
        """The section `small_images`, with nothing switched on where it is absent."""
        return self.small_images or SmallImages()

    @property
    def upsample_blocks(self) -> int:
        """U: how often the patch grid is doubled to reach `mask_stride`."""
        return int(math.log2(self.patch_size // self.mask_stride))

    def channels(self, hidden_size: int) -> list[int]:
        """Widths of the mask head, U + 1 of them: min(D, 1024), halved at each doubling of the resolution, >= 64."""
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


# Keys that stood side by side in config.json, and in the section `model` of a run's config, before there was one
# Architecture. Folders of that time are still read.
_SMALL = ("stem_widths", "patch_positions", "rope_layout")
FLAT_KEYS = (*Architecture.model_fields.keys() - {"small_images"}, *_SMALL)


def from_flat(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an Architecture, made of those flat keys; `values` may have others, which are left out."""
    nested = {key: values[key] for key in FLAT_KEYS if key in values and key not in _SMALL}
    if values.get("mask_channels") is not None:
        nested["mask_stride"] = values["patch_size"] // 2 ** (len(values["mask_channels"]) - 1)
    small = {key: values[key] for key in _SMALL if key in values}
    if small and SmallImages(**small) != SmallImages():
        nested["small_images"] = small
    return nested
