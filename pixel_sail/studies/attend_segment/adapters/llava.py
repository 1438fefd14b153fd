"""LLaVA-1.5: 24 x 24 tokens of a square image of 336 px."""

from __future__ import annotations

from PIL import Image
from transformers import BatchFeature

from pixel_sail.studies.attend_segment.adapters.hugging_face import HuggingFaceAdapter
from pixel_sail.studies.attend_segment.generate import Box


class Llava(HuggingFaceAdapter):
    """The image is padded to a square, as in LLaVA-1.5's training. The processor alone would crop it to a square."""

    family = "llava"

    def prepare(self, image: Image.Image) -> tuple[Image.Image, Box]:
        """The image centred on a square of the mean colour. The box of the grid reaches beyond the image."""
        width, height = image.size
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        mean = tuple(round(255 * value) for value in self.processor.image_processor.image_mean)
        square = Image.new("RGB", (side, side), mean)
        square.paste(image, (left, top))
        return square, (-float(left), -float(top), float(side - left), float(side - top))

    def grid_hw(self, inputs: BatchFeature) -> tuple[int, int]:
        """The patches of the vision tower. Its class token is not in the sequence."""
        patch = self.model.config.vision_config.patch_size
        height, width = inputs["pixel_values"].shape[-2:]
        return height // patch, width // patch
