"""InternVL (the checkpoints for transformers, named ...-hf): 16 x 16 tokens of an image of 448 px."""

from __future__ import annotations

from transformers import BatchFeature

from pixel_sail.studies.attend_segment.adapters.hugging_face import HuggingFaceAdapter


class InternVl(HuggingFaceAdapter):
    """The image is one tile, squashed to a square: several tiles and a thumbnail would not form one grid."""

    family = "internvl"
    processor_settings = {"crop_to_patches": False}

    def grid_hw(self, inputs: BatchFeature) -> tuple[int, int]:
        """Patches after the pixel shuffle."""
        patch_h, patch_w = self.model.config.vision_config.patch_size
        height, width = inputs["pixel_values"].shape[-2:]
        kept = self.model.config.downsample_ratio
        return round(height // patch_h * kept), round(width // patch_w * kept)
