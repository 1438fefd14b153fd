"""SAM 2 and 2.1: the image embedding that its mask decoder reads (transformers), stride 16."""

from __future__ import annotations

import math

from transformers import Sam2Model
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

from pixel_sail.config import ExpertConfig
from pixel_sail.experts.expert import Expert
from pixel_sail.experts.folder import load_pretrained, normalization


def open_sam2(config: ExpertConfig) -> Expert:
    """The last level of the feature pyramid: (256, 64, 64) for 1024 x 1024 px, the size that SAM 2 was trained with.

    The constant that the predictor of still images adds to it is left out, since a student's adapter has a bias. Of
    video checkpoints (all published ones) only the image encoder is used.
    """
    model = load_pretrained(config, Sam2Model, ("sam2", "sam2_video"), needs="vision_encoder.")
    module = model.vision_encoder
    mean, std = normalization(config)
    return Expert(
        kind="sam2",
        module=module,
        to_features=lambda pixels: module(pixels).fpn_hidden_states[-1],
        width=model.config.vision_config.fpn_hidden_size,
        multiple=_multiple(model.config.vision_config.backbone_config),
        mean=mean,
        std=std,
    )


def _multiple(hiera: Sam2HieraDetConfig) -> int:
    """Pixels. Position embeddings are tiled in whole windows, and every pooling must halve its input exactly."""
    stride, pooling = hiera.patch_stride[0], hiera.query_stride[0] ** hiera.num_query_pool_stages
    return stride * math.lcm(hiera.window_size_per_stage[0], pooling)
