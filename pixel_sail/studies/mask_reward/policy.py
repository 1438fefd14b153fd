"""The policy: answers sampled from the model, and the gradient of their expected reward.

The loss is -1/n times the sum, over n sampled answers, of advantage x log probability of the answer, which is the sum
of those of its tokens. Its gradient is an unbiased estimate of that of the expected reward, times (G - 1) / G for G
answers a question, because an answer is part of the mean that it is compared with (REINFORCE with a baseline). Each
sample is used for one update, while the policy is the one that it was sampled from: the ratio of GRPO's objective is 1,
and there is nothing to clip. Not divided by the length of an answer, which would favour long wrong ones (Dr. GRPO).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from pixel_sail.data.encode import Encoder
from pixel_sail.data.pack import pack
from pixel_sail.data.turn_masks import turns_with_masks
from pixel_sail.losses import next_token_loss
from pixel_sail.model.attention import Prefix
from pixel_sail.model.generation import Generated, GenerationRequest, Sampling, generate
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.studies.mask_reward.rewards import Answer
from pixel_sail.types import IGNORE_LABEL, Encoded, Sample

MAX_ROWS = 128  # answers that are sampled at once


def single_questions(sample: Sample) -> Iterator[Sample]:
    """Each question of a sample alone, as it is asked at test time, with the masks of its answer."""
    for turn, own in turns_with_masks(sample):
        masks, on = (values[own.start : own.stop] for values in (sample.masks, sample.mask_images))
        yield replace(sample, turns=(turn,), masks=masks, mask_images=on, dropped_turns=0)


def sample_answers(
    model: PixelSail, encoder: Encoder, questions: Sequence[Encoded], answers: int, sampling: Sampling
) -> list[list[Generated]]:
    """`answers` answers to each question, from the whole distribution. Questions of one `seed` have the same image.

    `questions`: each about an image, with its annotated answer, which is not shown.
    """
    seeds = list(dict.fromkeys(question.seed for question in questions))
    prefixes = pack(_images(questions, encoder), encoder.tokens.seg, encoder.tokens.vision_patch)
    requests = []
    for question in questions:
        text = question.input_ids[image_tokens(question, encoder) : _asked(question)].tolist()
        requests += [GenerationRequest(text, seeds.index(question.seed))] * answers
    stops = (encoder.end_ids[0],)
    generated = generate(
        model, prefixes.to(model.device), requests, encoder.tokens.seg, stops, sampling, max_rows=MAX_ROWS
    )
    return [generated[first : first + answers] for first in range(0, len(generated), answers)]


def with_answer(question: Encoded, answer: Answer, weight: float, end_id: int) -> Encoded:
    """The question with a sampled answer in place of the annotated one; `weight` of each of its tokens."""
    asked = _beginning(question, _asked(question))
    tokens = torch.tensor([*answer.token_ids, *([end_id] if answer.ended else [])])
    after = asked.position_ids[:, -1:] + 1 + torch.arange(len(tokens))
    return replace(
        asked,
        input_ids=torch.cat([asked.input_ids, tokens]),
        labels=torch.cat([asked.labels, tokens]),
        position_ids=torch.cat([asked.position_ids, after], dim=1),
        lm_weight=weight,
    )


def policy_loss(model: PixelSail, encoder: Encoder, sequences: Sequence[Encoded]) -> Tensor:
    """Minus the sum of the log probabilities of the answers' tokens, each weighted; a scalar.

    `sequences`: of `with_answer`. An image goes through the model once, and its texts continue from its keys and
    values, as in generation: an answer of thirty tokens need not repeat an image of three hundred.
    """
    seeds = list(dict.fromkeys(sequence.seed for sequence in sequences))
    batch = pack(_images(sequences, encoder), encoder.tokens.seg, encoder.tokens.vision_patch).to(model.device)
    cache, embeds = DynamicCache(), model.embed(batch)
    model.decode(embeds, batch.position_ids, model.layout(batch, embeds.dtype), cache)
    of_row = torch.tensor([seeds.index(sequence.seed) for sequence in sequences], device=model.device)
    prefixes = [
        Prefix((of_row == number).nonzero()[:, 0], [_cut(layer, span[0], span[-1]) for layer in cache.layers])
        for number, span in enumerate(batch.spans)
    ]
    ids, labels, positions = (part.to(model.device) for part in _texts(sequences, encoder))
    pooled = model.pooled_regions(batch)
    decoder, length = model.language_model.get_decoder(), ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
    hidden = decoder(
        inputs_embeds=model.embed_text(ids, None if pooled is None else pooled[of_row]),
        position_ids=positions,
        attention_mask=causal.expand(len(ids), 1, -1, -1),
        use_cache=False,
        prefixes=prefixes,
    ).last_hidden_state
    rows, columns = (labels != IGNORE_LABEL).nonzero(as_tuple=True)
    logits = model.language_model.get_output_embeddings()(hidden[rows, columns - 1])
    weights = torch.tensor([sequence.lm_weight for sequence in sequences], device=model.device)
    return next_token_loss(logits, labels[rows, columns], weights[rows])


def image_tokens(question: Encoded, encoder: Encoder) -> int:
    """The number of its tokens that are the image's, which come first; 0 without an image."""
    ends = (question.input_ids[: _asked(question)] == encoder.tokens.vision_end).nonzero()
    return int(ends[-1, 0]) + 1 if len(ends) else 0


def _images(questions: Sequence[Encoded], encoder: Encoder) -> list[Encoded]:
    """The image of each seed, in the order of their first questions. Their masks are read by nobody."""
    first = {question.seed: question for question in reversed(questions)}
    seeds = dict.fromkeys(question.seed for question in questions)
    return [_beginning(first[seed], image_tokens(first[seed], encoder)) for seed in seeds]


def _texts(sequences: Sequence[Encoded], encoder: Encoder) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (Q, T), labels (Q, T) and positions (3, Q, T) of what follows the images, padded on the right.

    No token sees the padding, which comes after it.
    """
    starts = [image_tokens(sequence, encoder) for sequence in sequences]
    parts = list(zip(sequences, starts, strict=True))
    ids = pad_sequence([sequence.input_ids[start:] for sequence, start in parts], batch_first=True)
    labels = [sequence.labels[start:] for sequence, start in parts]
    positions = pad_sequence([sequence.position_ids[:, start:].T for sequence, start in parts], batch_first=True)
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_LABEL)
    return ids, padded, positions.permute(2, 0, 1)


def _cut(layer: CacheLayerMixin, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Keys and values (1, kv heads, stop - start, d) of some tokens."""
    return layer.keys[:, :, start:stop], layer.values[:, :, start:stop]


def _asked(question: Encoded) -> int:
    """The number of tokens before the answer."""
    return int((question.labels != IGNORE_LABEL).nonzero()[0, 0])


def _beginning(question: Encoded, length: int) -> Encoded:
    """Its first tokens, with the image among them."""
    return replace(
        question,
        input_ids=question.input_ids[:length],
        labels=question.labels[:length],
        position_ids=question.position_ids[:, :length],
    )
