"""SOLO (arXiv 2407.06438): a Mistral decoder and one linear over patches of 32 pixels."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.weights.convert.mistral import mistral_conversion
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.streaming import Conversion

# Pixel-SAIL starts from SOLO-style bases with its own positions and attention and trains all weights (arXiv
# 2504.10465), so the base's ways are not kept as options. docs/convert.md says more.
DIFFERENCES = (
    "rows of patches were joined by `<vrow_sep>`; now the positions (row, column) alone say where a row ends",
    "an image was closed by a second `<vision>`; now by `</vision>`, which starts as a copy of it",
    "positions were 1-D; now patches have (row, column)",
    "a patch saw those before it; now all patches of an image see each other",
)


def plan_solo(folder: Path, parts: NewParts) -> Conversion:
    """Raises WeightsError for missing files, and for weights or a tokenizer that are not SOLO's."""
    known = ("<vision>", "<vpatch>")
    return mistral_conversion(folder, parts, "SOLO", "model.embed_vision_patch.weight", known, DIFFERENCES, True)
