"""Mask2Former's pixel decoder (transformers, any backbone): the features of its masks, stride 4."""

from __future__ import annotations

from transformers import Mask2FormerModel

from pixel_sail.config import ExpertConfig
from pixel_sail.experts.expert import Expert
from pixel_sail.experts.folder import load_pretrained, normalization


def open_mask2former(config: ExpertConfig) -> Expert:
    """`pixel_decoder_last_hidden_state` of a Mask2Former checkpoint: (mask_feature_size, H / 4, W / 4)."""
    model = load_pretrained(config, Mask2FormerModel, ("mask2former",), needs="pixel_level_module.")
    module = model.pixel_level_module  # backbone and pixel decoder; the queries that follow do not change its output
    mean, std = normalization(config)
    return Expert(
        kind="mask2former",
        module=module,
        to_features=lambda pixels: module(pixels).decoder_last_hidden_state,
        width=model.config.mask_feature_size,
        multiple=max(model.config.feature_strides),
        mean=mean,
        std=std,
    )
