"""Our own model: the patches themselves are the image tokens."""

from __future__ import annotations

import torch
from PIL import Image

from pixel_sail.data.pack import pack
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.attend_segment.attention import MIXED, ImageAttention, watch
from pixel_sail.studies.attend_segment.generate import Place, Watched, character_spans


class PixelSailAdapter:
    """A `Predictor`; its text keeps the [SEG]s and the names of phrases, which are no words to the chunkers."""

    family = "pixel_sail"

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    @torch.inference_mode()
    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> Watched:
        """See `Adapter`. The image is read in a pass of its own; the question and the answer continue from it."""
        encoder, model = self.predictor.encoder, self.predictor.model
        prefix = encoder.image_prefix(image, {}, "the image")
        batch = pack([prefix], encoder.tokens.seg, encoder.tokens.vision_patch).to(model.device)
        place = Place(batch.patch_index.cpu(), prefix.grid_hw, (0.0, 0.0, float(image.width), float(image.height)))
        recorder = ImageAttention(place.tokens)
        asked, stop_ids = GenerationRequest(encoder.question_ids(prompt), 0), (encoder.end_ids[0],)
        with watch(model.language_model.get_decoder(), MIXED, recorder):
            (found,) = generate(
                model, batch, [asked], encoder.tokens.seg, stop_ids, Sampling(max_new_tokens), max_rows=1
            )
        ids = found.token_ids
        maps = recorder.mean(len(ids)).view(len(ids), *place.grid_hw)
        text, spans = character_spans(ids, encoder.answer_text)
        return Watched(text, spans, maps, place.box)
