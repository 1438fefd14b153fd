"""The planner against what is really built and really held."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run  # noqa: F401  (chooses the CPU)
import torch
from conftest import write_refer_dataset
from tiny_base import save_base
from torch import Tensor, nn

from pixel_sail.bench.plan import count_parameters, plan, planned_model
from pixel_sail.config import REPOSITORY, Config, build_config, load_config
from pixel_sail.data.mixture import open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.errors import WeightsError
from pixel_sail.losses import loss_counts
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train import distributed
from pixel_sail.train.build import build_encoder, build_model
from pixel_sail.train.distillation import build_adapters
from pixel_sail.train.engine import Engine, LossModule
from pixel_sail.train.finetune import prepare_finetuning
from pixel_sail.train.memory import (
    EXPERT_WIDTH,
    Mode,
    TokenCounts,
    activation_bytes,
    decide_checkpointing,
    optimizer_bytes,
    state_bytes,
)
from pixel_sail.train.optim import build_optimizer, parameter_groups
from pixel_sail.types import Batch
from pixel_sail.weights.start import with_start

EXPERT = {"kind": "timm", "path": "x", "size_px": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def make(model: dict[str, Any], root: Path | None = None, **sections: dict[str, Any]) -> Config:
    values = {
        "run": {"dir": "unused"},
        "model": model,
        "architecture": {"patch_size": 16, "max_side_px": 256, "mask_dim": 16},
        "data": {"root": str(root), "mixture": [{"source": "refcoco"}], "max_length": 512, "workers": 0},
        "train": {"steps": 1, "batch_size": 2},
        "loss": {"points": 64},
    }
    values |= {name: values.get(name, {}) | changes for name, changes in sections.items() if name != "experts"}
    return build_config(values | {"experts": sections.get("experts", [])}, where="test")


def shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(parameter.shape), parameter.requires_grad) for name, parameter in model.named_parameters()}


# Parameters


@pytest.mark.parametrize(
    ("changes", "train"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {}),
        ({"spare_rows": 5}, {}),  # fewer than our special tokens
        ({"spare_rows": 99}, {}),  # more
        ({"tie_word_embeddings": True}, {"lora": {"rank": 3}}),
        ({}, {"lora": {"rank": 3, "targets": ["q_proj"]}, "freeze": ["mask_head.*"]}),
    ],
    ids=str,
)
def test_the_planned_model_is_the_one_that_is_built(changes: dict, train: dict, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", **changes)
    config = make({"base": str(folder)}, train={"steps": 1, "batch_size": 2} | train)
    model, tokenizer = build_model(config)
    prepare_finetuning(model, tokenizer, config)
    planned = planned_model(config)
    assert shapes(planned.model) == shapes(model)
    assert planned.notes == [] and {parameter.device.type for parameter in planned.model.parameters()} == {"meta"}
    counts = count_parameters(planned)
    assert sum(total for total, _ in counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(trained for _, trained in counts.values()) == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    assert set(counts) >= {"decoder layers", "token embeddings and head", "patches and prompts", "mask head"}
    assert ("LoRA adapters" in counts) == ("lora" in train)


def test_from_an_export_and_from_scratch(base: Path, tmp_path: Path, dataset: Path) -> None:
    model, tokenizer = build_model(make({"base": str(base)}, architecture={"mask_stride": 8}))
    model.save_pretrained(tmp_path / "export")
    tokenizer.save_pretrained(tmp_path / "export")
    config = build_config(
        make({"base": "x"}).model_dump(mode="json")
        | {
            "model": {},
            "architecture": {},
            "train": {"steps": 1, "batch_size": 2, "init_from": str(tmp_path / "export")},
        },
        where="test",
    )
    assert shapes(planned_model(with_start(config)).model) == shapes(model)
    scratch = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_size": 64, "vocab_size": 300}
    config = make(
        {"scratch": scratch}, dataset, architecture={"patch_size": 8, "small_images": {"stem_widths": [8, 16]}}
    )
    planned, (model, _) = planned_model(config), build_model(config)
    planned_shapes, built_shapes = shapes(planned.model), shapes(model)
    different = {name for name in built_shapes if planned_shapes[name] != built_shapes[name]}
    assert planned_shapes.keys() == built_shapes.keys() and different <= {"language_model.model.embed_tokens.weight"}
    assert "at most" in planned.notes[0] or "the most" in planned.notes[0]
    rows = [shapes_of["language_model.model.embed_tokens.weight"][0][0] for shapes_of in (planned_shapes, built_shapes)]
    assert rows[0] == 322 >= rows[1]


def test_a_base_that_is_only_a_config(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    planned = planned_model(make({"base": str(tmp_path)}))
    assert "no tokenizer" in planned.notes[0]
    assert shapes(planned.model) == shapes(build_model(make({"base": str(base)}))[0])
    with pytest.raises(WeightsError, match="download"):
        planned_model(make({"base": str(tmp_path / "nowhere")}))


def test_adapters_of_experts_are_counted(base: Path) -> None:
    experts = [EXPERT | {"name": "a", "at": "patches"}, EXPERT | {"name": "b", "at": "mask_features"}]
    counts = count_parameters(planned_model(make({"base": str(base)}, experts=experts)))
    number = (32 + 1) * EXPERT_WIDTH + (16 + 1) * EXPERT_WIDTH
    assert counts["distillation adapters"] == (number, number)


# Optimizer


@pytest.mark.parametrize("train", [{}, {"lora": {"rank": 3}}, {"muon": {}}, {"freeze": ["fusion.*"]}], ids=str)
def test_optimizer_bytes_are_what_torch_holds(train: dict, base: Path) -> None:
    config = make({"base": str(base)}, train={"steps": 1, "batch_size": 2} | train)
    model, tokenizer = build_model(config)
    prepare_finetuning(model, tokenizer, config)
    optimizer = build_optimizer(parameter_groups(model, config.train), config.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state_of_torch = sum(_tensor_bytes(state) for state in optimizer.state.values())
    assert state_of_torch == optimizer_bytes(parameter_groups(planned_model(config).model, config.train)) > 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_deepspeed_holds(stage: int, base: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ZeRO-3 puts a linear of its own into torch: not into the tests that follow
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    config = make(
        {"base": str(base)}, dataset, train={"steps": 1, "batch_size": 2, "precision": "bf16", "zero_stage": stage}
    )
    distributed.start()
    model, tokenizer = build_model(config)
    batch = _batch(config, model, tokenizer)
    engine = Engine(model, config, [MaskHead])
    scales = dict.fromkeys(loss_counts(config), 1.0)
    engine.forward_backward(batch, scales, last=False)
    engine.forward_backward(batch, scales, last=True)
    gradients = _gradient_bytes(engine.deepspeed.optimizer, stage)
    engine.step(1e-3)
    planned = planned_model(config).model
    weights, groups = (
        sum(parameter.numel() for parameter in planned.parameters()),
        parameter_groups(planned, config.train),
    )
    expected = state_bytes(weights, groups, stage, "bf16", gpus=1)
    inner = engine.deepspeed.optimizer.optimizer
    masters = [parameter for group in inner.param_groups for parameter in group["params"]]
    if stage == 3:  # it lends them to the optimizer, one group at a time
        masters = engine.deepspeed.optimizer.fp32_partitioned_groups_flat
    state_of_optimizer = _bytes(masters) + sum(_tensor_bytes(state) for state in inner.state.values())
    assert state_of_optimizer == pytest.approx(expected.optimizer, rel=0.01)
    weights_of_rank = [
        getattr(parameter, "ds_tensor", parameter) for parameter in engine.deepspeed.module.model.parameters()
    ]
    assert _bytes(weights_of_rank) == pytest.approx(expected.weights, rel=0.01)
    in_bf16 = 2 * weights if stage == 1 else 0  # gradients as they come, freed once they are added up
    assert gradients == pytest.approx(expected.gradients - in_bf16, rel=0.01)


def test_shares_of_gpus_and_what_is_moved(base: Path) -> None:
    model = planned_model(make({"base": str(base)})).model
    weights = sum(parameter.numel() for parameter in model.parameters())
    groups = parameter_groups(model, make({"base": str(base)}).train)
    share = -(-weights // 4)
    stage_1, stage_2, stage_3 = (state_bytes(weights, groups, stage, "bf16", 4) for stage in (1, 2, 3))
    assert (stage_1.weights, stage_2.weights, stage_3.weights) == (2 * weights, 2 * weights, 2 * share)
    assert (stage_1.gradients, stage_2.gradients, stage_3.gradients) == (6 * weights, 4 * share, 4 * share)
    assert stage_1.optimizer == stage_2.optimizer == stage_3.optimizer == 12 * share + 4 * len(groups)
    moved = state_bytes(weights, groups, 3, "bf16", 4, offload="parameters")
    assert (moved.weights, moved.gradients, moved.optimizer) == (0, 0, 0)
    four_bits = state_bytes(1_000_000, [], 0, "bf16", 1, in_4_bits=1_000_000)
    assert four_bits.weights == pytest.approx(515_869, abs=1)
    assert state_bytes(weights, groups, 0, "fp32", 4).weights == 4 * weights


# The report


def test_checkpointing_keeps_one_input_a_layer(base: Path) -> None:
    """And one layer at a time: so the difference to keeping them all is closed-form."""
    config = planned_model(make({"base": str(base)})).model.config
    tokens = TokenCounts(1000, 900, 50)
    for mode, residual in (("fp32", 4), ("bf16", 2), ("autocast", 4)):
        all_kept, inputs_kept = (activation_bytes(config, [], tokens, mode, saves) for saves in (False, True))
        cos_sin = 2 * 1000 * 8 * residual
        layer = (all_kept["decoder layers"] - cos_sin) // 2
        assert inputs_kept.pop("decoder layers") == 2 * 1000 * 32 * residual + layer + cos_sin
        del all_kept["decoder layers"]
        assert inputs_kept == all_kept


def test_checkpointed_layers_are_fed_their_own_inputs(base: Path, dataset: Path) -> None:
    """What torch's checkpoint holds outside of autograd: the (1, L, D) input of each layer, each its own."""
    config = make({"base": str(base)}, dataset)
    model, tokenizer = build_model(config)
    batch, inputs = _batch(config, model, tokenizer), []
    model.gradient_checkpointing_enable()
    for layer in model.language_model.get_decoder().layers:
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model.train()(batch)
    assert len({tensor.untyped_storage().data_ptr() for tensor in inputs}) == 2
    assert sum(tensor.untyped_storage().nbytes() for tensor in inputs) == 2 * 4 * 32 * batch.tokens


def test_plan_is_printed(base: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(REPOSITORY / "configs/pixel_sail_0p5b.yaml"), f"model.base={base}", "--plan", "--gpus", "4"]
    report = _tool(monkeypatch, capsys, *arguments, "train.micro_batch_tokens=9000")
    planned = planned_model(load_config(arguments[0], arguments[1:2]))
    total = sum(all_ for all_, _ in count_parameters(planned).values())
    assert f"{total:,}" in report and "on 4 GPUs" in report and "9,000 tokens" in report
    assert re.findall(r"^ZeRO (\d) (.)", report, re.MULTILINE) == [("0", " "), ("1", " "), ("2", "*"), ("3", " ")]
    values = json.loads(report[report.index("{") :])
    assert values["zero_optimization"]["stage"] == 2 and values["train_batch_size"] == 4 and values["bf16"]["enabled"]
    assert values["zero_optimization"]["reduce_bucket_size"] == 50_000_000  # that of a GPU
    alone = _tool(monkeypatch, capsys, *arguments[:3], "--gpus", "1", "train.offload=optimizer", "experts.0.cache=null")
    assert "experts that run online (mask2former)" in alone and "train.offload=optimizer" in alone
    with pytest.raises(SystemExit, match=r"^error: --gpus 0"):
        _tool(monkeypatch, capsys, *arguments[:3], "--gpus", "0")
    with pytest.raises(SystemExit, match=r"^error: .*less than one sample for each of 512"):
        _tool(monkeypatch, capsys, *arguments[:3], "--gpus", "512")


def test_sums_of_a_row(base: Path) -> None:
    """The sum is that of its row, and nf4 is planned at stage 0 alone."""
    config = make({"base": str(base)}, architecture={"mask_dim": 4096}, train={"steps": 1, "batch_size": 64})
    rows = re.findall(r"^ZeRO \d ?\*? +(.*)$", plan(config, 2), re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        *states, without, checkpointed, sum_without, sum_checkpointed = map(float, row.replace("|", " ").split())
        assert sum(states) + without == pytest.approx(sum_without, abs=0.03)
        assert sum(states) + checkpointed == pytest.approx(sum_checkpointed, abs=0.03)
    small = make({"base": str(base)}, train={"steps": 1, "batch_size": 2, "lora": {"rank": 2, "quantize": "nf4"}})
    assert len(re.findall(r"^ZeRO \d", plan(small, 2), re.MULTILINE)) == 1


def _tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """What tools/train.py prints."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    runpy.run_path(str(REPOSITORY / "tools" / "train.py"), run_name="__main__")
    return capsys.readouterr().out


def _gradient_bytes(optimizer: Any, stage: int) -> int:
    """float32 gradients that DeepSpeed keeps between the last backward pass and the step."""
    if stage == 1:
        return _bytes(optimizer.fp32_groups_gradients_flat)
    if stage == 2:
        return sum(_bytes(part) for part in optimizer.averaged_gradients.values())
    return _bytes([optimizer.grad_partitions_flat_buffer])


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensor_bytes(state: dict[str, Any]) -> int:
    return _bytes([value for value in state.values() if isinstance(value, Tensor)])


# Activations

# as many key heads as heads: the CPU's attention would copy keys for all heads, which those of a GPU do not
WIDE = {"hidden_size": 1040, "intermediate_size": 96, "num_hidden_layers": 1, "num_key_value_heads": 4}
DEEP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_key_value_heads": 4}
AT_MASKS = [EXPERT | {"name": "m", "at": "mask_features"}]
AT_BOTH = [*AT_MASKS, EXPERT | {"name": "p", "at": "patches"}]
TWINS: list = []  # no expert: that decoder's layers have twins for visual tokens


@pytest.mark.parametrize("mode", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize(
    ("decoder", "section", "experts"),
    [
        (DEEP, {"mask_stride": 16}, []),
        (DEEP, {"mask_stride": 4}, []),
        (DEEP, {"mask_stride": 4}, AT_BOTH),
        (WIDE, {"mask_stride": 8}, AT_MASKS),
        (DEEP, {"mask_stride": 16, "sub_patch_size": 4}, []),
        (DEEP, {"mask_stride": 16, "small_images": {"stem_widths": [32, 64]}}, []),
        (DEEP, {"mask_stride": 16, "small_images": {"patch_positions": True}}, []),
        (DEEP, {"mask_stride": 16, "small_images": {"patch_positions": True, "stem_widths": [32, 64]}}, []),
        (DEEP, {"mask_stride": 16}, TWINS),
    ],
    ids=["decoder", "mask head", "experts", "wide", "sub-patches", "stem", "positions", "stem, positions", "twins"],
)
def test_activations_are_what_autograd_keeps(
    decoder: dict, section: dict, experts: list, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 3 %."""
    # a test elsewhere may have left ZeRO-3's linear behind, which keeps no bf16 copies of weights
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    twins, experts = experts is TWINS, [] if experts is TWINS else experts
    root = write_refer_dataset(tmp_path / "root", size_wh=(256, 192))
    config = make({"base": str(save_base(tmp_path / "base", **decoder))}, root, architecture=section, experts=experts)
    model, tokenizer = build_model(config)
    if twins:
        model.config.architecture = config.architecture.model_copy(update={"vision_experts": True})
        model = PixelSail(model.config)
    batch = _with_expert_features(_batch(config, model, tokenizer), config)
    measured = _measure(config, model, batch, mode)
    tokens = TokenCounts(batch.tokens, len(batch.patches), len(batch.labels))
    expected = sum(activation_bytes(model.config, config.experts, tokens, mode, checkpointing=False).values())
    expected += _only_on_a_cpu(decoder, batch, mode)
    if mode == "autocast":  # bf16 copies of the weights, which state_bytes counts
        expected += 2 * sum(
            parameter.numel() for name, parameter in model.named_parameters() if "embed_tokens" not in name
        )
    print(f"{mode} {section}: planned / measured {expected / measured:.3f}")
    assert expected == pytest.approx(measured, rel=0.03)


def _only_on_a_cpu(decoder: dict, batch: Batch, mode: Mode) -> int:
    """What SDPA keeps there beyond the kernels of a GPU: the mask of the text as float32, and the rest not in bf16."""
    masks = sum((stop - image_stop) * (stop - start) for start, _, image_stop, stop in batch.spans)
    wider = 0 if mode == "fp32" else 2 * 4 * decoder["hidden_size"] * batch.tokens  # queries, keys, values, result
    return decoder["num_hidden_layers"] * (4 * masks + wider)


def _batch(config: Config, model: nn.Module, tokenizer: Any) -> Batch:
    encoder = build_encoder(config, model, tokenizer)
    mixture = open_mixture(config)
    sequences = [encoder.encode(mixture.sample(position)) for position in range(2)]
    return pack(sequences, encoder.tokens.seg, encoder.tokens.vision_patch)


def _with_expert_features(batch: Batch, config: Config) -> Batch:
    """Features as an expert gives them, of some other grid."""
    features = {expert.name: tuple(torch.randn(EXPERT_WIDTH, 9, 9) for _ in batch.keys) for expert in config.experts}
    batch.expert_features.update(features)
    return batch


def _measure(config: Config, model: nn.Module, batch: Batch, mode: Mode) -> int:
    """Bytes of the storages that the backward pass of one forward pass keeps, weights left out."""
    widths = {expert.name: EXPERT_WIDTH for expert in config.experts}
    hidden = model.config.text_config.hidden_size
    whole = LossModule(model, build_adapters(config, widths, hidden, model.config.architecture.mask_dim), config)
    whole.requires_grad_(True)
    if mode == "bf16":
        whole = whole.bfloat16()
    known = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    lower = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), lower:
        loss, _ = whole(batch, dict.fromkeys(loss_counts(config), 1.0))
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    "wanted, gpu_gib, on", [("auto", 80, False), ("auto", 2.2, True), (True, 80, True), (False, 2.2, False)]
)
def test_what_activation_checkpointing_auto_means(base: Path, wanted: Any, gpu_gib: float, on: bool) -> None:
    train = {"steps": 1, "batch_size": 64, "zero_stage": 2, "precision": "bf16", "activation_checkpointing": wanted}
    config = make({"base": str(base)}, architecture={"mask_dim": 4096}, train=train)
    report = plan(config, 2, gpu_gib)
    row = re.search(r"^ZeRO 2 \* +(.*)$", report, re.MULTILINE)[1]
    without, with_it = map(float, row.replace("|", " ").split()[-2:])
    assert (1.1 * without + 2 > gpu_gib) == (gpu_gib == 2.2)
    assert f"activation checkpointing is {'on' if on else 'off'}: " in report
    assert f"its activations {'with' if on else 'without'} checkpointing" in report
    if wanted == "auto":
        shown = re.search(r"about (.*) GiB without it and (.*) with it, of ([0-9.]*) GiB;", report).groups()
        assert tuple(map(float, shown)) == pytest.approx((without, with_it, gpu_gib), abs=0.06)


def test_activation_checkpointing_is_off_on_a_cpu(base: Path) -> None:
    config = make({"base": str(base)})
    model = planned_model(config).model
    decision = decide_checkpointing(config, model, parameter_groups(model, config.train), 1, None)
    assert not decision.on and "CPU" in decision.reason
