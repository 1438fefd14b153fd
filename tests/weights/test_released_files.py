"""Each base in the form in which it is released becomes what its weights say; what is wrong with a file is named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from reference_bases import EVEV2, weights_of
from released_files import IMAGE_TOKENS, eve_files, sail_files, sentencepiece_model, solo_files
from safetensors.torch import load_file, save_file
from tiny_base import save_base
from torch import Tensor
from transformers import AutoTokenizer

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.errors import WeightsError
from pixel_sail.folders import load as folders_load
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.tokens import GROUNDING_TOKENS, SpecialTokens
from pixel_sail.weights.convert.evev2 import plan_evev2
from pixel_sail.weights.convert.language_model import from_language_model, plan_language_model
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.research import from_research, plan_research
from pixel_sail.weights.convert.sail import plan_sail
from pixel_sail.weights.convert.solo import plan_solo
from pixel_sail.weights.convert.streaming import Conversion, check, load, write
from pixel_sail.weights.files import peak_bytes

PARTS = NewParts(mask_dim=16)
SMALL = Architecture(patch_size=8, mask_stride=4, mask_dim=16, max_side_px=64)
QUESTION = "Segment {expression}."
EMBED = "language_model.model.embed_tokens.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def assert_copied(plan: Conversion, weights: dict[str, Tensor], but: tuple[str, ...]) -> None:
    """Every weight of the decoder is that of the files, bit for bit, but for those with `but` in their name."""
    check(plan)
    for name, tensor in weights.items():
        if not any(part in name for part in but):
            assert torch.equal(plan.tensor(f"language_model.{name}"), tensor), name


def test_sail_is_one_bin_and_a_tokenizer_json(tmp_path: Path) -> None:
    weights = sail_files(tmp_path / "sail")
    plan = plan_sail(tmp_path / "sail", PARTS)
    assert_copied(plan, weights, ("embed_tokens", "lm_head", "vis_embed"))
    assert torch.equal(plan.tensor("fusion.patch_linear.weight"), weights["model.vis_embed.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        known = len(AutoTokenizer.from_pretrained(tmp_path / "sail"))
        assert torch.equal(plan.tensor(f"language_model.{name}")[:known], weights[name][:known])
    assert (plan.tokenizer.bos_token, plan.tokenizer.eos_token) == ("<s>", "</s>")  # of config.json
    write(plan, tmp_path / "ours")
    assert WeightFiles(tmp_path / "ours").dtypes[EMBED] == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").eos_token == "</s>"


def test_solo_is_three_files_and_a_sentencepiece_model(tmp_path: Path) -> None:
    weights = solo_files(tmp_path / "solo")
    plan = plan_solo(tmp_path / "solo", PARTS)
    assert_copied(plan, weights, ("embed_tokens", "lm_head", "embed_vision_patch"))
    start, end = (IMAGE_TOKENS.index(name) + 3 for name in ("<vision>", "</vision>"))
    assert plan.tokenizer.convert_tokens_to_ids(["<vision>", "</vision>"]) == [start, end]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table, old = plan.tensor(f"language_model.{name}"), weights[name]
        assert torch.equal(table[end], old[start]), "</vision> was never trained: it starts as <vision>"
        rows = [row for row in range(330) if row != end]
        assert torch.equal(table[rows], old[rows])
    write(plan, tmp_path / "ours")
    whole = AutoTokenizer.from_pretrained(tmp_path / "ours")
    pieces = sys.modules["sentencepiece"].SentencePieceProcessor(model_proto=sentencepiece_model())
    for text in ("Where is the red mug?", "[INST] ünd [/INST]", "a<vision></vision>b"):
        assert whole(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


def test_eve_is_six_files(tmp_path: Path) -> None:
    weights = eve_files(tmp_path / "eve")
    assert len(list((tmp_path / "eve").glob("model-0000?-of-00006.safetensors"))) == 6
    plan = plan_evev2(tmp_path / "eve", PARTS)
    check(plan)
    ours = "language_model.model.layers.1.mlp.vision.up_proj.weight"
    assert torch.equal(plan.tensor(ours), weights["model.layers.1.moe_mlp.up_proj.weight"])


def test_a_sentencepiece_model_needs_its_packages(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr(folders_load, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"sentencepiece and protobuf must be installed: `pip install 'pixel_sail\["):
        folders_load.load_tokenizer(tmp_path)


@pytest.mark.parametrize("shards", [0, 2])
def test_any_base_in_bins(shards: int, tmp_path: Path) -> None:
    """A tied table that is stored twice is one; the same model as from safetensors, in memory and out of it."""
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    torch.manual_seed(0)
    expected = load(plan_language_model(base, SMALL, QUESTION)).state_dict()
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    names = sorted(weights)
    if shards:
        where = {name: f"pytorch_model-{1 + i % 2:05d}-of-00002.bin" for i, name in enumerate(names)}
        for file in set(where.values()):
            torch.save({name: weights[name] for name in names if where[name] == file}, base / file)
        (base / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        torch.save(weights, base / "pytorch_model.bin")
    torch.manual_seed(0)
    plan = plan_language_model(base, SMALL, QUESTION)
    assert plan.config.text_config.tie_word_embeddings
    actual = load(plan).state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    with pytest.raises(WeightsError, match=r"\*.bin and \*.pth are read by tools/convert.py alone"):
        from_language_model(ModelSection(base=str(base)), SMALL, QUESTION)
    if shards:
        (base / "pytorch_model-00002-of-00002.bin").unlink()
        with pytest.raises(WeightsError, match="lacks pytorch_model-00002-of-00002.bin, which .*index.json names"):
            plan_language_model(base, SMALL, QUESTION)
        (base / "pytorch_model.bin.index.json").unlink()
        with pytest.raises(WeightsError, match="lacks pytorch_model-00002-of-00002.bin, which their names count"):
            plan_language_model(base, SMALL, QUESTION)
    else:
        torch.save(weights | {"lm_head.weight": weights["lm_head.weight"] + 1}, base / "pytorch_model.bin")
        with pytest.raises(WeightsError, match="lm_head.weight and model.embed_tokens.weight differ, but config.json"):
            plan_language_model(base, SMALL, QUESTION)


def test_safetensors_count_their_shards_too(tmp_path: Path) -> None:
    eve_files(tmp_path / "eve")
    (tmp_path / "eve" / "model.safetensors.index.json").unlink()
    (tmp_path / "eve" / "model-00004-of-00006.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks model-00004-of-00006.safetensors, which their names count"):
        plan_evev2(tmp_path / "eve", PARTS)


class Writes:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def damage(kind: str, file: Path, marker: Path) -> None:
    weights = torch.load(file)
    name, tensor = "model.norm.weight", weights["model.norm.weight"]
    match kind:
        case "pointer":
            file.write_text(LFS)
        case "page":
            file.write_text("<!DOCTYPE html><html>")
        case "empty":
            file.write_bytes(b"")
        case "cut":
            os.truncate(file, file.stat().st_size - 1000)
        case "code":
            torch.save(weights | {"x": Writes(marker)}, file)
        case "pickle":
            file.write_bytes(pickle.dumps(Writes(marker)))
        case "old":
            torch.save(weights, file, _use_new_zipfile_serialization=False)
        case "nan":
            torch.save(weights | {name: tensor * float("nan")}, file)
        case "inf":
            torch.save(weights | {name: tensor * float("inf")}, file)
        case "module":
            torch.save(torch.nn.Linear(2, 2), file)
        case "number":
            torch.save(weights | {"step": 5}, file)
        case "list":
            torch.save(list(weights.values()), file)
        case "bytes":
            torch.save(weights | {name: tensor.char()}, file)
        case "sparse":
            torch.save(weights | {name: tensor.float().to_sparse()}, file)
        case "endless":
            torch.save(weights | {name: tensor[:1].expand(10**15)}, file)


DAMAGES = {
    "pointer": "is a git-LFS pointer, not the file itself: run `git lfs pull`",
    "page": "is a web page, not the file itself",
    "empty": "is empty: the download was broken off",
    "cut": "is damaged or not complete",
    "code": "asks for posix.mkdir, which could run code; .*Nothing was run",
    "pickle": "is damaged or not complete",
    "old": "has the format that torch.save wrote before version 1.6",
    "nan": "NaN or infinite values in model.norm.weight",
    "inf": "NaN or infinite values in model.norm.weight",
    "module": "asks for torch.nn.modules.linear.Linear, which could run code",
    "number": "step is a int, no weight",
    "list": "holds no weights by name, but a list",
    "bytes": "model.norm.weight is torch.int8; give unquantized weights",
    "sparse": "model.norm.weight is sparse or quantized",
    "endless": "claims .* more than the file has for it",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_wrong_with_a_bin(kind: str, tmp_path: Path) -> None:
    sail_files(tmp_path / "sail")
    file = tmp_path / "sail" / "pytorch_model.bin"
    damage(kind, file, tmp_path / "marker")
    with pytest.raises(WeightsError, match=DAMAGES[kind]) as refused:
        write(plan_sail(tmp_path / "sail", PARTS), tmp_path / "ours")
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "marker").exists() and not (tmp_path / "ours").exists()


def test_weights_that_share_memory(tmp_path: Path) -> None:
    """The same tensor under two names, views of one storage, a transposed one: each is written for itself."""
    weights = sail_files(tmp_path / "sail")
    layers = [f"model.layers.{layer}.self_attn." for layer in (0, 1)]
    weights |= {f"{at}k_proj.weight": weights[f"{layers[0]}k_proj.weight"] for at in layers}
    shared = torch.stack([weights[f"{at}v_proj.weight"] for at in layers])
    views = {f"{at}v_proj.weight": view for at, view in zip(layers, shared, strict=True)}
    turned = {f"{at}q_proj.weight": weights[f"{at}q_proj.weight"].T.contiguous().T for at in layers}
    torch.save(weights | views | turned, tmp_path / "sail" / "pytorch_model.bin")
    write(plan_sail(tmp_path / "sail", PARTS), tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    for name in [f"{at}{part}_proj.weight" for at in layers for part in "qkv"]:
        assert torch.equal(ours[f"language_model.{name}"], weights[name]), name


@pytest.mark.parametrize("cut", ["end", "middle"])
def test_half_a_checkpoint(cut: str, golden: Path, tmp_path: Path) -> None:
    """Layers that are missing at the end are no smaller model."""
    weights = sail_files(tmp_path / "sail")
    settings = json.loads((tmp_path / "sail" / "config.json").read_text())
    if cut == "end":
        (tmp_path / "sail" / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    kept = {name: tensor for name, tensor in weights.items() if f"layers.{1 if cut == 'end' else 0}." not in name}
    torch.save(kept, tmp_path / "sail" / "pytorch_model.bin")
    missing = 1 if cut == "end" else 0
    message = f"num_hidden_layers 2, the weights have 1 layers; the first that is missing is layer {missing}"
    with pytest.raises(WeightsError, match=message):
        plan_sail(tmp_path / "sail", PARTS)
    research = load_file(golden / "tiny" / "model.safetensors")
    shutil.copytree(golden / "tiny" / "tokenizer", tmp_path / "run" / "tokenizer")
    shutil.copy(golden / "tiny" / "config.json", tmp_path / "run")
    torch.save({name: research[name] for name in research if "layers.0." not in name}, tmp_path / "run" / "iter_1.pth")
    with pytest.raises(WeightsError, match="num_hidden_layers 2, the weights have 1 layers; .*layer 0"):
        plan_research(tmp_path / "run")


@pytest.fixture
def buffer_class(monkeypatch) -> type:
    """mmengine's HistoryBuffer as it pickles itself: arrays, and functions by the name of their class."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.log_history, self.count = np.array([0.5, 0.25]), np.float64(2)
            self.statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = HistoryBuffer.__module__, "HistoryBuffer.mean"
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer
    return HistoryBuffer


def checkpoint(weights: dict[str, Tensor], log: object) -> dict:
    """What mmengine writes as iter_N.pth."""
    moments = {"step": torch.tensor(4.0), "exp_avg": torch.zeros(3)}
    return {
        "meta": {"cfg": "model = dict()", "seed": 1, "iter": 500},
        "state_dict": OrderedDict(weights),
        "message_hub": {"log_scalars": OrderedDict(loss=log), "runtime_info": OrderedDict(iter=500)},
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 4e-5, "params": [0]}]},
        "param_schedulers": [{"last_step": 500, "_last_lr": [4e-5]}],
    }


def test_a_research_run_is_its_iter_pth(golden: Path, tmp_path: Path, buffer_class: type) -> None:
    """With the optimizer and the log beside the weights, and the tokenizer that the run had, or that of its base."""
    work = tmp_path / "work_dirs"
    shutil.copytree(golden / "tiny" / "tokenizer", work / "tokenizer")
    shutil.copy(golden / "tiny" / "config.json", work)
    weights = load_file(golden / "tiny" / "model.safetensors")
    torch.save(checkpoint(weights, buffer_class()), work / "iter_500.pth")
    expected = from_research(golden / "tiny")[0].state_dict()
    for source in (work, work / "iter_500.pth"):
        actual = from_research(source)[0].state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    shutil.copy(work / "iter_500.pth", work / "iter_1000.pth")
    with pytest.raises(WeightsError, match=r"has several checkpoints \(iter_1000.pth, iter_500.pth\): give the file"):
        plan_research(work)
    with pytest.raises(WeightsError, match="asks for mmengine.logging.history_buffer.Other, which could run code"):
        buffer_class.__qualname__ = "Other"
        sys.modules["mmengine.logging.history_buffer"].Other = buffer_class
        sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = buffer_class
        torch.save(checkpoint(weights, buffer_class()), work / "iter_1000.pth")
        plan_research(work / "iter_1000.pth")


def test_a_research_run_of_deepspeed_is_a_folder(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "tiny" / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(golden / "tiny" / "config.json", tmp_path)
    weights, run = load_file(golden / "tiny" / "model.safetensors"), tmp_path / "iter_500.pth"
    run.mkdir()
    for source in (tmp_path, run):
        with pytest.raises(WeightsError, match="iter_500.pth is a folder without mp_rank_00_model_states.pt"):
            plan_research(source)
    saved = {"module": weights, "optimizer": None, "ds_config": {"stage": ZeroStageEnum(2)}, "lr": np.float64(1)}
    torch.save(saved, run / "mp_rank_00_model_states.pt")
    for source in (tmp_path, run):
        plan = plan_research(source)
        assert torch.equal(plan.tensor(EMBED), weights["single_transformer.model.embed_tokens.weight"])


def test_the_tokenizer_of_a_runs_base(golden: Path, tmp_path: Path) -> None:
    """The research code adds its tokens when it starts; they are added as it does."""
    shutil.copy(golden / "tiny" / "config.json", tmp_path)
    own = json.loads((golden / "tiny" / "tokenizer" / "tokenizer.json").read_text())
    own["added_tokens"] = [token for token in own["added_tokens"] if token["content"] not in GROUNDING_TOKENS]
    for name in GROUNDING_TOKENS:
        own["model"]["vocab"].pop(name, None)
    (tmp_path / "tokenizer.json").write_text(json.dumps(own))
    shutil.copy(golden / "tiny" / "tokenizer" / "tokenizer_config.json", tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    kept = {key: settings[key] for key in ("eos_token", "pad_token", "tokenizer_class") if key in settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
    weights = load_file(golden / "tiny" / "model.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "iter_9.pth")
    plan = plan_research(tmp_path)
    assert plan.config.prompt_token_ids == plan_research(golden / "tiny").config.prompt_token_ids
    (tmp_path / "iter_9.pth").unlink()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="lacks special tokens; it does not belong to these weights"):
        plan_research(tmp_path)


def seven_b() -> dict[str, Tensor]:
    """The names of the research code's 7B: EVEv2's, and a mask head of two blocks."""
    generator = torch.Generator().manual_seed(7)
    width, mask_dim = EVEV2.hidden, 16
    shapes = {}
    for block in range(2):
        at = f"upsample_blocks.{block}."
        shapes |= {f"{at}0.weight": (width, width, 2, 2), f"{at}0.bias": (width,), f"{at}3.ln.weight": (width,)}
        shapes |= {f"{at}2.depthwise.weight": (width, 1, 3, 3), f"{at}2.depthwise.bias": (width,)}
        shapes |= {f"{at}2.pointwise.weight": (width, width, 1, 1), f"{at}2.pointwise.bias": (width,)}
        shapes |= {f"{at}3.ln.bias": (width,)}
    for name in ("image_feature_projector", "seg_token_projector"):
        shapes |= {f"{name}.0.weight": (width, width), f"{name}.0.bias": (width,)}
        shapes |= {f"{name}.2.weight": (mask_dim, width), f"{name}.2.bias": (mask_dim,)}
    head = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return {f"single_transformer.{name}": tensor for name, tensor in weights_of(EVEV2).items()} | head


def test_the_7b_of_the_research_code(tmp_path: Path) -> None:
    """EVEv2 with its ways, and a trained mask head; the tokenizer is that of EVEv2, as the run found it."""
    weights, run = seven_b(), tmp_path / "run"
    eve_files(tmp_path / "eve")
    run.mkdir()
    for file in (tmp_path / "eve").iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name:
            shutil.copy(file, run)
    torch.save(checkpoint(weights, None), run / "iter_9.pth")
    plan, eve = plan_research(run), plan_evev2(tmp_path / "eve", PARTS)
    architecture, ways = plan.config.architecture, eve.config.architecture
    assert architecture.mask_stride == 8 and architecture.mask_dim == 16
    same = {"mask_stride", "mask_channels"}
    assert architecture.model_dump(exclude=same) == ways.model_dump(exclude=same)
    tokens, words = (SpecialTokens.of(each.tokenizer) for each in (plan, eve))
    base = len(AutoTokenizer.from_pretrained(run))
    assert tokens.seg == base and tokens.vision_start == base + len(GROUNDING_TOKENS)  # in the order of the run
    model, expected = load(plan), load(eve).state_dict()
    for name, tensor in model.state_dict().items():
        if "embed_tokens" in name or "lm_head" in name:
            old = weights[name.replace("language_model", "single_transformer")]
            assert torch.equal(tensor[: tokens.vision_start], old[: tokens.vision_start]), "trained rows of the run"
        elif not name.startswith("mask_head"):
            assert torch.equal(tensor, expected[name]), name
    table = model.state_dict()[EMBED]
    assert torch.equal(table[tokens.vision_start], expected[EMBED][words.vision_start])
    assert torch.equal(table[tokens.vision_end], weights["single_transformer.model.vision_tower.split_embedding"])
    head = model.mask_head.state_dict()
    assert torch.equal(head["blocks.1.pointwise.weight"], weights["upsample_blocks.1.2.pointwise.weight"][:, :, 0, 0])
    assert torch.equal(head["seg_projector.2.weight"], weights["seg_token_projector.2.weight"])
    torch.save({"state_dict": weights | {"image_pooler.weight": torch.ones(2)}}, run / "iter_9.pth")
    with pytest.raises(WeightsError, match=r"keys that no research checkpoint has: \['image_pooler.weight'\]"):
        plan_research(run)


def test_a_tied_research_run_stays_tied(golden: Path, tmp_path: Path) -> None:
    """Qwen2.5-0.5B has one table, which the checkpoint has under both names."""
    shutil.copytree(golden / "tiny" / "tokenizer", tmp_path / "tokenizer")
    settings = json.loads((golden / "tiny" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    weights = load_file(golden / "tiny" / "model.safetensors")
    weights["single_transformer.lm_head.weight"] = weights["single_transformer.model.embed_tokens.weight"]
    torch.save({"state_dict": weights}, tmp_path / "iter_9.pth")
    plan = plan_research(tmp_path)
    assert plan.config.text_config.tie_word_embeddings and "language_model.lm_head.weight" not in check(plan)


def test_a_bin_is_mapped(tmp_path: Path) -> None:
    """8 GB of holes, as torch reserves them: names and shapes without memory, and one tensor at a time."""
    file, before = tmp_path / "pytorch_model.bin", peak_bytes()
    with torch.serialization.skip_data():  # untouched memory is none
        torch.save({f"a{i}": torch.empty(1000, 1000, 1000) for i in range(2)} | {"b": torch.empty(3)}, file)
    assert file.stat().st_size > 8e9
    files = WeightFiles(tmp_path, pickled=True)
    assert files.shapes["a1"] == (1000, 1000, 1000)
    assert files.tensor("a1")[5, 5, 5] == 0 and files.finite_tensor("b").shape == (3,)
    assert peak_bytes() - before < 100_000_000


def test_a_prefix_is_not_taken_off_to_a_name_that_is_there(tmp_path: Path) -> None:
    """Else one of the two weights would be lost without a word."""
    save_file({name: torch.zeros(2) for name in ("a.x", "a.y", "y")}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"has both a\.y and y: keep one of them"):
        WeightFiles(tmp_path).strip("a.")
