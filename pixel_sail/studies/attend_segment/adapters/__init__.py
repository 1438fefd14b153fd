"""One small adapter for each family of models. `open_adapter` picks the one that a model needs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from pixel_sail.config import ConfigError
from pixel_sail.data.chat_template import TemplateError, rendered
from pixel_sail.devices import choose_device, choose_dtype
from pixel_sail.errors import WeightsError
from pixel_sail.folders.find import local_folder
from pixel_sail.folders.load import load_config, load_network, load_processor
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.attend_segment.adapters.gemma3 import Gemma3
from pixel_sail.studies.attend_segment.adapters.hugging_face import HuggingFaceAdapter
from pixel_sail.studies.attend_segment.adapters.internvl import InternVl
from pixel_sail.studies.attend_segment.adapters.llava import Llava
from pixel_sail.studies.attend_segment.adapters.pixel_sail import PixelSailAdapter
from pixel_sail.studies.attend_segment.adapters.qwen_vl import QwenVl
from pixel_sail.studies.attend_segment.generate import Adapter

OURS = "pixel_sail"
# `model_type` of a config.json -> the adapter of its family.
MODEL_TYPES: dict[str, type[HuggingFaceAdapter]] = {
    "llava": Llava,
    "qwen2_vl": QwenVl,
    "qwen2_5_vl": QwenVl,
    "internvl": InternVl,
    "gemma3": Gemma3,
}
FAMILIES = (OURS, *dict.fromkeys(adapter.family for adapter in MODEL_TYPES.values()))


def open_adapter(model: str | Path, family: str = "auto", device: str = "auto", precision: str = "auto") -> Adapter:
    """Load the model of a folder (or hub name) into its adapter.

    `family`: auto (by the config's model_type) or one of FAMILIES. `device`: auto | cpu | cuda[:n]. `precision`: auto
    (bf16 on a GPU) | bf16 | fp32. Raises ConfigError for a model that cannot be loaded or has no adapter.
    """
    if family not in ("auto", *FAMILIES):
        raise ConfigError(f"unknown family {family!r}; known: auto, {', '.join(FAMILIES)}")
    place = choose_device(device)
    dtype = choose_dtype(precision, place)
    try:
        folder = local_folder(model)
        model_type = load_config(folder).model_type
    except WeightsError as error:
        raise ConfigError(
            f"cannot read {Path(model) / 'config.json'}: give an export of ours, or a folder with all files of a "
            f"Hugging Face model (download it on a machine with hub access). The cause: {error}"
        ) from error
    if family == OURS or (family == "auto" and model_type == OURS):
        return PixelSailAdapter(Predictor.from_pretrained(folder, device, precision))
    known = {adapter.family: adapter for adapter in MODEL_TYPES.values()}
    chosen = MODEL_TYPES.get(model_type) if family == "auto" else known[family]
    if chosen is None:
        raise ConfigError(
            f"{model} is a {model_type!r} model, which has no adapter (there are {OURS}, {', '.join(MODEL_TYPES)}). "
            "Give --family, if one of them orders its image tokens alike, or write an adapter "
            "(pixel_sail/studies/attend_segment/adapters)"
        )
    return _hugging_face(folder, chosen, place, dtype)


def _hugging_face(folder: Path, adapter: type[HuggingFaceAdapter], device: torch.device, dtype: torch.dtype) -> Adapter:
    try:
        processor = load_processor(AutoProcessor, folder)
        _try_template(processor)
        network = load_network(AutoModelForImageTextToText, folder, dtype)
    except (WeightsError, TemplateError) as error:
        raise ConfigError(
            f"cannot load {folder}: it needs config.json, *.safetensors, the tokenizer's files, a chat template and "
            f"preprocessor_config.json (or processor_config.json). The cause: {error}"
        ) from error
    return adapter(network.to(device), processor)


def _try_template(processor: ProcessorMixin) -> None:
    """Raise TemplateError for a chat template that fails, or would not end, on a question about an image."""
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    template = getattr(processor, "chat_template", None)
    if isinstance(template, str):  # without one, the first answer says what is missing
        rendered(template, processor.tokenizer.special_tokens_map, [([{"role": "user", "content": content}], True)])
