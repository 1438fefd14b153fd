"""What `pixel-sail inspect` does: the model's input as images and text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.config import ConfigError, DataConfig, MixtureEntry, load_config
from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import area_px
from pixel_sail.data.mixture import exclusion_lines, open_mixture
from pixel_sail.data.sources import open_source
from pixel_sail.errors import WeightsError
from pixel_sail.evaluate.held_out import held_out_images
from pixel_sail.folders.load import load_tokenizer
from pixel_sail.serve.visualize import Card, cards, mark_regions, paint
from pixel_sail.tokens import VISION_PATCH, add_special_tokens
from pixel_sail.types import IGNORE_LABEL, UNPROMPTED, Encoded, ImageBlock, Sample
from pixel_sail.weights.convert.scratch import CHAT_TEMPLATE, train_tokenizer
from pixel_sail.weights.start import model_folder, with_start
from pixel_sail.writable import check_writable

SOURCE_ARCHITECTURE = Architecture(patch_size=16, max_side_px=640)  # with --source: most images in nearly full size


TOKENIZER_SAMPLES = 200  # that train the tokenizer of a config from scratch


GREY = 116  # an image that is hidden; normalized, about 0


@dataclass(frozen=True)
class Inspected:
    name: str
    samples: list[Sample]
    encoder: Encoder


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    inspected = _from_config(arguments) if arguments.config else _from_source(arguments)
    sheets, texts = [], []
    for sample in inspected.samples:
        encoded = inspected.encoder.encode(sample)
        text = token_text(encoded, inspected.encoder.tokenizer)
        size = sum(map(area_px, sample.masks))
        grids = ", ".join(str(image.grid_hw) for image in encoded.images) or "(0, 0)"
        head = f"{sample.key}\n{len(encoded)} tokens, patches {grids}, {len(sample.masks)} masks"
        head += f" of {size} pixels in all, {len(sample.prompts)} regions, {encoded.dropped_turns} turns dropped"
        texts.append(f"{head}\n{text}\n")
        sheets.append(Card(drawn(encoded, inspected.encoder.patch_size), (sample.key, text)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    page, listing = (arguments.out / f"{inspected.name}.{suffix}" for suffix in ("png", "txt"))
    cards(sheets, cell_px=480).save(page)
    listing.write_text("\n".join(texts), encoding="utf-8")
    print(f"{len(texts)} samples: {page} and {listing}")


def drawn(encoded: Encoded, patch: int) -> Image.Image:
    """The images in the patches, one below the other, each twice: plain, and with masks and prompted patches.

    White without an image.
    """
    if not encoded.images:
        return Image.new("RGB", (64, 16), "white")
    counts = [math.prod(image.grid_hw) for image in encoded.images]
    parts = zip(encoded.images, encoded.patches.split(counts), encoded.prompt_ids.split(counts), strict=True)
    pairs = [_drawn(*part, patch) for part in parts]
    if len(pairs) == 1:
        return pairs[0]
    sheet = Image.new("RGB", (max(p.width for p in pairs), sum(p.height + 4 for p in pairs) - 4), "white")
    top = 0
    for pair in pairs:
        sheet.paste(pair, (0, top))
        top += pair.height + 4
    return sheet


def _drawn(block: ImageBlock, shown: torch.Tensor, prompt_ids: torch.Tensor, patch: int) -> Image.Image:
    h, w = block.grid_hw
    if shown.dtype != torch.uint8:  # data.hide=image
        shown = torch.full_like(shown, GREY, dtype=torch.uint8)
    blocks = shown.numpy().reshape(h, w, 3, patch, patch).transpose(0, 3, 1, 4, 2)
    plain = Image.fromarray(blocks.reshape(h * patch, w * patch, 3))
    image = paint(plain, list(block.masks.pixels().numpy().astype(bool)))
    grid = prompt_ids.numpy().reshape(h, w).repeat(patch, axis=0).repeat(patch, axis=1)
    image = mark_regions(image, {int(k): grid == k for k in np.unique(grid) if k != UNPROMPTED})
    pair = Image.new("RGB", (2 * plain.width + 4, plain.height), "white")
    pair.paste(plain, (0, 0))
    pair.paste(image, (plain.width + 4, 0))
    return pair


def token_text(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """All tokens as text, the patches as one token; >> and << around tokens with labels."""
    text, run, patches = "", [], tokenizer.convert_tokens_to_ids(VISION_PATCH)
    learned = (encoded.labels != IGNORE_LABEL).tolist()
    for i, token in enumerate(encoded.input_ids.tolist()):
        if i and learned[i] != learned[i - 1]:
            text, run = text + tokenizer.decode(run) + (" >>" if learned[i] else "<< "), []
        if token != patches or encoded.input_ids[i - 1] != patches:
            run.append(token)
    return text + tokenizer.decode(run) + ("<<" if learned and learned[-1] else "")


def _from_config(arguments: argparse.Namespace) -> Inspected:
    config = with_start(load_config(arguments.config, arguments.overrides))
    mixture = open_mixture(config, held_out_images(config))
    for line in exclusion_lines(config, mixture):
        print(line)
    samples = [mixture.sample(position) for position in range(arguments.count)]
    if config.train.init_from is not None or config.model.base is not None:
        start = config.train.init_from
        folder = config.model.base if start is None else model_folder(start)
        try:
            tokenizer = load_tokenizer(Path(folder))
        except WeightsError as error:
            raise ConfigError(f"no tokenizer in {folder}: {error}; give model.base=FOLDER, or use --source") from None
        add_special_tokens(tokenizer)
    else:
        first = [mixture.annotated(position) for position in range(TOKENIZER_SAMPLES)]
        tokenizer = _own_tokenizer([*first, *samples])
    encoder = Encoder(
        tokenizer,
        config.architecture,
        config.model.chat_format,
        max_length=config.data.max_length,
        hide=config.data.hide,
    )
    return Inspected(arguments.config.stem, samples, encoder)


def _from_source(arguments: argparse.Namespace) -> Inspected:
    entry = MixtureEntry(source=arguments.source, split=arguments.split)
    source = open_source(entry, DataConfig(root=arguments.root, mixture=[entry]))
    for problem in source.problems:
        print(f"left out: {problem}")
    chosen = np.unique(np.linspace(0, len(source) - 1, arguments.count).astype(int)).tolist()
    samples = [source.sample(index, np.random.default_rng(index)) for index in chosen]
    encoder = Encoder(_own_tokenizer(samples), SOURCE_ARCHITECTURE, "auto")
    return Inspected(f"{arguments.source}_{arguments.split}", samples, encoder)


def _own_tokenizer(samples: Sequence[Sample]) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer((f" {text}" for s in samples for t in s.turns for text in (t.question, t.answer)), 1024)
    tokenizer.chat_template = CHAT_TEMPLATE
    add_special_tokens(tokenizer)
    return tokenizer
