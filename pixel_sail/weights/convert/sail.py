"""SAIL (arXiv 2504.10462): a Mistral decoder and one linear over patches, with our positions and attention."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.tokens import IMAGE_TOKENS
from pixel_sail.weights.convert.mistral import mistral_conversion
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.streaming import Conversion


def plan_sail(folder: Path, parts: NewParts) -> Conversion:
    """Raises WeightsError for missing files, and for weights or a tokenizer that are not SAIL's."""
    return mistral_conversion(folder, parts, "SAIL", "model.vis_embed.weight", IMAGE_TOKENS, differences=())
