"""What the Hugging Face families share: a processor with a chat template, one image, one grid of image tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from pixel_sail.studies.attend_segment.generate import Box, Place, Watched, character_spans, generate_watched


class HuggingFaceAdapter(ABC):
    """A family says how it is given an image, on what grid its image tokens lie and what of the image they cover."""

    family: ClassVar[str]
    processor_settings: ClassVar[dict[str, Any]] = {}  # for one image as one grid

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model.eval(), processor

    @abstractmethod
    def grid_hw(self, inputs: BatchFeature) -> tuple[int, int]:
        """Rows and columns of the image tokens."""

    def prepare(self, image: Image.Image) -> tuple[Image.Image, Box]:
        """The image as the processor gets it, and the part of the given image that the grid then covers."""
        return image, (0.0, 0.0, float(image.width), float(image.height))

    def inputs(self, image: Image.Image, prompt: str) -> BatchFeature:
        """What the model takes, a batch of 1, on its device; `image` as `prepare` gives it."""
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

    def place(self, inputs: BatchFeature, box: Box) -> Place:
        """Where the image tokens lie. ValueError where there are not as many as the grid has cells."""
        tokens = (inputs["input_ids"][0] == self.model.config.image_token_id).nonzero()[:, 0]
        grid_hw = self.grid_hw(inputs)
        if len(tokens) != grid_hw[0] * grid_hw[1]:
            raise ValueError(
                f"{self.family}: {len(tokens)} image tokens in the sequence for a grid of {grid_hw[0]} x {grid_hw[1]}; "
                "the processor does not fit the model, or cuts the image into tiles"
            )
        return Place(tokens.cpu(), grid_hw, box)

    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> Watched:
        """See `Adapter`."""
        prepared, box = self.prepare(image)
        inputs = self.inputs(prepared, prompt)
        ids, maps = generate_watched(self.model, dict(inputs), self.place(inputs, box), max_new_tokens)
        text, spans = character_spans(ids, lambda part: self.processor.tokenizer.decode(part, skip_special_tokens=True))
        return Watched(text, spans, maps, box)
