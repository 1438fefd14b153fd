"""The configuration in a checkpoint folder (config.json)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from pixel_sail.architecture import FLAT_KEYS, Architecture, from_flat
from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.load import load_config, load_tokenizer
from pixel_sail.folders.settings import check_decoder
from pixel_sail.tokens import MAX_PROMPTS, SpecialTokens

CHAT_FORMATS = ("research", "inst", "template")  # data/chat.py
HIDDEN = ("none", "text", "image", "prompts")
MAX_QUESTION_CHARACTERS = 10_000


class PixelSailConfig(PretrainedConfig):
    """A decoder's own config, and what turns the decoder into a pixel-grounded model.

    architecture      the parts of the model (pixel_sail/architecture.py)
    chat_format       "research", "inst" or "template" (docs/model.md)
    chat_pieces       the text around questions and answers of a "template" (data/chat.py), so that the template of the
                      tokenizer is not run again; None in older folders and for the other formats
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
        chat_pieces: dict[str, Any] | None = None,
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
        self.chat_pieces = chat_pieces
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The plain values of config.json."""
        return super().to_dict() | {"architecture": self.architecture.model_dump(mode="json")}


AutoConfig.register(PixelSailConfig.model_type, PixelSailConfig)  # AutoTokenizer reads config.json too


def load_own_config(folder: Path) -> PixelSailConfig:
    """The checked config of a model of ours. Raises WeightsError for any other folder, and for impossible values."""
    for needed in ("", CONFIG):
        if not (folder / needed).exists():
            raise WeightsError(
                f"no pixel_sail checkpoint at {folder}: {folder / needed} is missing. Give the export/ folder of a "
                "run, or make one with tools/convert.py"
            )
    config, path = load_config(folder), folder / CONFIG
    if not isinstance(config, PixelSailConfig) or config.text_config is None:
        raise WeightsError(
            f"{folder} holds no model of pixel_sail: give it as model.base, or convert it first (tools/convert.py)"
        )
    vars(config).pop("auto_map", None)  # code that lies in this folder, and not where the model is saved next
    check_decoder(config.text_config, path)
    vocabulary, ids = config.text_config.vocab_size, config.prompt_token_ids
    known = isinstance(ids, list) and all(type(token) is int and 0 <= token < vocabulary for token in ids)
    for holds, key, expected in (
        (config.chat_format in CHAT_FORMATS, "chat_format", f"known: {', '.join(CHAT_FORMATS)}"),
        (config.hide in HIDDEN, "hide", f"known: {', '.join(HIDDEN)}"),
        (_is_question(config.question), "question", "give a text with {expression} in it"),
        (
            known and len(set(ids)) == MAX_PROMPTS == len(ids),
            "prompt_token_ids",
            f"give {MAX_PROMPTS} different ids below vocab_size {vocabulary}",
        ),
        (isinstance(config.converted_from, str | None), "converted_from", "give a text, or null"),
        (_is_texts(config.differences), "differences", "give a list of texts, or null"),
    ):
        if not holds:
            raise WeightsError(f"{path}: {key} is {str(getattr(config, key))[:80]!r}; {expected}")
    return config


def load_own_tokenizer(folder: Path, config: PixelSailConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model of ours. Raises WeightsError if it does not fit the vocabulary and ids of `config`."""
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config, folder)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PixelSailConfig, folder: Path) -> None:
    """Raise WeightsError if a token has no embedding, or the special tokens are not those of `config`."""
    check_ids(tokenizer, config.text_config.vocab_size, folder)
    try:
        tokens = SpecialTokens.of(tokenizer)
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from None
    if list(tokens.prompts) != config.prompt_token_ids:
        raise WeightsError(
            f"{folder}: <Prompt0>, <Prompt1>, ... have the ids {list(tokens.prompts)} in the tokenizer and "
            f"{config.prompt_token_ids} in {CONFIG}: they do not belong together"
        )


def check_ids(tokenizer: PreTrainedTokenizerBase, rows: int, where: Path | str) -> None:
    """Raise WeightsError if the tokenizer has an id twice, or one beyond the `rows` embeddings of its model."""
    tokens: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in tokens:
            raise WeightsError(f"{where}: {token[:40]!r} and {tokens[number][:40]!r} have the same id {number}")
        tokens[number] = token
    largest = max(tokens)
    if largest >= rows:
        raise WeightsError(
            f"{where}: the tokenizer has ids up to {largest} ({tokens[largest][:40]!r}), the model embeddings for "
            f"{rows} tokens (vocab_size): they do not belong together"
        )


def _is_question(value: Any) -> bool:
    return isinstance(value, str) and "{expression}" in value and len(value) <= MAX_QUESTION_CHARACTERS


def _is_texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(text, str) for text in value))
