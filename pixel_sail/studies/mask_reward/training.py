"""One stage: the mask losses of the truth, and words from annotated answers, from rewards, or from both.

One process and one loop for every arm, so that arms differ in two weights and in nothing else: the same images and
questions in the same order, the same optimizer, rates and number of steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pixel_sail.config import Config
from pixel_sail.data.encode import Encoder
from pixel_sail.data.mixture import Mixture
from pixel_sail.data.pack import consecutive_groups, pack
from pixel_sail.durable import append_json_line
from pixel_sail.errors import UserError
from pixel_sail.losses import compute_losses, loss_counts, loss_weights
from pixel_sail.model.generation import Sampling
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.studies.mask_reward.plan import Arm, StudyConfig
from pixel_sail.studies.mask_reward.policy import (
    image_tokens,
    policy_loss,
    sample_answers,
    single_questions,
    with_answer,
)
from pixel_sail.studies.mask_reward.rewards import Answer, advantages, rate
from pixel_sail.train.optim import build_optimizer, lr_at, parameter_groups, set_lr
from pixel_sail.types import BadSample, Encoded


def train_stage(
    model: PixelSail,
    encoder: Encoder,
    mixture: Mixture,
    config: Config,
    study: StudyConfig,
    arm: Arm,
    first: int,
    log: Path,
) -> None:
    """Train for `train.steps` steps from stream position `first`, with a line of `log` for each step.

    Raises UserError if a loss is not finite.
    """
    optimizer, train = build_optimizer(parameter_groups(model, config.train), config.train), config.train
    model.train()
    for step in range(train.steps):
        started = time.perf_counter()
        seed = config.run.seed + 1_000_003 * (first + step * train.batch_size)
        questions = list(read_questions(mixture, encoder, first + step * train.batch_size, train.batch_size))
        torch.manual_seed(seed)
        losses = add_supervised(model, encoder, questions, config, arm.lm)
        if arm.reward:
            losses |= add_rewards(model, encoder, questions, config, study, arm.reward, seed)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise UserError(
                f"{log.parent}: the gradient of step {step + 1} is not finite ({losses}); nothing was updated"
            )
        set_lr(optimizer, lr_at(step, train.steps, train.lr, train.warmup_fraction))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        line = {"step": step + 1, **losses, "grad_norm": norm, "questions": len(questions)}
        append_json_line(log, line | {"seconds": time.perf_counter() - started})


def read_questions(mixture: Mixture, encoder: Encoder, first: int, count: int) -> Iterator[Encoded]:
    """The questions of `count` stream positions, each alone with its image. What cannot be used is left out.

    Questions of one position have one `seed`; text without an image is not asked.
    """
    for position in range(first, first + count):
        try:
            questions = list(single_questions(mixture.sample(position)))
        except BadSample:
            continue
        for question in questions:
            try:
                encoded = encoder.encode(question, mixture.point_seed(position))
            except BadSample:
                continue
            if image_tokens(encoded, encoder):
                yield encoded


def add_supervised(
    model: PixelSail, encoder: Encoder, questions: Sequence[Encoded], config: Config, lm_weight: float
) -> dict[str, float]:
    """Add the gradients of the losses of training, with `lm_weight` for that of words. Returns the losses.

    Sums over the questions of a step are divided by its counts, as in training (train/step.py).
    """
    weights, counted = loss_weights(config) | {"lm": lm_weight}, loss_counts(config)
    groups = consecutive_groups([len(question) for question in questions], config.train.micro_batch_tokens)
    batches = [_packed([questions[i] for i in group], encoder).to(model.device) for group in groups]
    counts = {name: max(sum(batch.counts()[of] for batch in batches), 1.0) for name, of in counted.items()}
    losses = dict.fromkeys(weights, 0.0)
    for batch in batches:
        sums = compute_losses(model(batch), batch, config.loss)
        sum(weights[name] * sums[name] / counts[name] for name in weights).backward()
        losses = {name: losses[name] + float(sums[name].detach()) / counts[name] for name in weights}
    return losses


def add_rewards(
    model: PixelSail,
    encoder: Encoder,
    questions: Sequence[Encoded],
    config: Config,
    study: StudyConfig,
    weight: float,
    seed: int,
) -> dict[str, Any]:
    """Sample answers and add the gradient of their reward. Returns means over the answers, before the update.

    `told_apart`: the share of questions whose answers differ in reward; the others teach nothing. `sequences`: the
    answers that went through the model a second time; equal ones go through together, because the loss is linear.
    """
    sampling = Sampling(study.max_new_tokens, temperature=1.0, generator=torch.Generator().manual_seed(seed))
    sampled = sample_answers(model, encoder, questions, study.answers, sampling)
    rated = [
        rate(answers, question, encoder, study.max_new_tokens)
        for answers, question in zip(sampled, questions, strict=True)
    ]
    sequences = list(learned(questions, rated, study.format_weight, encoder.end_ids[0]))
    count = len(questions) * study.answers
    if sequences:
        (weight / count * policy_loss(model, encoder, sequences)).backward()
    answers = [answer for of_question in rated for answer in of_question]

    def mean(name: str) -> float:
        return sum(answer.times * float(getattr(answer, name)) for answer in answers) / max(count, 1)

    apart = sum(any(advantages(of_question, study.format_weight)) for of_question in rated)
    return {
        "iou": mean("iou"),
        "form": mean("form"),
        "told_apart": apart / max(len(questions), 1),
        "different": len(answers) / max(len(questions), 1),
        "sequences": len(sequences),
    }


def learned(
    questions: Sequence[Encoded], rated: Sequence[Sequence[Answer]], format_weight: float, end_id: int
) -> Iterator[Encoded]:
    """The sampled answers that have an advantage, each weighted by it."""
    for question, answers in zip(questions, rated, strict=True):
        for answer, advantage in zip(answers, advantages(answers, format_weight), strict=True):
            if advantage:
                yield with_answer(question, answer, advantage, end_id)


def _packed(questions: Sequence[Encoded], encoder: Encoder):
    return pack(questions, encoder.tokens.seg, encoder.tokens.vision_patch)
