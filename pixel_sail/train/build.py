"""Build what a run starts from: the model (one of ours, a language model, or random weights), the encoder, the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pixel_sail.config import Config, MixtureEntry, TrainConfig
from pixel_sail.data.deal import Costs
from pixel_sail.data.encode import Encoder
from pixel_sail.data.loader import StepDataset
from pixel_sail.data.mixture import Mixture
from pixel_sail.data.pack import pack
from pixel_sail.data.sources import Source, open_source
from pixel_sail.data.templates import Templates
from pixel_sail.experts.features import FeatureProvider
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.place import ON_CPU, Place
from pixel_sail.model.configuration import PixelSailConfig, load_own_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train import distributed
from pixel_sail.train.engine import has_bf16_weights
from pixel_sail.train.flops import Flops
from pixel_sail.types import BadSample
from pixel_sail.weights.convert.language_model import from_language_model
from pixel_sail.weights.convert.scratch import from_scratch
from pixel_sail.weights.start import load_start

TOKENIZER_SAMPLES = 2_000  # samples of each source whose text trains the tokenizer of a model from scratch


def build_model(
    config: Config, sources: Sequence[Source] | None = None, place: Place = ON_CPU
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model, with its weights at `place`, and its tokenizer. Random weights depend on run.seed alone.

    `sources`: those of data.mixture if they are open already, because opening them again takes time. With
    train.init_from, `config` must come from `with_start` (weights/start.py).
    """
    torch.manual_seed(config.run.seed)
    question = Templates.of(config.data).questions[0]
    if config.train.init_from is not None:
        model, tokenizer = load_start(config.train.init_from, place)
        if config.architecture.mask_scores and model.score_head is None:
            model.add_score_head()
        if config.architecture.clicks and model.fusion.clicks is None:
            model.add_clicks()
    elif config.model.base is not None:
        model, tokenizer = from_language_model(config.model, config.architecture, question, config.data.hide, place)
    else:
        model, tokenizer = from_scratch(
            config.model, config.architecture, _texts(config, sources), question, config.data.hide
        )
    if not place.later:
        place.put(model)
    model.attention_kernel = config.model.attention
    model.config.architecture = config.architecture  # of train.init_from some keys may differ, see with_start
    model.config.hide = config.data.hide
    return model, tokenizer


def place_of_training(train: TrainConfig) -> Place:
    """Where the weights of a run go. Later: at ZeRO-3 as shards (zero3.py), and where some become 4-bit weights."""
    bf16 = has_bf16_weights(train)
    if train.zero_stage == 3:
        # In float32 the weights must be that before adapters take their dtype; those of a float32 file are.
        return Place(dtype=torch.bfloat16, later=True) if bf16 else ON_CPU
    in_4_bits = train.lora is not None and train.lora.quantize != "none"
    return Place(distributed.device(), torch.bfloat16 if bf16 else torch.float32, later=in_4_bits)


def keep_chat_format(config: PixelSailConfig, folder: Path) -> list[str]:
    """Give a run that goes on the chat format that it began with, from its checkpoint's `folder` of the model.

    The base was read anew, and its chat template may write other text by now. Returns a line for the user if it does.
    """
    kept = load_own_config(folder) if (folder / CONFIG).exists() else config  # older checkpoints have none
    before, now = (kept.chat_format, kept.chat_pieces), (config.chat_format, config.chat_pieces)
    if before == now or (kept.chat_format == "template" and kept.chat_pieces is None):  # older ones have no pieces
        return []
    config.chat_format, config.chat_pieces = before
    return ["the chat template of the base has changed since the run began, which goes on with the text of then"]


def build_encoder(
    config: Config, model: PixelSail, tokenizer: PreTrainedTokenizerBase, expert_features: FeatureProvider | None = None
) -> Encoder:
    """The encoder of a training run. Inference builds its own from the model's config alone."""
    return Encoder(
        tokenizer,
        model.config.architecture,
        model.config.chat_format,
        max_length=config.data.max_length,
        lm_weight_with_masks=config.loss.lm_weight_with_masks,
        hide=config.data.hide,
        expert_features=expert_features,
        chat_pieces=model.config.chat_pieces,
    )


def build_step_dataset(config: Config, mixture: Mixture, encoder: Encoder, flops: Flops) -> StepDataset:
    """The share of this rank in every optimizer step."""
    costs = Costs(flops.of_step, encoder.architecture, encoder.max_length)
    return StepDataset(
        mixture,
        encoder.encode,
        partial(pack, seg_id=encoder.tokens.seg, patch_id=encoder.tokens.vision_patch),
        config.train.batch_size,
        config.train.micro_batch_tokens,
        distributed.rank(),
        distributed.world_size(),
        costs,
    )


def _texts(config: Config, sources: Sequence[Source] | None) -> list[str]:
    """Text for a new tokenizer: the first samples of each source of `scratch.text_from`, or of the training data."""
    names, texts = config.model.scratch.text_from, []
    if names is not None or sources is None:
        entries = config.data.mixture if names is None else [MixtureEntry(source=name) for name in names]
        sources = [open_source(entry, config.data) for entry in entries]
    for number, source in enumerate(sources):
        for index in range(min(len(source), TOKENIZER_SAMPLES)):
            try:
                sample = source.sample(index, np.random.default_rng((config.run.seed, number, index)))
            except BadSample:  # training reports it
                continue
            texts += [part for turn in sample.turns for part in (turn.question, turn.answer)]
            texts += [sample.text] if sample.text else []
    return texts
