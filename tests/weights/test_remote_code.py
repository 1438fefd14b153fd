"""Folders of tools/export.py --hub in transformers: AutoModel and AutoProcessor, with and without our package."""

from __future__ import annotations

import ast
import json
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_export import save_export

from pixel_sail.devices import device_of_map
from pixel_sail.errors import UserError
from pixel_sail.folders.checksums import check_sums
from pixel_sail.model.attention import kernel_of
from pixel_sail.model.generation import Sampling
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.publish import open_model, publish
from pixel_sail.weights.remote_code import copies

QUESTION, LIMIT = "What is red?", 24


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    source = open_model(save_export(folder / "export"))
    publish(source, folder / "out", None, 10**9, "tiny", None, None, remote_code=True)
    return folder / "out"


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def answers(model) -> list:
    """Text and masks of an answer that is forced to have two masks, and of a free one."""
    encoder = model.predictor().encoder if hasattr(model, "predictor") else model.encoder
    forced = encoder.text_ids("it is [SEG] or [SEG]")
    (free,) = model.chat(picture(), QUESTION, sampling=Sampling(LIMIT))
    steps = iter([*forced, encoder.end_ids[0]])
    module = sys.modules[Sampling.__module__] if hasattr(model, "autocast") else sys.modules[model.generation_module]
    choose, module._choose = module._choose, lambda logits, sampling: [next(steps)]
    try:
        (answer,) = model.chat(picture(), QUESTION)
    finally:
        module._choose = choose
    return [free.text, answer.text, [mask.tolist() for mask in answer.masks]]


def load_as_others(folder: str, out: str, with_package: bool, modules: str) -> None:
    """What a user of transformers does, in a process of its own."""
    if not with_package:
        for name in [name for name in sys.modules if name.split(".")[0] == "pixel_sail"]:
            del sys.modules[name]
        sys.modules["pixel_sail"] = None  # so that importing it fails
    import transformers
    from transformers import AutoModel, AutoProcessor
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.dynamic_module_utils.HF_MODULES_CACHE = modules
    if not with_package:
        CONFIG_MAPPING._extra_content.pop("pixel_sail", None)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="attn_implementation='eager': no such kernel"):
        AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, device_map="cpu", attn_implementation="sdpa")
    assert model.attention_kernel == "sdpa"
    home = type(model).__module__
    model.generation_module = home.replace("pixel_sail_serve_remote", "pixel_sail_model_generation").replace(
        "serve.remote", "model.generation"
    )
    batch = processor(picture(), QUESTION)
    logits = model(batch).logits
    prediction = model.predict_forward(image=picture(), text=f"<image>{QUESTION}")
    result = {"home": home, "answers": answers(model), "first": logits[0].argmax().item()}
    result |= {"forward": prediction["prediction"], "training": model.training}
    Path(out).write_text(json.dumps(result))


@pytest.mark.parametrize("with_package", [False, True], ids=["copies", "package"])
def test_transformers_loads_the_folder(published: Path, tmp_path: Path, with_package: bool) -> None:
    out = tmp_path / "result.json"
    process = get_context("fork").Process(
        target=load_as_others, args=(str(published), str(out), with_package, str(tmp_path / "modules"))
    )
    process.start()
    process.join(120)
    assert process.exitcode == 0
    result = json.loads(out.read_text())
    predictor = Predictor.from_pretrained(published, "cpu")
    assert result["home"].startswith("pixel_sail." if with_package else "transformers_modules.")
    assert result["answers"] == answers(predictor)
    assert len(result["answers"][2]) == 2 and not result["training"]
    assert result["forward"] == predictor.chat(picture(), QUESTION)[0].text
    put: list[torch.Tensor] = []
    streamer = type("Streamer", (), {"put": staticmethod(put.append), "end": staticmethod(lambda: None)})
    predictor.chat(picture(), QUESTION, streamer=streamer)
    assert result["first"] == put[1].item()


def test_the_folder_is_an_export_as_any(published: Path, capsys) -> None:
    check_sums(published)
    model = PixelSail.from_pretrained(published, device_map="auto" if not torch.cuda.is_available() else "cpu")
    assert not hasattr(model.config, "auto_map") and model.attention_kernel == "auto"
    assert "it is not run" not in capsys.readouterr().err
    assert json.loads((published / "generation_config.json").read_text())["do_sample"] is False


def test_the_copies_are_python_that_needs_only_known_libraries() -> None:
    """Also that no module of training, DeepSpeed or PEFT comes along."""
    sources = copies()
    assert {name.split(".")[1] for name in sources} <= {
        "architecture", "config", "data", "devices", "durable", "errors", "files", "folders", "layout", "model",
        "serve", "shipped", "tokens", "types", "writable", "yaml_file",
    }  # fmt: skip
    for name, source in sources.items():
        imported = set()
        for node in ast.walk(ast.parse(source, name)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
        assert not imported & {"pixel_sail", "deepspeed", "peft"}, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: device_of_map({"a": "cuda:0", "b": "cuda:1"}), "device_map names 2 places; the model runs on one"),
        (lambda: device_of_map("balanced"), "device_map='balanced' spreads layers"),
        (lambda: device_of_map("tpu"), "there is no device 'tpu'"),
        (
            lambda: kernel_of("eager"),
            "attn_implementation='eager': no such kernel .*never built.*give sdpa, flash_attention_2",
        ),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
    assert device_of_map({"": "cpu"}) == device_of_map(None) == torch.device("cpu")
    assert [kernel_of(name) for name in (None, "sdpa", "flash_attention_2")] == ["auto", "sdpa", "flash"]
