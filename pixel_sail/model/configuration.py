"""The configuration in a checkpoint folder (config.json)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from pixel_sail.architecture import FLAT_KEYS, Architecture, from_flat


class PixelSailConfig(PretrainedConfig):
    """A decoder's own config, and what turns the decoder into a pixel-grounded model.

    architecture      the parts of the model (pixel_sail/architecture.py)
    chat_format       "research", "inst" or "template" (docs/model.md)
    question          the question that `segment` asks, with {expression} in it: the first of the training templates
    hide              "none", or the input that a blind baseline never sees: "text" (the expression), "image", "prompts"
    converted_from    the family of released weights that the model comes from (tools/convert.py), or None
    differences       how that family differs from this model
    prompt_token_ids  ids of <Prompt0> .. <Prompt14> in the tokenizer of the same folder
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
        flat = {key: kwargs.pop(key) for key in FLAT_KEYS if key in kwargs}  # written before 0.2.0
        if flat and architecture is not None:
            raise ValueError(f"config.json has {', '.join(flat)} outside of its section architecture; move them there")
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
        """The plain values of config.json."""
        return super().to_dict() | {"architecture": self.architecture.model_dump(mode="json")}


AutoConfig.register(PixelSailConfig.model_type, PixelSailConfig)  # AutoTokenizer reads config.json too
