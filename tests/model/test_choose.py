"""The next token: drawn as torch.multinomial draws, and never from logits that are not finite."""

from __future__ import annotations

import pytest
import torch

from pixel_sail.model.generation import NOT_FINITE, Sampling, _choose


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_draws_are_those_of_multinomial(temperature: float) -> None:
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = -torch.inf  # a token that cannot be
    drawn = _choose(logits, Sampling(temperature=temperature, generator=torch.Generator().manual_seed(1)))
    probabilities = (logits / temperature).softmax(-1)
    assert drawn == torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(1))[:, 0].tolist()
    assert len(set(drawn)) > 5 and 7 not in drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_have_no_token(temperature: float) -> None:
    logits = torch.zeros(5, 4)
    logits[:, 2] = 50
    logits[0, 1], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[3, 0] = -torch.inf
    tokens = _choose(logits, Sampling(temperature=temperature, generator=torch.Generator().manual_seed(0)))
    assert tokens == [NOT_FINITE, NOT_FINITE, NOT_FINITE, 2, 2]
