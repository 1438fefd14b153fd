"""The configuration that a checkpoint folder carries (config.json)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class PixelSailConfig(PretrainedConfig):
    """A decoder's own config plus what turns it into a pixel-grounded model.

    patch_size       pixels of a patch side
    sub_patch_size   pixels of the squares into which a patch is cut before it is embedded; None: it is embedded whole
    sub_patch_width  width of a sub-patch
    stem_widths      widths of the convolutions before the patch embedding (model/stem.py); None: there are none
    patch_positions  whether a patch is told where in its picture it lies (model/patch_positions.py)
    region_embedding  "fused": a visual prompt is added to its patches; "pooled": their mean is added to its name
    max_side_px      the longer side of a resized picture at most
    mask_dim         S, width of the mask features
    mask_channels    widths before, between and after the upsampling blocks; len - 1 is the number of blocks U
    rope_layout      "halves" or "interleaved": which rotary frequencies read rows and columns (model/backbone.py)
    chat_format      "research", "inst" or "template" (SPEC section 1)
    question         the question that `segment` asks, with {expression} in it: the first of the training templates
    hide             "none", or what a blind baseline never sees: "text" (the expression), "image" or "prompts"
    vision_experts   twins of every linear and norm for visual tokens, as EVEv2 has them (model/modality_experts.py)
    converted_from   the family of released weights that the model was made of (tools/convert.py); None: none
    differences      what that base does otherwise and this model does not
    prompt_token_ids  ids of <Prompt0> .. <Prompt14> in the tokenizer that is saved beside this file
    """

    model_type = "pixel_sail"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        patch_size: int = 16,
        sub_patch_size: int | None = None,
        sub_patch_width: int = 64,
        stem_widths: list[int] | None = None,
        patch_positions: bool = False,
        region_embedding: str = "fused",
        max_side_px: int = 1024,
        mask_dim: int = 256,
        mask_channels: list[int] | None = None,
        rope_layout: str = "halves",
        chat_format: str = "template",
        question: str = "Please segment {expression} in this image.",
        hide: str = "none",
        vision_experts: bool = False,
        converted_from: str | None = None,
        differences: list[str] | None = None,
        prompt_token_ids: list[int] | None = None,
        **kwargs: Any,
    ):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.patch_size = patch_size
        self.sub_patch_size = sub_patch_size
        self.sub_patch_width = sub_patch_width
        self.stem_widths = stem_widths
        self.patch_positions = patch_positions
        self.region_embedding = region_embedding
        self.max_side_px = max_side_px
        self.mask_dim = mask_dim
        self.mask_channels = mask_channels
        self.rope_layout = rope_layout
        self.chat_format = chat_format
        self.question = question
        self.hide = hide
        self.vision_experts = vision_experts
        self.converted_from = converted_from
        self.differences = differences
        self.prompt_token_ids = prompt_token_ids
        super().__init__(**kwargs)


AutoConfig.register(PixelSailConfig.model_type, PixelSailConfig)  # AutoTokenizer reads config.json too
