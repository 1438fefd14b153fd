"""Answers to many questions about many images: each image is read once, its questions continue from its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import Batch


@dataclass(frozen=True)
class Sampling:
    """Greedy where `temperature` is 0; else samples from softmax(logits / temperature) with the given generator.

    An answer ends at its stop token, before the first of `stop_strings` in its text, or after `max_new_tokens`.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    generator: torch.Generator | None = None
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature >= 0 or "" in self.stop_strings:
            raise ValueError(
                "sampling needs max_new_tokens >= 1, temperature >= 0 and stop strings that are not empty, got "
                f"{self.max_new_tokens}, {self.temperature}, {self.stop_strings}"
            )


@dataclass(frozen=True)
class Asked:
    """One question: its tokens, the image of the batch that it is about, and the tokens with which its answer begins.

    A [SEG] in `answer_ids` is an answer's, one in `question_ids` is not.
    """

    question_ids: list[int]
    image: int | None  # index of the sequence in the prefixes; None: no image
    answer_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generated:
    """One answer: its tokens without the stop token, and one mask for each [SEG] in it."""

    token_ids: list[int]
    mask_logits: Tensor  # (K, h', w') float


@torch.inference_mode()
def generate(
    model: PixelSail,
    prefixes: Batch | None,
    asked: Sequence[Asked],
    seg_id: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
    ended: Callable[[list[int]], bool] | None = None,
    max_rows: int = 32,
) -> list[Generated]:
    """Answers questions about the images in `prefixes`, at most `max_rows` at a time; each image is read once.

    `prefixes`: packed sequences that are an image block each; None where no question is about an image.
    `ended(answer tokens)`: whether an answer is complete without its stop token (a stop string in its text, say).
    The limit on new tokens never loses a mask: a [SEG] emitted last is still read for its state.
    """
    images = [] if prefixes is None else _read_prefixes(model, prefixes)
    answers: list[list[int]] = []
    seg_states: list[list[Tensor]] = []
    for first in range(0, len(asked), max_rows):
        rows = asked[first : first + max_rows]
        decoding = _Decoding(model, images, [row.image for row in rows], seg_id)
        answers += _continue(decoding, rows, stop_ids, sampling, ended)
        seg_states += decoding.seg_states
    masks = _masks(model, images, [row.image for row in asked], seg_states)
    return [Generated(answer, mask) for answer, mask in zip(answers, masks, strict=True)]


@dataclass(frozen=True)
class _Image:
    """A picture that was read once: its keys and values in each layer, its patch states, where the text continues."""

    layers: list[tuple[Tensor, Tensor]]  # (1, kv heads, tokens, d) each
    patch_states: Tensor  # (h, w, D)
    tokens: int
    next_position: int
    regions: Tensor | None  # (15, D) pooled, to be added at their names; None where they are fused into the patches


def _read_prefixes(model: PixelSail, prefixes: Batch) -> list[_Image]:
    cache = DynamicCache()
    hidden = model.decode(model.embed(prefixes), prefixes.position_ids, model.layout(prefixes.spans), cache)
    patches = hidden[prefixes.patch_index].split([h * w for h, w in prefixes.grids_hw])
    pooled = model.pooled_regions(prefixes)
    regions = [None] * len(patches) if pooled is None else list(pooled)
    return [
        _Image(
            layers=[(layer.keys[:, :, start:stop], layer.values[:, :, start:stop]) for layer in cache.layers],
            patch_states=states.view(*grid_hw, -1),
            tokens=stop - start,
            next_position=int(prefixes.position_ids[:, stop - 1].max()) + 1,
            regions=drawn,
        )
        for (start, _, _, stop), grid_hw, states, drawn in zip(
            prefixes.spans, prefixes.grids_hw, patches, regions, strict=True
        )
    ]


def _continue(
    decoding: _Decoding,
    rows: Sequence[Asked],
    stop_ids: tuple[int, ...],
    sampling: Sampling,
    ended: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    logits = decoding.read(rows)
    answers = [list(row.answer_ids) for row in rows]
    running = [True] * len(rows)
    for step in range(sampling.max_new_tokens):
        chosen = _choose(logits, sampling)
        for row, token in enumerate(chosen):
            running[row] = running[row] and token not in stop_ids
            if running[row]:
                answers[row].append(token)
                running[row] = ended is None or not ended(answers[row])
        last = step + 1 == sampling.max_new_tokens
        mask_pending = any(r and token == decoding.seg_id for r, token in zip(running, chosen, strict=True))
        if not any(running) or (last and not mask_pending):
            break
        logits = decoding.step(chosen, running)
    return answers


class _Decoding:
    """A batch of continuations. Images and texts are padded on the right; `owned` says which columns a row has."""

    def __init__(self, model: PixelSail, images: list[_Image], rows: list[int | None], seg_id: int):
        """`rows`: the index in `images` of each row's picture, None where it has none."""
        self.model, self.seg_id = model, seg_id
        pictured = [None if image is None else images[image] for image in rows]
        tokens = [0 if image is None else image.tokens for image in pictured]
        self.prefix_tokens = max(tokens)
        columns = torch.arange(self.prefix_tokens, device=model.device)
        self.owned = columns < torch.tensor(tokens, device=model.device)[:, None]  # (Q, columns) bool
        self.positions = [0 if image is None else image.next_position for image in pictured]
        self.cache = DynamicCache()
        self.seg_states: list[list[Tensor]] = []
        used = sorted({image for image in rows if image is not None})
        # a row without a picture takes any: it owns none of those columns
        take = torch.tensor([0 if image is None else used.index(image) for image in rows], device=model.device)
        for layer in range(len(images[used[0]].layers) if used else 0):
            keys, values = (
                torch.cat([self._padded(images[i].layers[layer][kind]) for i in used])[take] for kind in (0, 1)
            )
            self.cache.update(keys, values, layer)
        self.regions = None
        if used and images[used[0]].regions is not None:  # a row without a picture has no region
            drawn = torch.stack([images[i].regions for i in used])[take]
            self.regions = drawn * torch.tensor([[[image is not None]] for image in rows], device=model.device)

    def _padded(self, cached: Tensor) -> Tensor:
        """(1, kv heads, tokens, d) -> (1, kv heads, prefix tokens, d)."""
        return F.pad(cached, (0, 0, 0, self.prefix_tokens - cached.shape[2]))

    def read(self, rows: Sequence[Asked]) -> Tensor:
        """Reads the questions; (Q, V) logits of the first new token."""
        device, texts = self.model.device, [[*row.question_ids, *row.answer_ids] for row in rows]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [text[-1]] * (longest - len(text)) for text in texts], device=device)
        columns = torch.arange(longest, device=device)
        real = columns < torch.tensor([[len(text)] for text in texts], device=device)  # (Q, longest)
        self.owned = torch.cat([self.owned, real], dim=1)
        causal = torch.ones(longest, self.owned.shape[1], dtype=torch.bool, device=device).tril(self.prefix_tokens)
        starts = torch.tensor(self.positions, device=device)
        hidden = self._forward(ids, starts[:, None] + columns, causal & self.owned[:, None] | self._diagonal(longest))
        self.positions = [start + len(text) for start, text in zip(self.positions, texts, strict=True)]
        self.seg_states = [
            [hidden[r, i] for i in range(len(row.question_ids), len(text)) if text[i] == self.seg_id]
            for r, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]
        ends = torch.tensor([len(text) - 1 for text in texts], device=device)
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
            inputs_embeds=self.model.embed_text(ids, self.regions),
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


def _masks(
    model: PixelSail, images: list[_Image], asked: list[int | None], seg_states: list[list[Tensor]]
) -> list[Tensor]:
    """(K, h', w') logits of every question; an image goes through the mask head once for all of its questions."""
    masks = [torch.empty(0, 1, 1, device=model.device) for _ in asked]
    rows_of = {i: [row for row, image in enumerate(asked) if image == i and seg_states[row]] for i in set(asked)}
    used = [i for i in range(len(images)) if rows_of.get(i)]
    if not used:
        return masks
    states = [torch.stack([state for row in rows_of[i] for state in seg_states[row]]) for i in used]
    logits, _ = model.mask_head([images[i].patch_states for i in used], states)
    for i, found in zip(used, logits, strict=True):
        pieces = found.float().split([len(seg_states[row]) for row in rows_of[i]])
        for row, piece in zip(rows_of[i], pieces, strict=True):
            masks[row] = piece
    return masks
