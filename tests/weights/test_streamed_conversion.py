"""Conversion shard by shard: any decoder from its files, in the memory of a shard; output is complete or absent."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_bases import EVEV2, write_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.config import REPOSITORY, ModelSection
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.model.generation import Sampling
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.tokens import PROMPTS, SEG
from pixel_sail.weights.convert.language_model import from_language_model, plan_language_model
from pixel_sail.weights.convert.scratch import train_tokenizer
from pixel_sail.weights.convert.streaming import check, write
from pixel_sail.weights.files import new_folder, split_by_size

TEXTS = ["Where is the red mug on the table?", "Please segment the ball.", "It is here."] * 3
PARTS = Architecture(patch_size=16, mask_stride=4, mask_dim=24, max_side_px=64)
QUESTION = "Segment {expression}."
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODERS = {
    "llama, tied": LlamaConfig(**SIZES, vocab_size=293, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2, padded rows": Qwen2Config(**SIZES, vocab_size=400, num_key_value_heads=2),
}


def save_base(config: LlamaConfig | Qwen2Config, folder: Path) -> tuple[PreTrainedModel, Path]:
    """A decoder with random weights, in several files; rows beyond the tokenizer are zero."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokenizer = train_tokenizer(TEXTS, 290)
    with torch.no_grad():
        for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            weight[len(tokenizer) :] = 0
    model.save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return model, folder


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS.keys())
@torch.no_grad()
def test_any_decoder_from_its_files(config: LlamaConfig | Qwen2Config, tmp_path: Path) -> None:
    base, folder = save_base(config, tmp_path / "base")
    torch.manual_seed(0)
    write(plan_language_model(folder, PARTS, QUESTION), tmp_path / "ours", shard_bytes=150_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    predictor = Predictor.from_pretrained(tmp_path / "ours")
    model, encoder = predictor.model, predictor.encoder
    known = len(AutoTokenizer.from_pretrained(folder))
    ours = model.language_model.state_dict()
    for name, tensor in base.state_dict().items():
        rows = known if "embed_tokens" in name or "lm_head" in name else len(tensor)
        assert torch.equal(ours[name][:rows], tensor[:rows]), name
    # random new rows would be said by a random model: silent here as in the base
    output = model.language_model.get_output_embeddings().weight
    output[known:] = 0
    assert (output is model.language_model.get_input_embeddings().weight) == config.tie_word_embeddings
    stop = encoder.end_ids[0]
    for text in ("Where is the red mug?", "the ball"):
        ids = torch.tensor([encoder.question_ids(text)])
        whole = base.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=stop, pad_token_id=stop)
        new = [token for token in whole[0, ids.shape[1] :].tolist() if token != stop]
        assert predictor.chat(None, text, sampling=Sampling(20))[0].text == encoder.tokenizer.decode(new)


def test_both_ways_start_the_same_kind_of_model(tmp_path: Path) -> None:
    """Shard by shard and in memory: same base weights, same config, new rows even if the base has spare ones."""
    _, folder = save_base(DECODERS["qwen2, padded rows"], tmp_path / "base")
    write(plan_language_model(folder, PARTS, QUESTION), tmp_path / "ours")
    pieces = PixelSail.from_pretrained(tmp_path / "ours")
    whole, tokenizer = from_language_model(ModelSection(base=str(folder)), PARTS, QUESTION)
    a, b = pieces.state_dict(), whole.state_dict()
    assert {name: tensor.shape for name, tensor in a.items()} == {name: tensor.shape for name, tensor in b.items()}
    for key in ("architecture", "chat_format", "question", "prompt_token_ids"):
        assert getattr(pieces.config, key) == getattr(whole.config, key)
    for state in (a, b):
        words = state["language_model.model.embed_tokens.weight"]
        assert torch.equal(state["fusion.prompt_linear.weight"], torch.eye(words.shape[1]))
        patches = torch.randn(400, 3 * PARTS.patch_size**2) @ state["fusion.patch_linear.weight"].T
        torch.testing.assert_close(patches.std(), words.std(), atol=0, rtol=0.15)  # a patch has the size of a word
    ids = tokenizer.convert_tokens_to_ids([SEG, *PROMPTS])
    for state in (a, b):
        for end in ("model.embed_tokens", "lm_head"):
            rows = state[f"language_model.{end}.weight"]
            assert 0.7 < float(rows[ids].std() / rows[:200].std()) < 1.4, "new tokens were left at zero"


def test_names_that_transformers_would_translate_are_refused(tmp_path: Path) -> None:
    _, folder = save_base(DECODERS["llama, tied"], tmp_path / "base")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    weights = load_file(folder / first)
    name = sorted(weights)[0]
    save_file({f"old.{key}" if key == name else key: tensor for key, tensor in weights.items()}, folder / first)
    with pytest.raises(ValueError) as refused:
        write(plan_language_model(folder, PARTS, QUESTION), tmp_path / "ours")
    assert f"missing language_model.{name}" in str(refused.value)
    assert f"unexpected language_model.old.{name}" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"], "nothing may be left behind"


def test_a_full_folder_is_not_overwritten(tmp_path: Path) -> None:
    _, folder = save_base(DECODERS["llama, tied"], tmp_path / "base")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match="is not empty; give another --out"):
        write(plan_language_model(folder, PARTS, QUESTION), folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_key_that_nothing_reads_is_not_forgotten(tmp_path: Path) -> None:
    _, folder = save_base(DECODERS["llama, tied"], tmp_path / "base")
    plan = plan_language_model(folder, PARTS, QUESTION)
    derived = {name: weight for name, weight in plan.derived.items() if name != "language_model.model.norm.weight"}
    with pytest.raises(ValueError, match="missing language_model.model.norm.weight; unexpected model.norm.weight"):
        check(replace(plan, derived=derived))


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "ours") as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyError("the disk is full, say")
    assert list(tmp_path.iterdir()) == []


def test_shards_are_cut_in_order() -> None:
    assert split_by_size({"a": 3, "b": 3, "c": 5, "d": 9, "e": 1}, 6) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_the_tool_and_the_dtypes(tmp_path: Path, monkeypatch, capsys) -> None:
    def convert(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["tools/convert.py", *map(str, arguments)])
        runpy.run_path(str(REPOSITORY / "tools" / "convert.py"), run_name="__main__")

    folder = write_base(EVEV2, tmp_path / "base")
    convert("evev2", folder, "--out", tmp_path / "ours", "--dtype", "bf16", "--shard-gb", "0.0001")
    printed = capsys.readouterr().out
    assert re.search(r"0\.\d million parameters, \d\.\d GB of memory at most", printed)
    assert (
        "differs from the base: an image stood in the first question, after a system message; now it comes first"
        in printed
    )
    files = WeightFiles(tmp_path / "ours")
    assert set(files.dtypes.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "bfloat16"
    assert PixelSail.from_pretrained(tmp_path / "ours").dtype == torch.float32
    with pytest.raises(SystemExit, match="is not empty"):
        convert("evev2", folder, "--out", tmp_path / "ours")
    with pytest.raises(SystemExit, match="it does not belong to SOLO weights"):
        convert("solo", folder, "--out", tmp_path / "no")
    _, folder = save_base(DECODERS["llama, tied"], tmp_path / "llama")
    convert("language-model", folder, "--out", tmp_path / "pieces", "--patch-size", 14, "--mask-dim", 8)
    convert("language-model", folder, "--out", tmp_path / "whole", "--patch-size", 14, "--mask-dim", 8, "--in-memory")
    a, b = (WeightFiles(tmp_path / name).shapes for name in ("pieces", "whole"))
    assert a == b and PixelSail.from_pretrained(tmp_path / "whole").config.architecture.max_side_px == 1022


MEGABYTE = 1_000_000
WIDE = Qwen2Config(
    vocab_size=400, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=8, tie_word_embeddings=True,
)  # fmt: skip


def test_memory_is_that_of_a_shard(tmp_path: Path) -> None:
    """0.5 GB of weights in two files, written in shards of 70 MB: the process grows by little more than a shard."""
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(WIDE).state_dict()
    shapes.pop("lm_head.weight")
    folder, total = tmp_path / "base", sum(tensor.numel() * 4 for tensor in shapes.values())
    assert total > 500 * MEGABYTE
    write_zeros(folder, {name: tuple(tensor.shape) for name, tensor in shapes.items()})
    (folder / "config.json").write_text(WIDE.to_json_string(use_diff=False))
    train_tokenizer(TEXTS, 290).save_pretrained(folder)
    script = (
        "import sys, torch; from pathlib import Path; from pixel_sail.architecture import Architecture\n"
        "from pixel_sail.weights.convert.language_model import plan_language_model\n"
        "from pixel_sail.weights.convert.streaming import write\n"
        "from pixel_sail.weights.files import peak_bytes\n"
        "parts = Architecture(mask_stride=16, mask_dim=8)\n"
        "plan = plan_language_model(Path(sys.argv[1]), parts, 'Segment {expression}.')\n"
        "before = peak_bytes()\n"
        "write(plan, Path(sys.argv[2]), shard_bytes=70_000_000)\n"
        "print(peak_bytes() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder, tmp_path / "ours"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    extra = int(done.stdout.split()[-1])
    print(f"peak {extra / MEGABYTE:.0f} MB above the start, for {total / MEGABYTE:.0f} MB of weights")
    assert extra < 140 * MEGABYTE
    assert sum(path.stat().st_size for path in (tmp_path / "ours").glob("*.safetensors")) > total


def write_zeros(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Two safetensors files of zeros that take no room on a disk: the header, then a hole."""
    folder.mkdir()
    names = sorted(shapes)
    for number, part in enumerate((names[::2], names[1::2])):
        header, end = {}, 0
        for name in part:
            begin, end = end, end + 4 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(folder / f"part{number}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
