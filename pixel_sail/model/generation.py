"""Answers to many questions about one image: the image is read once, the questions continue from its KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import Batch


@dataclass(frozen=True)
class Sampling:
    """Greedy where `temperature` is 0; else samples from softmax(logits / temperature) with the given generator."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Generated:
    """One answer: its tokens without the stop token, and one mask for each [SEG] in it."""

    token_ids: list[int]
    mask_logits: Tensor  # (K, h', w') float


@torch.inference_mode()
def generate(
    model: PixelSail,
    prefix: Batch,
    questions: list[list[int]],
    seg_id: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
    answer_prefixes: list[list[int]] | None = None,
    max_rows: int = 32,
) -> list[Generated]:
    """Answers `questions` (token ids, one or more each) about the image in `prefix`, at most `max_rows` at a time.

    `prefix`: one sequence that is the image block, or an empty one without an image.
    `answer_prefixes`: tokens with which each answer begins; a [SEG] in them is an answer's, one in a question is not.
    The limit on new tokens never loses a mask: a [SEG] emitted last is still read for its state.
    """
    begun = answer_prefixes or [[] for _ in questions]
    image = _read_prefix(model, prefix)
    answers: list[list[int]] = []
    seg_states: list[list[Tensor]] = []
    for first in range(0, len(questions), max_rows):
        rows = slice(first, first + max_rows)
        decoding = _Decoding(model, image, len(questions[rows]), seg_id)
        answers += _continue(decoding, questions[rows], begun[rows], stop_ids, sampling)
        seg_states += decoding.seg_states
    masks = _masks(model, image, seg_states)
    return [Generated(answer, mask) for answer, mask in zip(answers, masks, strict=True)]


@dataclass(frozen=True)
class _Image:
    """A picture that was read once: its KV cache, its patch states (h, w, D), and where the text continues."""

    cache: DynamicCache
    patch_states: Tensor | None
    tokens: int
    next_position: int


def _read_prefix(model: PixelSail, prefix: Batch) -> _Image:
    cache = DynamicCache()
    if prefix.tokens == 0:
        return _Image(cache, None, 0, 0)
    hidden = model.decode(model.embed(prefix), prefix.position_ids, model.layout(prefix.spans), cache)
    h, w = prefix.grids_hw[0]
    next_position = int(prefix.position_ids[:, -1].max()) + 1
    return _Image(cache, hidden[prefix.patch_index].view(h, w, -1), prefix.tokens, next_position)


def _continue(
    decoding: _Decoding,
    questions: list[list[int]],
    begun: list[list[int]],
    stop_ids: tuple[int, ...],
    sampling: Sampling,
) -> list[list[int]]:
    logits = decoding.read([q + p for q, p in zip(questions, begun, strict=True)], [len(q) for q in questions])
    answers = [list(tokens) for tokens in begun]
    running = [True] * len(questions)
    for step in range(sampling.max_new_tokens):
        chosen = _choose(logits, sampling)
        for row, token in enumerate(chosen):
            running[row] = running[row] and token not in stop_ids
            if running[row]:
                answers[row].append(token)
        last = step + 1 == sampling.max_new_tokens
        mask_pending = any(r and token == decoding.seg_id for r, token in zip(running, chosen, strict=True))
        if not any(running) or (last and not mask_pending):
            break
        logits = decoding.step(chosen, running)
    return answers


class _Decoding:
    """A batch of continuations. Rows are padded on the right; the mask says which cached columns a row owns."""

    def __init__(self, model: PixelSail, image: _Image, rows: int, seg_id: int):
        self.model, self.seg_id = model, seg_id
        self.prefix_tokens, self.next_position = image.tokens, image.next_position
        self.cache = DynamicCache()
        for layer, cached in enumerate(image.cache.layers):
            self.cache.update(cached.keys.expand(rows, -1, -1, -1), cached.values.expand(rows, -1, -1, -1), layer)
        self.owned: Tensor = torch.empty(0)  # (Q, columns) bool
        self.positions: list[int] = []
        self.seg_states: list[list[Tensor]] = []

    def read(self, rows: list[list[int]], question_lengths: list[int]) -> Tensor:
        """Reads the questions; (Q, V) logits of the first new token."""
        device, longest = self.model.device, max(map(len, rows))
        ids = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows], device=device)
        columns = torch.arange(longest, device=device)
        real = columns < torch.tensor([[len(row)] for row in rows], device=device)  # (Q, longest)
        self.owned = torch.cat([real.new_ones(len(rows), self.prefix_tokens), real], dim=1)
        causal = torch.ones(longest, self.owned.shape[1], dtype=torch.bool, device=device).tril(self.prefix_tokens)
        positions = (self.next_position + columns).expand(len(rows), -1)
        hidden = self._forward(ids, positions, causal & self.owned[:, None] | self._diagonal(longest))
        self.positions = [self.next_position + len(row) for row in rows]
        self.seg_states = [
            [hidden[r, i] for i in range(start, len(row)) if row[i] == self.seg_id]
            for r, (row, start) in enumerate(zip(rows, question_lengths, strict=True))
        ]
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        return self._logits(hidden[torch.arange(len(rows), device=device), ends])

    def step(self, tokens: list[int], running: list[bool]) -> Tensor:
        """Reads one new token a row; (Q, V) logits of the next."""
        device = self.model.device
        ids = torch.tensor(tokens, device=device)[:, None]
        self.owned = torch.cat([self.owned, self.owned.new_ones(len(tokens), 1)], dim=1)
        positions = torch.tensor(self.positions, device=device)[:, None]
        hidden = self._forward(ids, positions, self.owned[:, None])[:, 0]
        self.positions = [position + 1 for position in self.positions]
        for row, token in enumerate(tokens):
            if running[row] and token == self.seg_id:
                self.seg_states[row].append(hidden[row])
        return self._logits(hidden)

    def _diagonal(self, longest: int) -> Tensor:
        """Padding columns see themselves, so that no row of the softmax is empty."""
        eye = torch.eye(longest, dtype=torch.bool, device=self.model.device)
        return torch.cat([eye.new_zeros(longest, self.prefix_tokens), eye], dim=1)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        language_model = self.model.language_model
        output = language_model.get_decoder()(
            inputs_embeds=language_model.get_input_embeddings()(ids),
            position_ids=positions.expand(3, -1, -1),
            attention_mask=mask[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.language_model.get_output_embeddings()(hidden).float()


def _choose(logits: Tensor, sampling: Sampling) -> list[int]:
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    probabilities = (logits / sampling.temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=sampling.generator)[:, 0].tolist()


def _masks(model: PixelSail, image: _Image, seg_states: list[list[Tensor]]) -> list[Tensor]:
    """(K, h', w') logits of every question; the image goes through the mask head once for all of them."""
    counts = [len(states) for states in seg_states]
    if image.patch_states is None or not sum(counts):
        return [torch.empty(0, 1, 1, device=model.device) for _ in counts]
    states = torch.stack([state for row in seg_states for state in row])
    logits, _ = model.mask_head([image.patch_states], [states])
    return list(logits[0].float().split(counts))
