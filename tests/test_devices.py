"""--device and --precision: one message, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_process import call_main, load_tool

from pixel_sail.devices import choose_device, choose_dtype, has_bf16_units
from pixel_sail.errors import UserError
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.attend_segment.adapters import open_adapter
from pixel_sail.studies.attend_segment.segmenters import open_segmenter


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_devices_that_are_there(gpus) -> None:
    gpus(0)
    assert choose_device() == choose_device("cpu") == choose_device("cpu:0") == torch.device("cpu")
    gpus(2)
    assert choose_device() == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_devices_that_are_not(gpus) -> None:
    gpus(2)
    with pytest.raises(UserError, match="--device cuda:7: there is no such GPU; there are cuda:0, cuda:1"):
        choose_device("cuda:7")
    gpus(0)
    with pytest.raises(UserError, match="--device cuda: .*; give --device cpu"):
        choose_device("cuda")
    for name in ("foo", "", "meta", "cuda:x", "cuda:-1", "mps", "cpu cuda"):
        with pytest.raises(UserError, match="there is no device .*: give auto, cpu, cuda or cuda:N"):
            choose_device(name)


def test_precisions() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == choose_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UserError, match="there is no precision 'fp8': give auto, bf16, fp32"):
        choose_dtype("fp8", torch.device("cpu"))


@pytest.mark.parametrize(
    "line, units",
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu amx_tile amx_bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd i8mm bf16", True),  # ARM
        ("Features\t: fp asimd", False),
        ("model name\t: a CPU with bf16", False),
    ],
)
def test_bf16_units(line: str, units: bool, tmp_path: Path, monkeypatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n\n")
    for with_onednn in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda there=with_onednn: there)
        has_bf16_units.cache_clear()
        assert has_bf16_units(cpuinfo) == (units and with_onednn)
    assert not has_bf16_units(tmp_path / "nowhere")  # macOS, Windows


TOOLS = {
    "predict": ["{here}", "--image", "x.jpg", "--text", "a", "--out", "{here}/out"],
    "demo": ["{here}"],
    "test": ["{here}", "--benchmark", "refcoco:val", "--out", "{here}/out"],
    "bench": ["step"],
    "cache_expert": ["{here}/config.yaml", "--expert", "a"],
    "attend_segment": ["{here}", "--benchmark", "pixmmvp", "--segmenter", "sam:x", "--out", "{here}/out"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_says_it_first(tool: str, tmp_path: Path, gpus, monkeypatch) -> None:
    """Nothing else of these commands exists: whatever was looked at first would be named."""
    gpus(0)
    module = load_tool(tool)
    if tool == "demo":
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    arguments = [argument.format(here=tmp_path) for argument in TOOLS[tool]]
    with pytest.raises(SystemExit, match="^error: --device cuda:"):
        call_main(monkeypatch, module, *arguments, "--device", "cuda")


def test_python_callers_hear_it_first(tmp_path: Path, gpus) -> None:
    gpus(0)
    for opened in (
        lambda: Predictor.from_pretrained(tmp_path, "cuda"),
        lambda: open_adapter(tmp_path, device="cuda"),
        lambda: open_segmenter("sam:nowhere", device="cuda"),
    ):
        with pytest.raises(UserError, match="--device cuda: "):
            opened()
