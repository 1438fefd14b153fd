"""What an answer costs: the image, the first token, each further one; one question and several about one image."""

from __future__ import annotations

import time

import numpy as np
import torch
from PIL import Image

from pixel_sail.architecture import Architecture
from pixel_sail.bench.gpu.checks import Report
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.scratch import from_scratch

# The 0.5B decoder with a small vocabulary: no tokenizer of 152k tokens is at hand. Its head adds 0.3 GB to read.
SCRATCH = ScratchConfig(hidden_size=896, layers=24, heads=14, kv_heads=2, mlp_size=4864, vocab_size=1024)
SIDE_PX = 1024
QUESTION = "where is it"
QUESTIONS = (1, 10, 32)  # about one image
FEW, MANY = 8, 72  # new tokens
REPEATS = 3


def run(report: Report) -> None:
    predictor = build_predictor()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8))
    for questions in QUESTIONS:
        with report.part(f"{questions} questions"):
            few, many = (_seconds(predictor, image, questions, tokens) for tokens in (FEW, MANY))
            per_token_s = (many - few) / (MANY - FEW)
            report.number(f"{questions} questions: a token of each", 1e3 * per_token_s, "ms")
            report.number(f"{questions} questions: image and first token", 1e3 * (few - (FEW - 1) * per_token_s), "ms")
            report.number(f"{questions} questions: tokens", questions / per_token_s if per_token_s else 0.0, "/s")


def build_predictor() -> Predictor:
    """Random weights in bf16. No answer ends before its limit."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model, tokenizer = from_scratch(ModelSection(scratch=SCRATCH), Architecture(), [QUESTION] * 9, "{expression}")
    predictor = Predictor(model.to("cuda", torch.bfloat16).eval(), tokenizer)
    predictor.encoder.end_ids = [len(tokenizer)]  # which no model emits
    return predictor


def _seconds(predictor: Predictor, image: Image.Image, questions: int, tokens: int) -> float:
    """The fastest of some calls; the host's work on the image is in it."""
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        predictor.chat(image, [QUESTION] * questions, sampling=Sampling(max_new_tokens=tokens))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
