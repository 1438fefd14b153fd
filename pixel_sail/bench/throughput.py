"""Samples a second from files and shards, and expressions a second with and without sharing the image."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import Config, MixtureEntry
from pixel_sail.data.image import load_image
from pixel_sail.data.mixture import Mixture, open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.data.shards import with_bytes
from pixel_sail.data.sources.cases import read_benchmark
from pixel_sail.evaluate.benchmark import by_image
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.build import build_encoder, build_model

TURN = 20  # samples that one way reads before the other has its turn


def measure_data(config: Config, samples: int) -> dict[str, Any]:
    """One process, no workers: read, encode and pack `samples` samples of the first source of a run."""
    sources = open_mixture(config).sources
    model, tokenizer = build_model(config, sources)
    encoder = build_encoder(config, model, tokenizer)
    source = sources[0]
    start, tokens = time.perf_counter(), 0
    for number in range(samples):
        sample = source.sample(number % len(source), np.random.default_rng(number))
        tokens += pack([encoder.encode(sample)], encoder.tokens.seg, encoder.tokens.vision_patch).tokens
    elapsed_s = time.perf_counter() - start
    rates = {"samples_per_s": round(samples / elapsed_s, 1), "tokens_per_s": round(tokens / elapsed_s)}
    return {"bench": "data", "source": config.data.mixture[0].source, "samples": samples, **rates}


def measure_shards(config: Config, shards: Path, samples: int) -> dict[str, Any]:
    """One process, no workers: the mixture of a run from its files and from shards, in turns of a few samples.

    `read`: samples a second with their images' bytes; `encoded`: read, encoded and packed. A ratio above 1: shards
    are faster. Files that were read before come from memory either way.
    """
    entry = MixtureEntry(source="shards", root=shards)
    streamed = config.model_copy(update={"data": config.data.model_copy(update={"mixture": [entry]})})
    mixtures = {"map": open_mixture(config), "shards": open_mixture(streamed)}
    model, tokenizer = build_model(config, mixtures["map"].sources)
    encoder = build_encoder(config, model, tokenizer)

    def encoded(mixture: Mixture, position: int) -> None:
        sequence = encoder.encode(mixture.sample(position), mixture.point_seed(position))
        pack([sequence], encoder.tokens.seg, encoder.tokens.vision_patch)

    def read(mixture: Mixture, position: int) -> None:
        with_bytes(mixture.sample(position))

    result: dict[str, Any] = {"bench": "data", "samples": samples, "shards": len(mixtures["shards"].sources[0].shards)}
    for work in (read, encoded):
        elapsed_s = dict.fromkeys(mixtures, 0.0)
        for first in range(0, samples, TURN):
            for way, mixture in mixtures.items():
                start = time.perf_counter()
                for position in range(first, min(first + TURN, samples)):
                    work(mixture, position)
                elapsed_s[way] += time.perf_counter() - start
        rates = {way: round(samples / elapsed_s[way], 1) for way in mixtures}
        result[work.__name__] = rates | {"ratio": round(elapsed_s["map"] / elapsed_s["shards"], 2)}
    return result


def measure_score(checkpoint: Path, data_root: Path, benchmark: str, images: int) -> dict[str, Any]:
    """Expressions a second on the first `images` images: all questions of an image in one call, and one a call."""
    predictor = Predictor.from_pretrained(checkpoint)
    groups = by_image(read_benchmark(data_root, benchmark).cases)[:images]
    elapsed_s = {"shared": 0.0, "one_by_one": 0.0}
    encoded = {"shared": 0, "one_by_one": 0}
    for cases in groups:  # interleaved, so that both ways meet the same machine
        image, sentences = load_image(cases[0].image), [case.sentence for case in cases]
        for way, calls in (("shared", [sentences]), ("one_by_one", [[s] for s in sentences])):
            before, start = predictor.images_encoded, time.perf_counter()
            for call in calls:
                predictor.segment(image, call)
            elapsed_s[way] += time.perf_counter() - start
            encoded[way] += predictor.images_encoded - before
    expressions = sum(map(len, groups))
    result: dict[str, Any] = {
        "bench": "score",
        "benchmark": benchmark,
        "expressions": expressions,
        "images": len(groups),
    }
    for way in elapsed_s:
        rate = round(expressions / elapsed_s[way], 2)
        result[way] = {"expressions_per_s": rate, "images_encoded": encoded[way]}
    return result | {"ratio": round(elapsed_s["one_by_one"] / elapsed_s["shared"], 2)}
