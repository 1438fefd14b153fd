"""ZeRO-3: weights that are cut into shards one by one, and modules that run differently often on different ranks.

ZeRO-3 gathers the weights of a module before each call, in a collective of all ranks. The mask head runs its blocks
once for each image size in the batch, so the calls of the ranks would not line up. DeepSpeed can gather such a module
as a whole, once per forward pass (a "leaf"), on two conditions that it does not check:
* tensors must be plain arguments and outputs a tensor or a plain tuple; with lists in either, the gradients of the leaf
  are silently never reduced and its weights never change;
* every output tensor counts as one use in backward, so their number must be the same on all ranks.
So a leaf here takes flat arguments and returns one tensor, and a plain function around it restores the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


class Leaf(nn.Module):
    """Calls `module` with flattened arguments and returns all its output tensors as one vector."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.output_spec: TreeSpec | None = None
        self.output_shapes: list[torch.Size] = []

    def forward(self, input_spec: TreeSpec, *flat: Any) -> Tensor:
        outputs, self.output_spec = tree_flatten(self.module(*tree_unflatten(list(flat), input_spec)))
        self.output_shapes = [output.shape for output in outputs]
        return torch.cat([output.reshape(-1) for output in outputs])


class NestedCall:
    """Calls a Leaf with the arguments of the wrapped module and returns the outputs of the wrapped module.

    Not a module itself, because DeepSpeed would count its outputs.
    """

    def __init__(self, leaf: Leaf):
        self.leaf = leaf

    def __call__(self, *arguments: Any) -> Any:
        flat, spec = tree_flatten(arguments)
        vector = self.leaf(spec, *flat)
        parts = vector.split([shape.numel() for shape in self.leaf.output_shapes])
        outputs = [part.view(shape) for part, shape in zip(parts, self.leaf.output_shapes, strict=True)]
        return tree_unflatten(outputs, self.leaf.output_spec)


def partition(module: nn.Module, deepspeed_config: dict[str, Any], device: torch.device) -> None:
    """Cut each weight into the shards of all ranks, with the values of rank 0; buffers go to `device`.

    What deepspeed.initialize does with a whole model on each device, one weight after the other: a rank never holds
    more than one, next to its shards. Weights that are mapped from their files stay there until their turn.
    """
    import deepspeed

    bf16 = deepspeed_config.get("bf16", {}).get("enabled", False)
    first: nn.Parameter | None = None
    for parameter in module.parameters():
        # a copy: the values of rank 0 would be written into the mapped pages, which then are memory of this process
        parameter.data = parameter.data.to(torch.bfloat16 if bf16 else parameter.dtype, copy=True)
        if first is None:
            first = parameter
            deepspeed.zero.Init(nn.ParameterList([first]), config_dict_or_path=deepspeed_config, dtype=parameter.dtype)
        else:
            first.convert_to_zero_parameters(param_list=[parameter])
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def wrap_leaves(model: nn.Module, classes: Sequence[type[nn.Module]]) -> None:
    """Wrap every submodule of these classes in a Leaf, which DeepSpeed gathers as a whole. Changes parameter names."""
    import deepspeed

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, tuple(classes)):
                leaf = Leaf(child)
                delattr(parent, name)
                parent.add_module(f"{name}_leaf", leaf)
                setattr(parent, name, NestedCall(leaf))
                deepspeed.utils.set_z3_leaf_module(leaf, True)
