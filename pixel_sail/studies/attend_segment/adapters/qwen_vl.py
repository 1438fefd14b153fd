"""Qwen2-VL and Qwen2.5-VL: the image at about its own size, one token for 28 x 28 px."""

from __future__ import annotations

from transformers import BatchFeature

from pixel_sail.studies.attend_segment.adapters.hugging_face import HuggingFaceAdapter


class QwenVl(HuggingFaceAdapter):
    """Both generations order the image tokens alike."""

    family = "qwen_vl"

    def grid_hw(self, inputs: BatchFeature) -> tuple[int, int]:
        """Patches are merged 2 x 2. The merged tokens are in row order, also where attention used windows."""
        _, height, width = inputs["image_grid_thw"][0].tolist()
        merge = self.model.config.vision_config.spatial_merge_size
        return height // merge, width // merge
