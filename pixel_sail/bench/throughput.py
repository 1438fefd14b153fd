"""Samples per second from files and shards; expressions per second with and without sharing the encoded image."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import Config, MixtureEntry
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, encode_mask, resize_nearest
from pixel_sail.data.mixture import Mixture, open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.data.shards import with_bytes
from pixel_sail.data.sources.cases import read_benchmark
from pixel_sail.evaluate.benchmark import by_image
from pixel_sail.evaluate.held_out import held_out_images
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.build import build_encoder, build_model
from pixel_sail.types import RLE, Sample

TURN = 20  # samples that are read from files, then as many from shards, and so on


def measure_data(config: Config, samples: int, side_px: int | None = None) -> dict[str, Any]:
    """Read, encode and pack `samples` samples of the first source of a run, in one process without workers.

    `*_cpu_ms`: CPU time a sample, which other processes change less than time; `batch_mb`: what is sent for a sample.
    `side_px`: their images are first made this long on the longer side, as JPEG, and their masks with them; untimed.
    """
    sources = open_mixture(config, held_out_images(config)).sources
    model, tokenizer = build_model(config, sources)
    encoder = build_encoder(config, model, tokenizer)
    source = sources[0]
    cpu_s, elapsed_s, tokens, sent_bytes = dict.fromkeys(("read", "encode", "pack"), 0.0), 0.0, 0, 0

    @contextlib.contextmanager
    def timed(part: str) -> Iterator[None]:
        nonlocal elapsed_s
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        elapsed_s += time.perf_counter() - start
        cpu_s[part] += time.process_time() - cpu_start

    for number in range(samples):
        with timed("read"):
            sample = source.sample(number % len(source), np.random.default_rng(number))
        if side_px is not None:
            sample = _resized(sample, side_px)
        with timed("encode"):
            encoded = encoder.encode(sample)
        with timed("pack"):
            batch = pack([encoded], encoder.tokens.seg, encoder.tokens.vision_patch)
        tokens, sent_bytes = tokens + batch.tokens, sent_bytes + batch.bytes
    rates = {"samples_per_s": round(samples / elapsed_s, 1), "tokens_per_s": round(tokens / elapsed_s)}
    parts = {f"{part}_cpu_ms": round(1000 * seconds / samples, 1) for part, seconds in cpu_s.items()}
    size = {"batch_mb": round(sent_bytes / samples / 1e6, 3)}
    return {"bench": "data", "source": config.data.mixture[0].source, "samples": samples, **rates, **parts, **size}


def _resized(sample: Sample, side_px: int) -> Sample:
    """The sample with its image, masks and regions so large that the longer side has `side_px`."""
    if sample.image is None:
        return sample
    image = load_image(sample.image)
    width, height = (round(side * side_px / max(image.size)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height)).save(file, "JPEG", quality=90)

    def scaled(mask: RLE) -> RLE:
        return encode_mask(resize_nearest(decode_mask(mask), (height, width)))

    prompts = {k: scaled(mask) for k, mask in sample.prompts.items()}
    return replace(sample, image=file.getvalue(), masks=tuple(map(scaled, sample.masks)), prompts=prompts)


def measure_shards(config: Config, shards: Path, samples: int) -> dict[str, Any]:
    """The mixture of a run from its files and from shards, in turns of a few samples, in one process without workers.

    `read`: samples per second, with the bytes of their images; `encoded`: read, encoded and packed. With a ratio above
    1 shards are faster. Both come from the page cache if they were read before.
    """
    entry = MixtureEntry(source="shards", root=shards)
    streamed = config.model_copy(update={"data": config.data.model_copy(update={"mixture": [entry]})})
    held_out = held_out_images(config)
    mixtures = {"map": open_mixture(config, held_out), "shards": open_mixture(streamed, held_out)}
    model, tokenizer = build_model(config, mixtures["map"].sources)
    encoder = build_encoder(config, model, tokenizer)

    def encoded(mixture: Mixture, position: int) -> None:
        sequence = encoder.encode(mixture.sample(position), mixture.point_seed(position))
        pack([sequence], encoder.tokens.seg, encoder.tokens.vision_patch)

    def read(mixture: Mixture, position: int) -> None:
        with_bytes(mixture.sample(position))

    result: dict[str, Any] = {"bench": "data", "samples": samples, "shards": len(mixtures["shards"].sources[0].shards)}
    for measured in (read, encoded):
        elapsed_s = dict.fromkeys(mixtures, 0.0)
        for first in range(0, samples, TURN):
            for name, mixture in mixtures.items():
                start = time.perf_counter()
                for position in range(first, min(first + TURN, samples)):
                    measured(mixture, position)
                elapsed_s[name] += time.perf_counter() - start
        rates = {name: round(samples / elapsed_s[name], 1) for name in mixtures}
        result[measured.__name__] = rates | {"ratio": round(elapsed_s["map"] / elapsed_s["shards"], 2)}
    return result


def measure_score(checkpoint: Path, data_root: Path, benchmark: str, images: int) -> dict[str, Any]:
    """Expressions per second on the first `images` images: all of an image in one call, and one per call."""
    predictor = Predictor.from_pretrained(checkpoint)
    groups = by_image(read_benchmark(data_root, benchmark).cases)[:images]
    elapsed_s = {"shared": 0.0, "one_by_one": 0.0}
    encoded = {"shared": 0, "one_by_one": 0}
    for cases in groups:  # interleaved, so that both are measured under the same load
        image, sentences = load_image(cases[0].image), [case.sentence for case in cases]
        for name, calls in (("shared", [sentences]), ("one_by_one", [[s] for s in sentences])):
            before, start = predictor.images_encoded, time.perf_counter()
            for call in calls:
                predictor.segment(image, call)
            elapsed_s[name] += time.perf_counter() - start
            encoded[name] += predictor.images_encoded - before
    expressions = sum(map(len, groups))
    result: dict[str, Any] = {
        "bench": "score",
        "benchmark": benchmark,
        "expressions": expressions,
        "images": len(groups),
    }
    for name, seconds in elapsed_s.items():
        rate = round(expressions / seconds, 2)
        result[name] = {"expressions_per_s": rate, "images_encoded": encoded[name]}
    return result | {"ratio": round(elapsed_s["one_by_one"] / elapsed_s["shared"], 2)}
