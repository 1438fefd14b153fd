"""Adapters, frozen weights and their way back into plain ones; every number against what the live model says."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run  # noqa: F401  (chooses the CPU)
import torch
from conftest import write_refer_dataset
from tiny_run import assert_same_bits, forget_second_half, tiny_config, weights
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerBase, Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.config import REPOSITORY, Config, ConfigError, LoraConfig
from pixel_sail.data.mixture import open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens
from pixel_sail.train import finetune, quantize
from pixel_sail.train.build import build_encoder, build_model
from pixel_sail.train.engine import Engine
from pixel_sail.train.finetune import NewRows, freeze, prepare_finetuning
from pixel_sail.train.loop import train
from pixel_sail.train.optim import parameter_groups
from pixel_sail.types import Batch
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.convert.scratch import train_tokenizer
from pixel_sail.weights.merge import merged

LORA = "train.lora={rank: 4, alpha: 12, dropout: 0.1}"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
DECODERS = {
    "llama": (LlamaConfig, {}),  # a head of its own
    "tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "twins": (Qwen2Config, {"vision_experts": True}),  # as EVEv2
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("finetune") / "root")


def small_model(kind: str) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    tokenizer = train_tokenizer(["the red one", "the green thing"] * 3, 290)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    add_special_tokens(tokenizer)
    make, options = DECODERS[kind]
    tied = options.get("tie_word_embeddings", False)
    text = make(vocab_size=len(tokenizer) + 5, tie_word_embeddings=tied, **SIZES)
    torch.manual_seed(0)
    architecture = Architecture(max_side_px=64, mask_stride=8, mask_dim=8, vision_experts="vision_experts" in options)
    config = PixelSailConfig(text, architecture, tie_word_embeddings=tied, chat_format="research",
                             prompt_token_ids=list(SpecialTokens.of(tokenizer).prompts))  # fmt: skip
    return PixelSail(config).eval(), tokenizer


def batch_for(model: PixelSail, tokenizer: PreTrainedTokenizerBase, config: Config) -> Batch:
    encoder, mixture = build_encoder(config, model, tokenizer), open_mixture(config)
    tokens = encoder.tokens
    return pack([encoder.encode(mixture.sample(position)) for position in range(3)], tokens.seg, tokens.vision_patch)


@pytest.mark.parametrize("kind", DECODERS)
def test_merged_weights_say_what_the_adapters_say(kind: str, tmp_path: Path, root: Path) -> None:
    config = tiny_config(tmp_path, root, "train.lora={rank: 4, alpha: 12}")
    (model, tokenizer), (plain, _) = small_model(kind), small_model(kind)
    batch = batch_for(model, tokenizer, config)
    with torch.no_grad():
        before = model(batch)
        prepare_finetuning(model, tokenizer, config)
        start = model(batch)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        live = model(batch)
        tied = {name for name in plain.state_dict() if name in plain.all_tied_weights_keys}
        state = {name: tensor for name, tensor in model.state_dict().items() if not tied & {_plain_name(name)}}
        state = merged(state, config.train.lora)
        assert state.keys() == plain.state_dict().keys() - tied
        plain.load_state_dict(state, strict=False)
        output = plain(batch)
    torch.testing.assert_close(start.logits, before.logits, atol=1e-6, rtol=0)  # adapters start as nothing
    assert (live.logits - before.logits).abs().max() > 0.1
    torch.testing.assert_close(output.logits, live.logits, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(output.mask_logits, live.mask_logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _plain_name(name: str) -> str:
    for part in (".table", ".rows", ".ids"):
        name = name.replace(part, "" if part == ".table" else ".weight")
    return name


def test_every_linear_of_the_layers_and_both_twins(tmp_path: Path, root: Path) -> None:
    def adapted(kind: str, *overrides: str) -> set[str]:
        model, tokenizer = small_model(kind)
        prepare_finetuning(model, tokenizer, tiny_config(tmp_path, root, *overrides))
        names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
        return {name.split(".layers.")[1].removesuffix(".lora_A.default.weight") for name in names}

    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    mlp = {f"{name}_proj" for name in ("gate", "up", "down")}
    layers, twins = range(2), ("text", "vision")
    stock = {f"{i}.{name}" for i in layers for name in attention | {f"mlp.{part}" for part in mlp}}
    assert adapted("llama", "train.lora={}") == stock
    q = {f"{i}.self_attn.q_proj.{twin}" for i in layers for twin in twins}
    paired = {f"{i}.{name}.{twin}" for i in layers for name in attention for twin in twins}
    paired |= {f"{i}.mlp.{twin}.{name}" for i in layers for twin in twins for name in mlp}
    assert adapted("twins", "train.lora={}") == paired
    assert adapted("twins", "train.lora={targets: [q_proj, down_proj]}") == q | {n for n in paired if "down" in n}
    assert adapted("twins", "train.lora={targets: [vision]}") == {name for name in paired if "vision" in name}
    frozen = adapted("llama", "train.lora={}", "train.freeze=['*.layers.0.*']")
    assert frozen == {name for name in stock if name.startswith("1.")}  # a frozen linear gets no adapter


def test_adapters_start_alike_whatever_was_drawn_before(tmp_path: Path, root: Path) -> None:
    starts = []
    for seed in (1, 2):
        model, tokenizer = small_model("llama")
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        prepare_finetuning(model, tokenizer, tiny_config(tmp_path, root, "train.lora={}"))
        assert torch.equal(torch.random.get_rng_state(), before)
        starts.append({name: p for name, p in model.named_parameters() if ".lora_A." in name})
    assert all(torch.equal(tensor, starts[1][name]) for name, tensor in starts[0].items())


def test_new_rows_are_a_part_of_the_table() -> None:
    torch.manual_seed(0)
    table, head, ids = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), [7, 2]
    rows, ends = NewRows(table, ids), NewRows(head, ids)
    nn.init.normal_(rows.rows)
    nn.init.normal_(ends.rows)
    x, whole = torch.tensor([[1, 2, 7], [2, 8, 0]]), table.weight.detach().clone()
    whole[ids] = rows.rows.detach()
    assert torch.equal(rows(x), whole[x])
    rows(x).square().sum().backward()
    torch.testing.assert_close(rows.rows.grad, 2 * rows.rows.detach() * torch.tensor([[1.0], [2.0]]))
    states, whole = torch.randn(3, 4), head.weight.detach().clone()
    whole[ids] = ends.rows.detach()
    torch.testing.assert_close(ends(states), states @ whole.T)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The folder of a finished run with adapters, a frozen patch embedding and weight decay."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_config(folder, root, LORA, "train.freeze=['fusion.*', '*_projector.*']", "train.weight_decay=0.5"))
    return folder


def test_what_is_frozen_stays_and_the_rest_moves(trained: Path, root: Path) -> None:
    model, tokenizer = build_model(tiny_config(trained, root))
    before, after = model.state_dict(), weights(trained / "run")
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    linears = {f"{n}.weight" for n, m in model.language_model.model.layers.named_modules() if isinstance(m, nn.Linear)}
    embeddings = "language_model.model.embed_tokens.weight"
    wanted = {f"language_model.model.layers.{name}" for name in linears} | {embeddings}
    assert moved == wanted | {name for name in before if name.startswith("mask_head.blocks")}
    ids, used = sorted(SpecialTokens.of(tokenizer).all_ids), (after[embeddings] != before[embeddings]).any(1)
    assert set(used.nonzero()[:, 0].tolist()) == set(ids)  # those that were not in the text: from the head's softmax


def test_what_is_frozen_has_no_optimizer_state(trained: Path, root: Path) -> None:
    config = tiny_config(trained, root, LORA, "train.freeze=['fusion.*']")
    model, tokenizer = build_model(config)
    prepare_finetuning(model, tokenizer, config)
    groups = parameter_groups(model, config.train)
    held = {id(parameter) for group in groups for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert names == {n for n, _ in model.named_parameters() if ".lora_" in n or n.startswith("mask_head")} | {
        "language_model.model.embed_tokens.rows"
    }
    rows = next(
        group for group in groups if any(p is model.language_model.model.embed_tokens.rows for p in group["params"])
    )
    assert rows["weight_decay"] == 0  # as embeddings


@pytest.mark.parametrize(
    "overrides", [[], ["train.zero_stage=2", "train.precision=bf16"], ["train.zero_stage=3"]], ids=str
)
def test_two_and_two_steps_are_four(tmp_path: Path, root: Path, overrides: list[str]) -> None:
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    for folder, save_every in ((straight, 100), (interrupted, 2)):
        folder.mkdir()
        train(tiny_config(folder, root, LORA, f"train.save_every={save_every}", *overrides))
    forget_second_half(interrupted / "run")
    train(tiny_config(interrupted, root, LORA, "train.save_every=2", *overrides))
    assert_same_bits(straight / "run", interrupted / "run")


def test_other_adapters_do_not_go_on(trained: Path, root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"train.lora.rank was 4, is 8"):
        train(tiny_config(copy, root, "train.lora={rank: 8, alpha: 12, dropout: 0.1}"))


def test_a_checkpoint_is_what_the_run_exports(trained: Path) -> None:
    model, _ = model_of_checkpoint(trained / "run/checkpoints/step_00000004")
    exported = PixelSail.from_pretrained(trained / "run/export").state_dict()
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, exported[name])] == []


def test_the_export_loads_and_speaks_without_peft(trained: Path) -> None:
    script = (
        "import sys; sys.modules['peft'] = None\n"
        "from pixel_sail.serve.predictor import Predictor\n"
        f"predictor = Predictor.from_pretrained({str(trained / 'run/export')!r})\n"
        f"print(len(predictor.segment({str(REPOSITORY / 'docs/images/front.jpg')!r}, 'the red one')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400, cwd=REPOSITORY)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["train.freeze=['fusion.*', 'lm_heat.*']"],
            r"'lm_heat.\*' matches no parameter; there are .*layers.\*.*\(2\)",
        ),
        (["train.freeze=['*']"], "leaves nothing to train"),
        (["train.lora={targets: [query]}"], r"\['query'\] are in no name of a linear: .*q_proj"),
        (["train.lora={quantize: nf4}"], "nf4 needs a GPU, and there is none"),
        (["train.lora={quantize: nf4}", "train.zero_stage=2"], "nf4 needs train.zero_stage=0"),
    ],
    ids=str,
)
def test_what_cannot_be_done(overrides: list[str], message: str, tmp_path: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config = tiny_config(tmp_path, root, *overrides)
        prepare_finetuning(*build_model(config), config)


def test_without_peft(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune.importlib.util, "find_spec", lambda name: None)
    config = tiny_config(tmp_path, root, LORA)
    model, tokenizer = small_model("llama")
    with pytest.raises(ConfigError, match=r"needs PEFT: pip install 'pixel_sail\[lora\]'"):
        prepare_finetuning(model, tokenizer, config)


def test_frozen_names_are_told() -> None:
    model, _ = small_model("llama")
    said = freeze(model, "language_model.*.mlp.*")
    kinds = [f"language_model.model.layers.*.mlp.{name}_proj.weight (2)" for name in ("gate", "up", "down")]
    assert said == f"frozen by language_model.*.mlp.*: {', '.join(kinds)}"


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install '.[qlora]'"
)
def test_nf4(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes also has 4-bit linears for the CPU, slow ones: the same classes, the same files."""
    monkeypatch.setattr(quantize, "_check", lambda train: None)
    nf4, scratch = "train.lora={rank: 4, quantize: nf4}", "model.scratch.hidden_size=64"
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    engines: list[Engine] = []
    start = Engine.__init__
    monkeypatch.setattr(
        Engine, "__init__", lambda self, *arguments, **named: engines.append(self) or start(self, *arguments, **named)
    )
    for folder, save_every in ((straight, 100), (interrupted, 2)):
        folder.mkdir()
        train(tiny_config(folder, root, nf4, scratch, "train.precision=fp32", f"train.save_every={save_every}"))
    # In training mode: for inference bitsandbytes has a bf16 kernel on some CPUs. There is no dropout.
    live, exported = engines[1].model.train(), PixelSail.from_pretrained(interrupted / "run/export")
    config = tiny_config(interrupted, root, nf4, scratch, "train.precision=fp32", "train.save_every=2")
    tokenizer = model_of_checkpoint(interrupted / "run/checkpoints/step_00000004")[1]
    batch = batch_for(live, tokenizer, config)
    with torch.no_grad():
        torch.testing.assert_close(exported(batch).logits, live(batch).logits, atol=1e-5, rtol=1e-5)
    packed = [p for p in live.parameters() if p.dtype == torch.uint8]
    assert len(packed) == 14 and not any(p.requires_grad for p in packed)
    read = model_of_checkpoint(interrupted / "run/checkpoints/step_00000004")[0].state_dict()
    assert all(torch.equal(tensor, exported.state_dict()[name]) for name, tensor in read.items())
    forget_second_half(interrupted / "run")
    train(config)
    assert_same_bits(straight / "run", interrupted / "run")
    linear = next(module for module in live.modules() if type(module).__name__ == "FrozenLinear")
    saved = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    linear.load_state_dict(saved)
    saved["weight"][0] += 1
    with pytest.raises(RuntimeError, match="weight is another than the run began with: its start has changed"):
        linear.load_state_dict(saved)


def test_scale_and_rows_of_the_merge() -> None:
    state = {
        "a.base_layer.weight": torch.eye(2), "a.base_layer.bias": torch.ones(2),
        "a.lora_A.default.weight": torch.tensor([[1.0, 2.0]]), "a.lora_B.default.weight": torch.tensor([[3.0], [4.0]]),
        "b.table.weight": torch.zeros(3, 2), "b.rows": torch.ones(1, 2), "b.ids": torch.tensor([2]),
        "head.ids": torch.tensor([2]), "c.weight": torch.ones(1),
    }  # fmt: skip
    weights = merged(state, LoraConfig(rank=1, alpha=0.5))
    assert weights.keys() == {"a.weight", "a.bias", "b.weight", "c.weight"}
    assert weights["a.weight"].tolist() == [[2.5, 3.0], [2.0, 5.0]] and weights["b.weight"].tolist() == [
        [0, 0],
        [0, 0],
        [1, 1],
    ]
