"""Click tokens: what they add, against loops; what they cost a model that takes none: nothing."""

from __future__ import annotations

from dataclasses import replace

import packed
import torch

from pixel_sail.types import Clicks, Encoded


def clicked(sequence: Encoded, tokens: list[int], patches: list[int]) -> Encoded:
    values = torch.randn(len(tokens), 4, generator=torch.Generator().manual_seed(len(sequence)))
    return replace(sequence, clicks=Clicks(torch.tensor(tokens), torch.tensor(patches), values))


ONE = clicked(packed.with_image(1, 3, 4), [20, 22], [11, 3])
TWO = clicked(packed.with_image(2, 2, 5), [15], [7])


def noisy(sequence: Encoded) -> Encoded:
    generator = torch.Generator().manual_seed(sequence.seed)
    return replace(sequence, patches=torch.randint(0, 255, sequence.patches.shape, generator=generator).byte())


def test_a_click_is_an_echo_of_its_patch() -> None:
    """Token, embedded patch and linear, click by click, in a batch of two images and a text."""
    model, bare = packed.small_model({"clicks": True}), packed.small_model()
    torch.nn.init.normal_(model.fusion.clicks.weight)
    batch = packed.pack([noisy(ONE), packed.only_text(0, 20), noisy(TWO)])
    expected = bare.embed(batch)  # the same weights
    patches, linear = bare.fusion.embed_patches(batch), model.fusion.clicks.weight
    places = {0: (20, 11, ONE, 0), 1: (22, 3, ONE, 1), 2: (len(ONE) + 20 + 15, 12 + 7, TWO, 0)}
    expected = expected.clone()
    for token, patch, sequence, number in places.values():
        expected[token] = expected[token] + patches[patch] + linear @ sequence.clicks.values[number]
    torch.testing.assert_close(model.embed(batch), expected)
    assert len(batch.clicks) == 3


def test_clicks_do_not_depend_on_packing() -> None:
    model = packed.small_model({"clicks": True})
    torch.nn.init.normal_(model.fusion.clicks.weight)
    sequences = [noisy(ONE), packed.only_text(0, 20), noisy(TWO)]
    together = model(packed.pack(sequences)).mask_logits
    for number in (0, 2):
        alone = model(packed.pack(sequences[number : number + 1])).mask_logits[0]
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=1e-4)
    without = model(packed.pack([replace(sequences[0], clicks=Clicks.none())])).mask_logits[0]
    assert (without - together[0]).abs().max() > 1e-3


def test_without_clicks_nothing_changes() -> None:
    """The other weights of a seed, and what a batch without clicks gives, to the bit."""
    model, bare = packed.small_model({"clicks": True}), packed.small_model()
    names = bare.state_dict().keys()
    assert model.state_dict().keys() - names == {"fusion.clicks.weight"}
    assert all(torch.equal(model.state_dict()[name], bare.state_dict()[name]) for name in names)
    assert not model.fusion.clicks.weight.any()
    torch.nn.init.normal_(model.fusion.clicks.weight)
    batch = packed.pack([packed.only_text(0, 20), packed.with_image(1, 3, 4)])
    output, plain = model(batch), bare(batch)
    assert torch.equal(output.hidden, plain.hidden) and torch.equal(output.mask_logits[1], plain.mask_logits[1])
    output.hidden.sum().backward()
    assert not model.fusion.clicks.weight.grad.any()  # used on every rank
    added = packed.small_model()
    added.add_clicks()
    assert added.state_dict().keys() == model.state_dict().keys()
