"""The configuration that a checkpoint folder carries (config.json)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from pixel_sail.architecture import FLAT_KEYS, Architecture, from_flat


class PixelSailConfig(PretrainedConfig):
    """A decoder's own config plus what turns it into a pixel-grounded model.

    architecture     what the model is made of (pixel_sail/architecture.py)
    chat_format      "research", "inst" or "template" (docs/model.md)
    question         the question that `segment` asks, with {expression} in it: the first of the training templates
    hide             "none", or what a blind baseline never sees: "text" (the expression), "image" or "prompts"
    converted_from   the family of released weights that the model was made of (tools/convert.py); None: none
    differences      what that base does otherwise and this model does not
    prompt_token_ids  ids of <Prompt0> .. <Prompt14> in the tokenizer that is saved beside this file
    """

    model_type = "pixel_sail"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        architecture: dict[str, Any] | Architecture | None = None,
        chat_format: str = "template",
        question: str = "Please segment {expression} in this image.",
        hide: str = "none",
        converted_from: str | None = None,
        differences: list[str] | None = None,
        prompt_token_ids: list[int] | None = None,
        **kwargs: Any,
    ):
        flat = {key: kwargs.pop(key) for key in FLAT_KEYS if key in kwargs}  # a folder of before
        if flat and architecture is not None:
            raise ValueError(f"config.json has {', '.join(flat)} beside its architecture, where they belong")
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.architecture = Architecture.model_validate(from_flat(flat) if architecture is None else architecture)
        self.chat_format = chat_format
        self.question = question
        self.hide = hide
        self.converted_from = converted_from
        self.differences = differences
        self.prompt_token_ids = prompt_token_ids
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.json has them."""
        return super().to_dict() | {"architecture": self.architecture.model_dump(mode="json")}


AutoConfig.register(PixelSailConfig.model_type, PixelSailConfig)  # AutoTokenizer reads config.json too
