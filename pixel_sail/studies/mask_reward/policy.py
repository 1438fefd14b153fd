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

from pixel_sail.data.encode import Encoder
from pixel_sail.data.pack import pack
from pixel_sail.data.runs import join_masks
from pixel_sail.losses import next_token_loss
from pixel_sail.model.generation import Generated, GenerationRequest, Sampling, generate
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.studies.mask_reward.rewards import Answer
from pixel_sail.tokens import SEG
from pixel_sail.types import IGNORE_LABEL, Batch, Encoded, Sample

MAX_ROWS = 128  # answers that are sampled at once


def single_questions(sample: Sample) -> Iterator[Sample]:
    """Each question of a sample alone, as it is asked at test time, with the masks of its answer."""
    first = 0
    for turn in sample.turns:
        last = first + turn.answer.count(SEG)
        yield replace(sample, turns=(turn,), masks=sample.masks[first:last], dropped_turns=0)
        first = last


def sample_answers(
    model: PixelSail, encoder: Encoder, questions: Sequence[Encoded], answers: int, sampling: Sampling
) -> list[list[Generated]]:
    """`answers` answers to each question, from the whole distribution. Questions of one `seed` have the same image.

    `questions`: each about an image, with its annotated answer, which is not shown.
    """
    seeds = list(dict.fromkeys(question.seed for question in questions))
    shown = {question.seed: _beginning(question, question.image_span[1]) for question in questions}
    prefixes = pack([shown[seed] for seed in seeds], encoder.tokens.seg, encoder.tokens.vision_patch)
    requests = []
    for question in questions:
        text = question.input_ids[question.image_span[1] : _asked(question)].tolist()
        requests += [GenerationRequest(text, seeds.index(question.seed))] * answers
    stops = (encoder.end_ids[0],)
    generated = generate(
        model, prefixes.to(model.device), requests, encoder.tokens.seg, stops, sampling, max_rows=MAX_ROWS
    )
    return [generated[first : first + answers] for first in range(0, len(generated), answers)]


def with_answer(question: Encoded, answer: Answer, weight: float, end_id: int) -> Encoded:
    """The question with a sampled answer in place of the annotated one; `weight` of each of its tokens. No masks."""
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


def pack_answers(sequences: Sequence[Encoded], encoder: Encoder) -> Batch:
    """Packed sequences of `with_answer`. An image token that the model has written is a token like any other."""
    batch = pack(sequences, encoder.tokens.seg, encoder.tokens.vision_patch)
    written = torch.isin(batch.patch_index, batch.predict_index + 1)
    return replace(batch, patch_index=batch.patch_index[~written])


def policy_loss(model: PixelSail, batch: Batch) -> Tensor:
    """Minus the sum of the log probabilities of the answers' tokens, weighted; a scalar. Computes no mask."""
    embeds = model.embed(batch)
    hidden = model.decode(embeds, batch.position_ids, model.layout(batch, embeds.dtype))
    logits = model.language_model.get_output_embeddings()(hidden.index_select(0, batch.predict_index))
    return next_token_loss(logits, batch.labels, batch.label_weights)


def _asked(question: Encoded) -> int:
    """The number of tokens before the answer."""
    return int((question.labels != IGNORE_LABEL).nonzero()[0, 0])


def _beginning(question: Encoded, length: int) -> Encoded:
    """Its first tokens, the image among them, without masks."""
    return replace(
        question,
        input_ids=question.input_ids[:length],
        labels=question.labels[:length],
        position_ids=question.position_ids[:, :length],
        masks=join_masks([], (0, 0)),
    )
