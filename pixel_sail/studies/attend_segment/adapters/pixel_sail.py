"""Our own model: its patches are the image tokens."""

from __future__ import annotations

import torch
from PIL import Image

from pixel_sail.data.pack import pack
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.attend_segment.attention import MIXED, ImageAttention, record_attention
from pixel_sail.studies.attend_segment.generate import AttendedAnswer, ImageTokens, character_spans


class PixelSailAdapter:
    """A `Predictor`. Its text keeps [SEG], <p> and </p>, which the chunker blanks."""

    family = "pixel_sail"

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    @torch.inference_mode()
    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> AttendedAnswer:
        """See `Adapter`. The image is read in a pass of its own. The question and the answer continue from it."""
        encoder, model = self.predictor.encoder, self.predictor.model
        prefix = encoder.image_prefix(image, {}, "the image")
        batch = pack([prefix], encoder.tokens.seg, encoder.tokens.vision_patch).to(model.device)
        box = (0.0, 0.0, float(image.width), float(image.height))
        image_tokens = ImageTokens(batch.patch_index.cpu(), batch.grids_hw[0], box)
        recorder = ImageAttention(image_tokens.positions)
        request, stop_ids = GenerationRequest(encoder.question_ids(prompt), 0), (encoder.end_ids[0],)
        with record_attention(model.language_model.get_decoder(), MIXED, recorder):
            (answer,) = generate(
                model, batch, [request], encoder.tokens.seg, stop_ids, Sampling(max_new_tokens), max_rows=1
            )
        ids = answer.token_ids
        maps = recorder.mean(len(ids)).view(len(ids), *image_tokens.grid_hw)
        text, spans = character_spans(ids, encoder.answer_text)
        return AttendedAnswer(text, spans, maps, image_tokens.box)
