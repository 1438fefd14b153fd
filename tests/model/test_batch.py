"""What travels with a batch so that a GPU need not wait, and what becomes of many labels."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import packed
import pytest
import torch

from pixel_sail import losses
from pixel_sail.config import LossConfig
from pixel_sail.layout import varlen_calls, visible_keys
from pixel_sail.model import pixel_sail
from pixel_sail.types import UNPROMPTED, DeferredLogits

SEQUENCES = [packed.only_text(0, 9), packed.with_image(1, 3, 2, words=12), packed.with_image(2, 2, 2, words=10)]


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    if isinstance(value, dict):
        return tensors_of(tuple(value.values()))
    return tensors_of(tuple(getattr(value, f.name) for f in fields(value))) if is_dataclass(value) else []


def test_indices_are_made_when_a_batch_is_packed() -> None:
    batch = packed.pack(SEQUENCES)
    assert batch.prompted.tolist() == (batch.prompt_ids != UNPROMPTED).nonzero()[:, 0].tolist() == [0, 6]
    full, causal = batch.varlen
    assert not full.causal and causal.causal
    assert full.query_index.tolist() == [*range(9, 17), *range(29, 35)] == full.key_index.tolist()
    assert full.cu_queries.tolist() == [0, 8, 14] and full.max_keys == 8
    assert causal.query_index.tolist() == [*range(9), *range(17, 29), *range(35, 45)]
    assert causal.cu_keys.tolist() == [0, 9, 29, 45] and (causal.max_queries, causal.max_keys) == (12, 20)
    assert len(varlen_calls(((0, 0, 0, 4),))) == len(varlen_calls(((0, 0, 4, 4),))) == 1  # only text, only an image


def test_visible_keys_are_one_run() -> None:
    first, stop = visible_keys(((0, 0, 0, 3), (3, 4, 6, 8)))
    assert first.tolist() == [0, 0, 0, 3, 3, 3, 3, 3] and stop.tolist() == [1, 2, 3, 4, 6, 6, 7, 8]


def test_every_tensor_moves_in_its_dtype() -> None:
    batch = packed.pack(SEQUENCES)
    moved = batch.to("meta")
    before, after = tensors_of(batch), tensors_of(moved)
    assert len(before) == len(after) > 20 and all(tensor.is_meta for tensor in after)
    assert [tensor.dtype for tensor in before] == [tensor.dtype for tensor in after]
    assert (moved.spans, moved.keys, moved.varlen[0].max_keys) == (batch.spans, batch.keys, 8)


def test_training_after_generation() -> None:
    """What is made once for a device must not be a tensor of inference mode, which autograd refuses."""
    model, batch = packed.small_model(), packed.pack(SEQUENCES)
    with torch.inference_mode():
        model(batch)
    model(batch).logits.sum().backward()


@pytest.fixture
def pieces_of_7(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (losses, pixel_sail):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 7 * 100)


def loss_and_gradients(model: pixel_sail.PixelSail, autocast: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = packed.pack(SEQUENCES)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(batch)
        with torch.autocast("cpu", enabled=False):  # as the engine does
            sums = losses.compute_losses(output, batch, LossConfig(points=20))
    sum(sums.values()).backward()
    return sums["lm"].detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_in_pieces_change_neither_loss_nor_gradients(autocast: bool, request: pytest.FixtureRequest) -> None:
    model = packed.small_model()
    loss, gradients = loss_and_gradients(model, autocast)
    request.getfixturevalue("pieces_of_7")
    assert isinstance(model(packed.pack(SEQUENCES)).logits, DeferredLogits)
    loss_in_pieces, in_pieces = loss_and_gradients(model, autocast)
    torch.testing.assert_close(loss_in_pieces, loss)
    for name, gradient in gradients.items():
        difference = (in_pieces[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert difference < (0.01 if autocast else 1e-5), name


def test_the_head_is_called_once_under_zero_3(pieces_of_7: None) -> None:
    """Its weights are gathered at each call, which all ranks must make. The losses of its logits go in pieces still."""
    model, batch = packed.small_model(), packed.pack(SEQUENCES)
    loss = losses.next_token_loss(model(batch).logits, batch.labels, batch.label_weights)
    model.language_model.get_output_embeddings().weight.ds_id = 1  # DeepSpeed's mark
    logits = model(batch).logits
    assert isinstance(logits, torch.Tensor) and len(logits) == len(batch.labels) > 7
    torch.testing.assert_close(losses.next_token_loss(logits, batch.labels, batch.label_weights), loss)


def test_cross_entropies_keep_only_the_states_of_a_piece(pieces_of_7: None) -> None:
    """Autograd keeps the states (M, D) and no logits: none of its tensors is as wide as the vocabulary."""
    model, batch = packed.small_model(), packed.pack(SEQUENCES)
    logits, widths = model(batch).logits, []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: widths.append(tensor.shape) or tensor, lambda x: x):
        losses.cross_entropies(logits, batch.labels)
    assert not [shape for shape in widths if 100 in shape[1:]]
