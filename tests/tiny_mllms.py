"""Tiny models of each family with random weights, and processors that need no files."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.attend_segment.adapters import MODEL_TYPES, HuggingFaceAdapter, PixelSailAdapter
from pixel_sail.weights.convert.scratch import from_scratch

WORDS = "the a red blue cat dog mat sits on left of and is there in image , . what shows user assistant"
PROMPT = "what is on the left ?"
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}@IMAGE@"
    "{% else %} {{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
HUGGING_FACE = tuple(MODEL_TYPES)
ALL = (*HUGGING_FACE, "pixel_sail")


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token for each word. `special`: special tokens by the name that processors use, for example image_token."""
    words = ["<unk>", "<s>", "</s>", *WORDS.split()]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=special,
    )


def tiny(model_type: str, seed: int = 0) -> HuggingFaceAdapter | PixelSailAdapter:
    """The adapter of a family with a model of two to four layers; the same weights for the same seed."""
    torch.manual_seed(seed)
    if model_type == "pixel_sail":
        return PixelSailAdapter(_pixel_sail())
    makers = {"llava": _llava, "qwen2_vl": _qwen2, "qwen2_5_vl": _qwen2_5, "internvl": _internvl, "gemma3": _gemma3}
    model, processor = makers[model_type]()
    for parameter in model.parameters():  # transformers' 0.02 would make every attention row flat
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    # Words only: a model with random weights would also generate image tokens and its stop token.
    model.generation_config.suppress_tokens = list(processor.tokenizer.all_special_ids)
    return MODEL_TYPES[model_type](model, processor)


def _pixel_sail() -> Predictor:
    scratch = ScratchConfig(hidden_size=32, layers=3, heads=4, kv_heads=2, mlp_size=64, vocab_size=400)
    section, architecture = (
        ModelSection(scratch=scratch),
        Architecture(patch_size=8, mask_stride=4, mask_dim=16, max_side_px=64),
    )
    texts = ["What is on the left?", "the red cat sits on the mat, left of the dog. [SEG]"] * 3
    model, tokens = from_scratch(section, architecture, texts, "Segment {expression}.")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return Predictor(model.eval(), tokens)


def _text(tokens: PreTrainedTokenizerFast, model_type: str, layers: int = 3, **settings) -> dict:
    return LLAMA | {"model_type": model_type, "num_hidden_layers": layers, "vocab_size": len(tokens)} | settings


def _llava():
    tokens = tokenizer(image_token="<image>")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=_text(tokens, "llama"),
        vision_config=vision | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        image_token_index=tokens.image_token_id,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = TEMPLATE.replace("@IMAGE@", "<image>")
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaForConditionalGeneration(config), LlavaProcessor(images, tokens, chat_template=template, **settings)


def _qwen_parts():
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokens = tokenizer(**names, start_token="<|vision_start|>", end_token="<|vision_end|>")
    ids = {
        "image_token_id": tokens.image_token_id,
        "video_token_id": tokens.video_token_id,
        "vision_start_token_id": tokens.start_token_id,
        "vision_end_token_id": tokens.end_token_id,
    }
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 20}
    images, videos = Qwen2VLImageProcessor(size=size), Qwen2VLVideoProcessor()
    template = TEMPLATE.replace("@IMAGE@", "<|vision_start|><|image_pad|><|vision_end|>")
    return tokens, ids, {"image_processor": images, "video_processor": videos, "chat_template": template}


def _qwen2():
    tokens, ids, parts = _qwen_parts()
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 32}
    text = _text(tokens, "qwen2_vl_text", rope_parameters=QWEN_ROPE)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor(tokenizer=tokens, **parts)


def _qwen2_5():
    tokens, ids, parts = _qwen_parts()
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    text = _text(tokens, "qwen2_5_vl_text", rope_parameters=QWEN_ROPE)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor(tokenizer=tokens, **parts)


def _internvl():
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = tokenizer(**names, video_token="<video>")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        text_config=_text(tokens, "qwen2"),
        vision_config=vision | {"image_size": [64, 64], "patch_size": [8, 8]},
        image_token_id=tokens.context_image_token_id,
        image_seq_length=16,
    )
    images = GotOcr2ImageProcessor(size={"height": 64, "width": 64}, crop_to_patches=True, min_patches=1, max_patches=4)
    template = TEMPLATE.replace("@IMAGE@", "<IMG_CONTEXT>")
    processor = InternVLProcessor(images, tokens, InternVLVideoProcessor(), image_seq_length=16, chat_template=template)
    return InternVLForConditionalGeneration(config), processor


def _gemma3():
    tokens = tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    # Every other layer sees only the last 24 tokens: during the answer the image leaves their window.
    window = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 8}
    config = Gemma3Config(
        text_config=_text(tokens, "gemma3_text", layers=4, query_pre_attn_scalar=8, **window),
        vision_config=vision | {"image_size": 64, "patch_size": 8},
        mm_tokens_per_image=16,
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
    )
    images = Gemma3ImageProcessor(size={"height": 64, "width": 64})
    template = TEMPLATE.replace("@IMAGE@", "<start_of_image>")
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(
        images, tokens, chat_template=template, image_seq_length=16
    )
