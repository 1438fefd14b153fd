"""Answer many questions about many images. Each image is read once; its questions continue from its KV cache.

A question may be about several images, which are then read together. Its masks are on one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from pixel_sail.architecture import Architecture
from pixel_sail.errors import UserError
from pixel_sail.model.attention import Prefix
from pixel_sail.model.axis_attention import head_widths
from pixel_sail.model.backbone import cache_argument
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.model.score_head import ScoreHead
from pixel_sail.types import Batch, Clicks

NOT_FINITE = -1  # in place of a token


class NotFinite(UserError):
    """The model computes NaN or infinity, so that its answer means nothing."""


@dataclass(frozen=True)
class Sampling:
    """Greedy decoding if `temperature` is 0, else sampling from softmax(logits / temperature) with `generator`.

    Sampled are the `top_k` likeliest tokens (0: all), and of these the fewest whose probabilities add up to `top_p`,
    as transformers does. An answer ends at its stop token, before the first of `stop_strings` in its text, or after
    `max_new_tokens`. Raises ValueError for values out of range.

    `min_presence`: of a model with a score head, an answer of a lower presence has empty masks: nothing is there.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    generator: torch.Generator | None = None
    stop_strings: tuple[str, ...] = ()
    top_k: int = 0
    top_p: float = 1.0
    min_presence: float = 0.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature >= 0 or "" in self.stop_strings:
            raise ValueError(
                "sampling needs max_new_tokens >= 1, temperature >= 0 and stop strings that are not empty, got "
                f"{self.max_new_tokens}, {self.temperature}, {self.stop_strings}"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling needs top_k >= 0 and 0 < top_p <= 1, got {self.top_k} and {self.top_p}")
        if not 0 <= self.min_presence <= 1:
            raise ValueError(f"sampling needs 0 <= min_presence <= 1, got {self.min_presence}")


def check_has_presence(architecture: Architecture, min_presence: float) -> None:
    """Raises UserError if answers are to be rejected by a presence that the model does not give."""
    if min_presence and not architecture.mask_scores:
        raise UserError(
            f"min_presence is {min_presence:g}, in the call or in the model's generation_config.json, but this model "
            "gives no presence (architecture.mask_scores is false), so nothing can be rejected by it. Set it to 0, or "
            'add scores: docs/finetune.md, "Scores for a model that has none"'
        )


@dataclass(frozen=True)
class GenerationRequest:
    """One question: its tokens, its images, and the first tokens of its answer if they are fixed.

    A [SEG] in `answer_ids` gets a mask, a [SEG] in `question_ids` does not. `on_token` is called with each new token
    of the answer as soon as it is chosen, without the stop token. `clicks`: those of the question, on
    patches of its images.
    """

    question_ids: list[int]
    image: int | None  # index of the sequence in the prefixes, which may have several images; None: no image
    answer_ids: tuple[int, ...] = ()
    on_token: Callable[[int], None] | None = None
    masks_on: int = 0  # which image of the sequence the masks are on
    clicks: Clicks | None = None


@dataclass(frozen=True)
class Generated:
    """One answer: its tokens without the stop token, and a mask for each [SEG].

    Of a model with a score head: the presence of what is asked for, and the expected IoU of each mask with the truth.
    A mask of what is not there has the IoU 0, so that a score is the presence times the IoU if it is there.
    """

    token_ids: list[int]
    mask_logits: Tensor  # (K, h', w') float
    scores: list[float] | None = None  # of each mask, 0..1
    presence: float | None = None  # 0..1


@torch.inference_mode()
def generate(
    model: PixelSail,
    prefixes: Batch | Sequence[ReadImages] | None,
    requests: Sequence[GenerationRequest],
    seg_id: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool] | None = None,
    max_rows: int = 32,
) -> list[Generated]:
    """Answer questions about the images in `prefixes`, at most `max_rows` at a time. Each image is read once.

    `prefixes`: packed sequences, each of image blocks, or what `read_images` gave for them; None if no question is
    about an image.
    `is_complete(answer tokens)`: whether an answer ends without its stop token, for example at a stop string.
    The limit on new tokens never loses a mask: the state of a [SEG] that is emitted last is still read.
    """
    read = read_images(model, prefixes) if isinstance(prefixes, Batch) else list(prefixes or ())
    rows = [_Row.of(request, read) for request in requests]
    for first in range(0, len(rows), max_rows):
        _answer(_Decoding(model, rows[first : first + max_rows], seg_id), stop_ids, sampling, is_complete)
    masks = _masks(model, read, rows)
    scored = model.score_head is not None and rows
    scores = _scores(model.score_head, rows, masks) if scored else [(None, None)] * len(rows)
    return [Generated(row.answer, mask, *of_row) for row, mask, of_row in zip(rows, masks, scores, strict=True)]


@dataclass(frozen=True, eq=False)
class ReadImages:
    """The images of a sequence after reading: keys and values of each layer, and where the text continues."""

    layers: list[tuple[Tensor, Tensor]]  # (1, kv heads, tokens, d) each
    patch_states: list[Tensor]  # (h, w, D) of each image
    next_position: int
    regions: Tensor | None  # (15, D) pooled, to add at their names; None if they are fused into the patches
    # of a model that takes clicks: the embedded patches of all images (sum N, D), and their positions (3, sum N)
    patches: Tensor | None
    patch_positions: Tensor


@dataclass(eq=False)
class _Row:
    """The state of a question while its answer is generated."""

    request: GenerationRequest
    images: ReadImages | None
    next_position: int
    answer: list[int]
    seg_states: list[Tensor] = field(default_factory=list)  # (D,) of each [SEG] of the answer
    asked_state: Tensor | None = None  # (D,) of the last token of the question
    running: bool = True

    @classmethod
    def of(cls, request: GenerationRequest, read: list[ReadImages]) -> _Row:
        images = None if request.image is None else read[request.image]
        return cls(request, images, 0 if images is None else images.next_position, list(request.answer_ids))


@torch.inference_mode()
def read_images(model: PixelSail, prefixes: Batch) -> list[ReadImages]:
    """Read packed sequences of image blocks, once for all the questions that are asked about them."""
    cache = DynamicCache()
    embeds = model.embed(prefixes)
    hidden = model.decode(embeds, prefixes.position_ids, model.layout(prefixes, embeds.dtype), cache)
    patches = iter(hidden[prefixes.patch_index].split([h * w for h, w in prefixes.grids_hw]))
    sizes = [sum(h * w for h, w in grids_hw) for grids_hw in prefixes.grids_by_sequence]
    positions = prefixes.position_ids[:, prefixes.patch_index].split(sizes, dim=1)
    pooled, embedded = model.pooled_regions(prefixes), model.clickable_patches(prefixes)
    regions = [None] * len(sizes) if pooled is None else list(pooled)
    clickable = [None] * len(sizes) if embedded is None else embedded.split(sizes)
    return [
        ReadImages(
            layers=[
                (layer.keys[:, :, span[0] : span[-1]], layer.values[:, :, span[0] : span[-1]]) for layer in cache.layers
            ],
            patch_states=[next(patches).view(h, w, -1) for h, w in grids_hw],
            next_position=int(prefixes.position_ids[:, span[-1] - 1].max()) + 1,
            regions=drawn,
            patches=of_clicks,
            patch_positions=places,
        )
        for span, grids_hw, drawn, of_clicks, places in zip(
            prefixes.spans, prefixes.grids_by_sequence, regions, clickable, positions, strict=True
        )
    ]


def _answer(
    decoding: _Decoding,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool] | None,
) -> None:
    """Generate the answers of a batch of rows, token by token."""
    rows, logits = decoding.rows, decoding.read()
    for step in range(sampling.max_new_tokens):
        tokens = _choose(logits, sampling)
        _check_finite(tokens, rows)
        for row, token in zip(rows, tokens, strict=True):
            row.running = row.running and token not in stop_ids
            if row.running:
                row.answer.append(token)
                if row.request.on_token is not None:
                    row.request.on_token(token)
                row.running = is_complete is None or not is_complete(row.answer)
        last = step + 1 == sampling.max_new_tokens
        mask_pending = any(row.running and token == decoding.seg_id for row, token in zip(rows, tokens, strict=True))
        if not any(row.running for row in rows) or (last and not mask_pending):
            return
        logits = decoding.step(tokens)


class _Decoding:
    """A batch of rows that continue. Texts are padded on the right; `owned` marks each row's columns.

    The cache holds the texts alone: rows of one image share its keys and values.
    """

    def __init__(self, model: PixelSail, rows: list[_Row], seg_id: int):
        self.model, self.rows, self.seg_id = model, rows, seg_id
        device = model.device
        self.owned = torch.empty(len(rows), 0, dtype=torch.bool, device=device)  # (Q, columns)
        self.cache = DynamicCache()
        self.regions: Tensor | None = None  # (Q, 15, D)
        read = {id(row.images): row.images for row in rows}
        self.prefixes = []
        for key, images in read.items():
            of_images = torch.tensor([i for i, row in enumerate(rows) if id(row.images) == key], device=device)
            self.prefixes.append(Prefix(of_images, _no_tokens(model) if images is None else images.layers))
        drawn = [None if row.images is None else row.images.regions for row in rows]
        named = next((regions for regions in drawn if regions is not None), None)
        if named is not None:  # a row without an image has no region
            self.regions = torch.stack([torch.zeros_like(named) if one is None else one for one in drawn])

    def read(self) -> Tensor:
        """Read the questions. Returns the logits (Q, V) of the first new token."""
        device, rows = self.model.device, self.rows
        texts = [[*row.request.question_ids, *row.request.answer_ids] for row in rows]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [text[-1]] * (longest - len(text)) for text in texts], device=device)
        columns = torch.arange(longest, device=device)
        real = columns < torch.tensor([[len(text)] for text in texts], device=device)  # (Q, longest)
        self.owned = torch.cat([self.owned, real], dim=1)
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        starts = torch.tensor([row.next_position for row in rows], device=device)
        diagonal = torch.eye(longest, dtype=torch.bool, device=device)  # padding sees itself: no softmax is empty
        positions = (starts[:, None] + columns).expand(3, -1, -1)
        embeds, positions = self._with_clicks(self.model.embed_text(ids, self.regions), positions)
        hidden = self._forward(embeds, positions, causal & self.owned[:, None] | diagonal)
        for row, text, states in zip(rows, texts, hidden, strict=True):
            row.next_position += len(text)
            answer = range(len(row.request.question_ids), len(text))
            row.seg_states = [states[i] for i in answer if text[i] == self.seg_id]
            row.asked_state = states[answer.start - 1]
        ends = torch.tensor([len(text) - 1 for text in texts], device=device)
        return self._logits(hidden[torch.arange(len(rows), device=device), ends])

    def step(self, tokens: list[int]) -> Tensor:
        """Read one new token per row. Returns the logits (Q, V) of the next token."""
        rows = self.rows
        host = torch.tensor([[max(token, 0), row.next_position] for token, row in zip(tokens, rows, strict=True)])
        on_gpu = self.model.device.type == "cuda"  # a copy from pinned memory does not wait
        ids, positions = (host.pin_memory() if on_gpu else host).to(self.model.device, non_blocking=on_gpu).split(1, 1)
        self.owned = torch.cat([self.owned, self.owned.new_ones(len(tokens), 1)], dim=1)
        embeds = self.model.embed_text(ids, self.regions)
        hidden = self._forward(embeds, positions.expand(3, -1, -1), self.owned[:, None])[:, 0]
        for row, token, state in zip(rows, tokens, hidden, strict=True):
            row.next_position += 1
            if row.running and token == self.seg_id:
                row.seg_states.append(state)
        return self._logits(hidden)

    def _with_clicks(self, embeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (Q, T, D) and positions (3, Q, T) of the questions, with their clicks: see model/clicks.py."""
        for number, row in enumerate(self.rows):
            clicks = row.request.clicks
            if clicks is not None and len(clicks):
                at = clicks.tokens.to(embeds.device) + number * embeds.shape[1]
                on = clicks.patches.to(embeds.device)
                added = self.model.fusion.clicks(row.images.patches[on], clicks.values.to(embeds.device))
                embeds = embeds.flatten(0, 1).index_add(0, at, added.to(embeds.dtype)).view_as(embeds)
                places = row.images.patch_positions[:, on]
                positions = positions.flatten(1).index_copy(1, at, places).view_as(positions)
        return embeds, positions

    def _forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        decoder = self.model.language_model.get_decoder()
        output = decoder(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=mask[:, None],
            use_cache=True,
            prefixes=self.prefixes,
            **{cache_argument(decoder): self.cache},
        )
        return output.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.language_model.get_output_embeddings()(hidden).float()


def _no_tokens(model: PixelSail) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of a prefix that is empty."""
    text = model.config.text_config
    keys, values = (
        torch.empty(1, text.num_key_value_heads, 0, width, device=model.device)
        for width in head_widths(text, model.config.architecture)
    )
    return [(keys, values)] * text.num_hidden_layers


def _check_finite(tokens: list[int], rows: list[_Row]) -> None:
    """Raises NotFinite if a running row has NOT_FINITE in place of a token."""
    if any(row.running and token == NOT_FINITE for token, row in zip(tokens, rows, strict=True)):
        raise NotFinite(
            "the model's logits are not finite (NaN or infinity), so its answer means nothing; its weights are damaged "
            "or belong to another model, or they need --precision fp32"
        )


def _choose(logits: Tensor, sampling: Sampling) -> list[int]:
    """The next token of each row of logits (Q, V), or NOT_FINITE if its largest logit is not finite, as with any NaN.

    The only time that the host waits for a GPU, once for each new token. torch.multinomial draws in the same way, and
    so the same tokens, but waits to look at the probabilities.
    """
    scores = logits
    if sampling.temperature > 0:
        scaled = logits / sampling.temperature
        if sampling.top_k:
            scaled = TopKLogitsWarper(sampling.top_k)(None, scaled)
        if sampling.top_p < 1:
            scaled = TopPLogitsWarper(sampling.top_p)(None, scaled)
        probabilities = scaled.softmax(-1)
        scores = probabilities / torch.empty_like(probabilities).exponential_(1, generator=sampling.generator)
    broken = ~(logits.amax(-1).abs() < math.inf)
    return scores.argmax(-1).masked_fill(broken, NOT_FINITE).tolist()


def _masks(model: PixelSail, read: list[ReadImages], rows: list[_Row]) -> list[Tensor]:
    """Logits (K, h', w') of each row. An image goes through the mask head once for all of its questions."""
    masks = {id(row): torch.empty(0, 1, 1, device=model.device) for row in rows}
    segmented = []
    for images in read:
        own = [row for row in rows if row.images is images and row.seg_states]
        for number, patch_states in enumerate(images.patch_states):
            segmented.append((patch_states, [row for row in own if row.request.masks_on == number]))
    segmented = [(patch_states, of_image) for patch_states, of_image in segmented if of_image]
    if segmented:
        states = [torch.stack([state for row in of_image for state in row.seg_states]) for _, of_image in segmented]
        logits, _ = model.mask_head([patch_states for patch_states, _ in segmented], states)
        for (_, of_image), image_logits in zip(segmented, logits, strict=True):
            if not image_logits.isfinite().all():
                raise NotFinite("the model's mask logits are not finite (NaN or infinity); its weights are damaged")
            pieces = image_logits.float().split([len(row.seg_states) for row in of_image])
            masks |= {id(row): piece for row, piece in zip(of_image, pieces, strict=True)}
    return [masks[id(row)] for row in rows]


def _scores(head: ScoreHead, rows: list[_Row], masks: list[Tensor]) -> list[tuple[list[float], float]]:
    """The scores and the presence of each row. The host waits once."""
    asked = torch.stack([row.asked_state for row in rows])
    of_masks = [state for row, mask in zip(rows, masks, strict=True) if len(mask) for state in row.seg_states]
    seg_states = torch.stack(of_masks) if of_masks else asked[:0]
    score_logits, presence_logits = head(masks, seg_states, asked)
    of_row = torch.repeat_interleave(torch.tensor([len(mask) for mask in masks]))  # the row of each mask
    presence = presence_logits.sigmoid()
    scores = score_logits.sigmoid() * presence[of_row.to(presence.device)]
    values = iter(torch.cat([scores, presence]).tolist())
    by_row = [[next(values) for _ in range(len(mask))] for mask in masks]
    return list(zip(by_row, values, strict=True))
