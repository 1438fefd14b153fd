"""A predictor with random weights that is made in a second; tests of serving and scoring share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.scratch import from_scratch

TEXTS = ("Segment the red mug.", "Segment the ball on the left.", "[SEG]", "There is none.")
SCRATCH = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_size": 64, "vocab_size": 400}
ARCHITECTURE = {"patch_size": 8, "mask_stride": 4, "mask_dim": 16, "max_side_px": 64}


def tiny_predictor(
    texts: Sequence[str] = TEXTS,
    question: str = "Segment {expression}.",
    scratch: dict[str, Any] | None = None,
    architecture: dict[str, Any] | None = None,
) -> Predictor:
    """Seed 0. `texts`: what the tokenizer is trained on. `scratch` and `architecture` change single values."""
    torch.manual_seed(0)
    section = ModelSection(scratch=ScratchConfig(**(SCRATCH | (scratch or {}))))
    parts = Architecture(**(ARCHITECTURE | (architecture or {})))
    model, tokenizer = from_scratch(section, parts, list(texts) * 3, question)
    return Predictor(model.eval(), tokenizer)


def tiny_scoring_predictor() -> Predictor:
    """One with a score head, whose scores differ from mask to mask."""
    predictor = tiny_predictor(architecture={"mask_scores": True})
    torch.manual_seed(1)
    for parameter in predictor.model.score_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return predictor
