"""The Python API: a checkpoint folder in, text and masks out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixel_sail.data.encode import Encoder
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.data.templates import HIDDEN_EXPRESSION, question
from pixel_sail.model.generation import Generated, Sampling, generate
from pixel_sail.model.pixel_sail import PixelSail

MAX_ROWS = 32  # questions that continue from one image in one batch; more go in several


@dataclass(frozen=True)
class Answer:
    """What the model says: text with [SEG] in place, and for each [SEG] a mask (H, W) bool of the picture's size."""

    text: str
    masks: list[np.ndarray]


class Predictor:
    """A model, its tokenizer and the encoding of its training. `images_encoded` counts the pictures that were read."""

    def __init__(self, model: PixelSail, tokenizer: PreTrainedTokenizerBase):
        self.model = model
        config = model.config
        self.encoder = Encoder(
            tokenizer, config.patch_size, config.max_side_px, config.chat_format, hide_image=config.hide == "image"
        )
        self.images_encoded = 0

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
        """Loads an export folder. `device`: auto | cpu | cuda[:n]; `precision`: auto (bf16 on a GPU) | bf16 | fp32."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = precision == "bf16" or (precision == "auto" and device.startswith("cuda"))
        model = PixelSail.from_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
        return cls(model.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def segment(self, image: Image.Image | Path | str, expressions: str | list[str]) -> list[Answer]:
        """Segments what each expression names: one answer each. The picture is encoded once for all of them."""
        expressions = [expressions] if isinstance(expressions, str) else expressions
        for expression in expressions:
            if not expression.strip():
                raise ValueError("the expression is empty; say what is to be segmented")
        hidden = self.model.config.hide == "text"
        asked = [HIDDEN_EXPRESSION if hidden else expression for expression in expressions]
        return self.chat(image, [question(expression, self.model.config.question) for expression in asked])

    def chat(
        self,
        image: Image.Image | Path | str | None,
        questions: str | list[str],
        prompts: dict[int, np.ndarray] | None = None,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answers free questions about one picture (or none); `prompts` maps K of <PromptK> to its region (H, W) bool.

        A path is opened as a user's photo: turned as its EXIF says. Raises ValueError (BadSample is one) for an
        unreadable picture, a bad prompt, or an empty question.
        """
        questions = [questions] if isinstance(questions, str) else questions
        if not questions or not all(text.strip() for text in questions):
            raise ValueError("there is an empty question; ask something")
        picture = load_image(Path(image), orient=True) if isinstance(image, str | Path) else image
        regions = {k: encode_mask(region) for k, region in (prompts or {}).items()}
        prefix = self.encoder.image_prefix(picture, regions, "the picture")
        self.images_encoded += picture is not None
        ids = [self.encoder.question_ids(text) for text in questions]
        tokens = self.encoder.tokens
        batch = pack([prefix], tokens.seg, tokens.vision_patch).to(self.model.device)
        stops = (self.encoder.end_ids[0],)
        answers = generate(self.model, batch, ids, tokens.seg, stops, sampling or Sampling(), max_rows=MAX_ROWS)
        size = (picture.height, picture.width) if picture is not None else (1, 1)
        return [self._answer(generated, size) for generated in answers]

    def _answer(self, generated: Generated, size_hw: tuple[int, int]) -> Answer:
        text = self.encoder.tokenizer.decode(generated.token_ids, skip_special_tokens=False)
        if not len(generated.mask_logits):
            return Answer(text, [])
        full = F.interpolate(generated.mask_logits[None], size=size_hw, mode="bilinear", align_corners=False)[0]
        return Answer(text, list((full > 0).cpu().numpy()))
