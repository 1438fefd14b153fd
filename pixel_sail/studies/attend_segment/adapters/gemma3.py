"""Gemma 3: 16 x 16 tokens, pooled from the patches of an image of 896 px."""

from __future__ import annotations

import math

from transformers import BatchFeature

from pixel_sail.studies.attend_segment.adapters.hugging_face import HuggingFaceAdapter


class Gemma3(HuggingFaceAdapter):
    """The image is squashed to a square. Pan and scan, which adds crops, stays off."""

    family = "gemma3"
    processor_settings = {"do_pan_and_scan": False}

    def grid_hw(self, inputs: BatchFeature) -> tuple[int, int]:
        """A square grid of all tokens of the image."""
        side = math.isqrt(self.model.config.mm_tokens_per_image)
        return side, side
