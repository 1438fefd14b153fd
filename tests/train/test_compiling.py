"""Where decoder layers are compiled, and what the log says where they are not; tests/null_gpu compiles them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import packed
import pytest
import torch
from tiny_run import tiny_config

from pixel_sail.train import compiling
from pixel_sail.train.compiling import compile_layers

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    "overrides, device, bf16, line",
    [
        ([], CPU, False, None),
        (["train.compile=off"], GPU, True, None),
        ([], GPU, True, "are compiled during the first step"),
        (["train.compile=on"], CPU, False, "not compiled: attention runs as sdpa"),
        ([], GPU, False, "not compiled: attention runs as sdpa"),
        (["train.zero_stage=3"], GPU, True, "not compiled: ZeRO-3"),
        (["train.lora={quantize: nf4}"], GPU, True, "not compiled: 4-bit"),
    ],
)
def test_where_layers_are_compiled(
    tmp_path: Path, overrides: list[str], device: torch.device, bf16: bool, line: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a machine with a GPU, as far as the choice of a kernel goes."""
    flash = (GPU, torch.bfloat16)
    monkeypatch.setattr(compiling, "choose_kernel", lambda _, *place: "flash" if place == flash else "sdpa")
    monkeypatch.setattr(compiling, "_missing_tool", lambda: None)
    options: list[dict[str, Any]] = []
    model = packed.small_model()
    monkeypatch.setattr(model, "compile_layers", lambda **given: options.append(given))
    with torch._dynamo.config.patch(suppress_errors=False):  # and back
        said = compile_layers(model, tiny_config(tmp_path, tmp_path, *overrides).train, device, bf16)
    assert said is None if line is None else line in said
    assert bool(options) == (said is not None and "not compiled" not in said)


def test_a_machine_without_what_triton_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    assert "C compiler" in compiling._missing_tool()
    monkeypatch.setattr(compiling.shutil, "which", lambda _: "/usr/bin/gcc")
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert "python3-dev" in compiling._missing_tool()
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    assert "Triton is not installed" in compiling._missing_tool()
