"""How well a model predicts plain text: whether training on images has cost it its language (docs/base.md)."""

from __future__ import annotations

import math

import numpy as np
import torch

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.pack import consecutive_groups, pack
from pixel_sail.data.sources.record import Source
from pixel_sail.losses import cross_entropies
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import BadSample, Encoded

TOKENS_AT_ONCE = 8192  # of one forward pass
TEXTS_AT_ONCE = 256  # which are packed together


def perplexity(predictor: Predictor, source: Source, texts: int | None = None) -> dict[str, float | int]:
    """Of the first `texts` texts of a source (None: all): exp of the mean cross entropy of their tokens.

    It says something only beside another of the same tokenizer and the same texts. The first token of a text is not
    predicted. `unusable`: texts that could not be read, which do not count. Raises DatasetError if none can be.
    """
    count = len(source) if texts is None else min(texts, len(source))
    nats, tokens, unusable = 0.0, 0, 0
    for first in range(0, count, TEXTS_AT_ONCE):
        encoded: list[Encoded] = []
        for index in range(first, min(first + TEXTS_AT_ONCE, count)):
            try:
                encoded.append(predictor.encoder.encode(source.sample(index, np.random.default_rng(index))))
            except BadSample:
                unusable += 1
        for group in consecutive_groups([len(text) for text in encoded], TOKENS_AT_ONCE):
            losses = _losses(predictor, [encoded[i] for i in group])
            nats, tokens = nats + losses.double().sum().item(), tokens + len(losses)
    if not tokens:
        raise DatasetError(f"none of the {count} texts can be used")
    mean = nats / tokens
    return {
        "perplexity": math.exp(mean),
        "nats_per_token": mean,
        "tokens": tokens,
        "texts": count,
        "unusable": unusable,
    }


@torch.inference_mode()
def _losses(predictor: Predictor, group: list[Encoded]) -> torch.Tensor:
    """Of each predicted token of some texts, (M,) float32."""
    tokens, model = predictor.encoder.tokens, predictor.model
    batch = pack(group, tokens.seg, tokens.vision_patch).to(model.device)
    return cross_entropies(model(batch).logits, batch.labels)
