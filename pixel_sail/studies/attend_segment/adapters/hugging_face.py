"""What the Hugging Face families share: a processor with a chat template, one image, one grid of image tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from pixel_sail.config import ConfigError
from pixel_sail.studies.attend_segment.generate import (
    AttendedAnswer,
    Box,
    ImageTokens,
    character_spans,
    generate_with_attention,
)


class HuggingFaceAdapter(ABC):
    """A family defines how it gets an image, the grid of its image tokens, and the part of the image they cover."""

    family: ClassVar[str]
    processor_settings: ClassVar[dict[str, Any]] = {}  # for one image as one grid

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model.eval(), processor

    @abstractmethod
    def grid_hw(self, inputs: BatchFeature) -> tuple[int, int]:
        """Rows and columns of the image tokens."""

    def prepare(self, image: Image.Image) -> tuple[Image.Image, Box]:
        """The image for the processor, and the part of the original image that the grid then covers."""
        return image, (0.0, 0.0, float(image.width), float(image.height))

    def inputs(self, image: Image.Image, prompt: str) -> BatchFeature:
        """The model's inputs, a batch of 1, on its device. `image` comes from `prepare`."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=self.processor_settings,
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def image_tokens(self, inputs: BatchFeature, box: Box) -> ImageTokens:
        """Where the image tokens lie. Raises ValueError if their number is not that of the grid's cells."""
        positions = (inputs["input_ids"][0] == self.model.config.image_token_id).nonzero()[:, 0]
        grid_hw = self.grid_hw(inputs)
        if len(positions) != grid_hw[0] * grid_hw[1]:
            grid = f"{grid_hw[0]} x {grid_hw[1]}"
            raise ConfigError(
                f"{self.family}: {len(positions)} image tokens in the sequence for a grid of {grid}; "
                "the processor does not fit the model, or cuts the image into tiles"
            )
        return ImageTokens(positions.cpu(), grid_hw, box)

    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> AttendedAnswer:
        """See `Adapter`."""
        prepared, box = self.prepare(image)
        inputs = self.inputs(prepared, prompt)
        image_tokens = self.image_tokens(inputs, box)
        ids, maps = generate_with_attention(self.model, dict(inputs), image_tokens, max_new_tokens)
        text, spans = character_spans(ids, lambda part: self.processor.tokenizer.decode(part, skip_special_tokens=True))
        return AttendedAnswer(text, spans, maps, box)
