"""The forms of the mask head's depthwise convolution, and its blocks compiled, compute one function."""

from __future__ import annotations

import pytest
import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import Tensor

from pixel_sail.architecture import Architecture
from pixel_sail.model import depthwise
from pixel_sail.model.mask_head import MaskHead

# dtype -> the largest difference, in parts of the largest value
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of its product with a fixed tensor."""
    direction = torch.arange(out.numel(), dtype=torch.float64).view_as(out).sin().to(out.dtype)
    return [out, *torch.autograd.grad((out * direction).sum(), inputs)]


def assert_close(a: list[Tensor], b: list[Tensor], bound: float) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert (left - right).abs().max() <= bound * left.abs().max()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("n, h, w", [(1, 1, 1), (2, 1, 5), (1, 4, 1), (2, 7, 5), (1, 33, 18)])
@pytest.mark.parametrize("form", [depthwise.by_shifts, depthwise.by_convolution])
def test_each_form_is_the_convolution(form, n: int, h: int, w: int, dtype: torch.dtype) -> None:  # noqa: ANN001
    torch.manual_seed(0)
    module = depthwise.Depthwise(6)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    module.to(dtype)
    x = torch.randn(n, h, w, 6, dtype=dtype, requires_grad=True)
    inputs = [x, module.weight, module.bias]
    expected = with_gradients(module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), inputs)
    assert_close(
        expected,
        with_gradients(form(x.flatten(0, 1), module.weight, module.bias, h).view(x.shape), inputs),
        BOUNDS[dtype],
    )


@pytest.mark.parametrize("form", ["shifts", "convolution"])
def test_compiled_blocks_compute_what_the_blocks_are(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all gradients, as Dynamo hands them to a backend; one graph for images of other numbers and sizes."""
    monkeypatch.setattr(depthwise, "COMPILED", form)
    torch.manual_seed(0)
    plain, compiled = (MaskHead(Architecture(patch_size=16, mask_stride=4), 12).double() for _ in range(2))
    for block in plain.blocks:
        torch.nn.init.normal_(block.depthwise.weight)
    compiled.load_state_dict(plain.state_dict())
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    with symbolic_shapes.patch(use_duck_shape=True):  # and back
        compiled.compile_blocks(backend=count)
        for n, h, w in ((2, 3, 3), (1, 2, 7), (3, 4, 2)):
            x = torch.randn(n, h, w, 12, dtype=torch.float64)
            results = []
            for head in (plain, compiled):
                inputs = [x.clone().requires_grad_(), *head.blocks.parameters()]
                results.append(with_gradients(head.upsample((inputs[0] * 1).unbind()), inputs))
            assert_close(*results, 1e-12)
    assert len(graphs) == 1
    assert "conv2d" not in graphs[0].code and "conv_transpose2d" not in graphs[0].code
