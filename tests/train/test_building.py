"""What a process holds while it builds a model, and that it is the same model wherever its weights went on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_refer_dataset
from safetensors.torch import load_file, save_file
from tiny_base import save_base
from tiny_run import VALUES, assert_same_curve, log_lines, run_cli
from torch import nn

from pixel_sail.architecture import Architecture
from pixel_sail.config import Config, ModelSection, load_config
from pixel_sail.folders.place import ON_CPU, Place
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.build import build_model
from pixel_sail.train.loop import train
from pixel_sail.weights.convert.language_model import from_language_model

MIB = 2**20
PARTS = Architecture(patch_size=8, mask_stride=4, mask_dim=16, max_side_px=64)
LATER = Place(dtype=torch.bfloat16, later=True)


def in_bf16(base: Path) -> Path:
    """The same folder with its weights in bf16."""
    path = base / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return base


def own_bytes() -> int:
    """Memory of this process that no other process and no file has."""
    return 1024 * int(re.search(r"^Anonymous:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])


def model_of(base: Path, place: Place = ON_CPU) -> PixelSail:
    torch.manual_seed(0)
    return from_language_model(ModelSection(base=str(base)), PARTS, "Segment {expression}.", place=place)[0]


def assert_same_model(a: nn.Module, b: nn.Module) -> None:
    a, b = (model.state_dict() | dict(model.named_buffers()) for model in (a, b))
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("dtype, place", [(torch.float32, ON_CPU), (torch.bfloat16, LATER)], ids=["float32", "bf16"])
def test_the_weights_of_a_base_stay_in_its_file(dtype: torch.dtype, place: Place, tmp_path: Path) -> None:
    """All but the pages of the new rows, which are written to, and the parts that a base lacks."""
    base = save_base(tmp_path, spare_rows=20_000, hidden_size=512, intermediate_size=2048)
    if dtype == torch.bfloat16:
        in_bf16(base)
    model_of(save_base(tmp_path / "warm"))  # what loading takes the first time
    before = own_bytes()
    model = model_of(base, place)
    held = own_bytes() - before
    decoder = sum(p.nbytes for p in model.language_model.parameters())
    others = sum(p.nbytes for part in (model.fusion, model.mask_head) for p in part.parameters())
    assert {p.dtype for p in model.language_model.parameters()} == {dtype}
    assert decoder > 30 * MIB
    assert held < others + 0.25 * decoder, f"{held / MIB:.0f} MiB for {decoder / MIB:.0f} of weights"


@pytest.mark.parametrize("spare_rows", [0, 40])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_move_later_are_the_same(spare_rows: int, tied: bool, tmp_path: Path) -> None:
    base = in_bf16(save_base(tmp_path, spare_rows, tie_word_embeddings=tied))
    later = model_of(base, Place(later=True))
    assert later.language_model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    ON_CPU.put(later)
    at_once = model_of(base)
    assert {p.dtype for p in at_once.parameters()} == {torch.float32}
    assert_same_model(later, at_once)
    decoder = at_once.language_model
    assert (decoder.get_input_embeddings().weight is decoder.get_output_embeddings().weight) == tied


def test_buffers_keep_their_dtype_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = model_of(save_base(tmp_path, tie_word_embeddings=True), Place(dtype=torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.rotary.inv_freq.dtype == torch.float32
    decoder = model.language_model
    assert decoder.get_input_embeddings().weight is decoder.get_output_embeddings().weight


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("building") / "root")


def config_file(folder: Path, root: Path, base: Path, **train_values: Any) -> Path:
    values = VALUES | {
        "run": {"dir": str(folder / "run"), "log_every": 1},
        "model": {"base": str(base)},
        "data": VALUES["data"] | {"root": str(root)},
        "train": VALUES["train"] | {"steps": 2, "micro_batch_tokens": 150} | train_values,
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "lora"])
def test_zero_3_starts_from_a_base_as_zero_0(lora: dict[str, int] | None, root: Path, tmp_path: Path) -> None:
    """Two ranks that cut the weights into shards, one by one, against one process that holds them all."""
    base = in_bf16(save_base(tmp_path / "base"))
    adapters = {} if lora is None else {"lora": lora}
    train(load_config(config_file(tmp_path / "one", root, base, **adapters)))
    config = config_file(tmp_path / "two", root, base, zero_stage=3, **adapters)
    status, output = run_cli(config, processes=2)
    assert status == 0, output
    first = [log_lines(tmp_path / name / "run")[0]["loss"] for name in ("one", "two")]
    assert abs(first[0] - first[1]) < 1e-5 * first[0]
    assert_same_curve(tmp_path / "one" / "run", tmp_path / "two" / "run")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_start_from_a_checkpoint_holds_its_own_weights(stage: int, root: Path, tmp_path: Path) -> None:
    """No weight is a part of a longer vector, which would be saved with it, and all are those of the export."""
    base = save_base(tmp_path / "base")
    train(load_config(config_file(tmp_path / "first", root, base, zero_stage=stage)))
    run = tmp_path / "first" / "run"
    path = config_file(tmp_path / "next", root, base, init_from=str(run / "checkpoints" / "step_00000002"))
    config: Config = load_config(path)
    model, _ = build_model(config)
    assert_same_model(model, PixelSail.from_pretrained(run / "export"))
    assert all(p.untyped_storage().nbytes() == p.nbytes and p.requires_grad for p in model.parameters())
