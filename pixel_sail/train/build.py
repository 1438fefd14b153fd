"""The model that a run starts from: an export folder, a language model, or random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError
from pixel_sail.convert.language_model import from_language_model, upsample_blocks
from pixel_sail.convert.scratch import from_scratch
from pixel_sail.data.encode import Encoder
from pixel_sail.data.sources import open_source
from pixel_sail.data.teachers import Teachers
from pixel_sail.data.templates import Templates
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import BadSample

TOKENIZER_SAMPLES = 2_000  # samples of each source whose text trains the tokenizer of a model from scratch


def build_model(config: Config) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model in float32 and its tokenizer; random weights depend on run.seed alone."""
    torch.manual_seed(config.run.seed)
    question = Templates.of(config.data).questions[0]
    if config.train.init_from is not None:
        model, tokenizer = _from_export(config.train.init_from, config)
    elif config.model.base is not None:
        model, tokenizer = from_language_model(config.model, question, config.data.hide)
    else:
        model, tokenizer = from_scratch(config.model, _texts(config), question, config.data.hide)
    model.attention_kernel = config.model.attention
    model.config.hide = config.data.hide
    return model, tokenizer


def build_encoder(
    config: Config, model: PixelSail, tokenizer: PreTrainedTokenizerBase, teachers: Teachers | None = None
) -> Encoder:
    """The encoder of a training run; inference makes its own from the model's config alone."""
    return Encoder(
        tokenizer,
        model.config.patch_size,
        model.config.max_side_px,
        model.config.chat_format,
        max_length=config.data.max_length,
        lm_weight_with_masks=config.loss.lm_weight_with_masks,
        hide=config.data.hide,
        teachers=teachers,
    )


def _from_export(folder: Path, config: Config) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    model = PixelSail.from_pretrained(folder)
    wanted = {
        "patch_size": config.model.patch_size,
        "max_side_px": config.model.max_side_px,
        "mask_dim": config.model.mask_dim,
        "sub_patch_size": config.model.sub_patch_size,
        "sub_patch_width": config.model.sub_patch_width,
        "stem_widths": config.model.stem_widths,
        "region_embedding": config.model.region_embedding,
        "rope_layout": config.model.rope_layout,
        "upsampling blocks (from mask_stride)": upsample_blocks(config.model),
    }
    found = {name: getattr(model.config, name, len(model.mask_head.blocks)) for name in wanted}
    differing = [
        f"{name}: config {wanted[name]}, checkpoint {found[name]}" for name in wanted if wanted[name] != found[name]
    ]
    if differing:
        raise ConfigError(f"train.init_from={folder} does not fit the model section: {'; '.join(differing)}")
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _texts(config: Config) -> list[str]:
    """Text of the training data, for a new tokenizer: one reading of the first samples of every source."""
    texts = []
    for number, entry in enumerate(config.data.mixture):
        source = open_source(entry, config.data)
        for index in range(min(len(source), TOKENIZER_SAMPLES)):
            try:
                sample = source.sample(index, np.random.default_rng((config.run.seed, number, index)))
            except BadSample:  # training names and counts it
                continue
            texts += [part for turn in sample.turns for part in (turn.question, turn.answer)]
    return texts
