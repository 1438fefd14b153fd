"""What an answer is worth, and how much better it is than the other answers to its question.

The reward of an answer is its IoU and, with a smaller weight, its form:

    IoU    of the united masks of the answer with the united masks of the truth. Where nothing is there, 1 for an answer
           without a [SEG], which abstains, and 0 for one with; where something is there, an answer without is 0
    form   1 if the answer ends, has no special token but [SEG] and those of the annotated answer, and either abstains
           in words or has its [SEG]s as the annotated answer has them: each after words that name it, or one alone

Its advantage is the reward minus the mean reward of the answers to the same question (GRPO, arXiv 2402.03300). It is
not divided by their standard deviation, as GRPO does: IoUs are continuous, and two answers whose masks differ by a
pixel would weigh as much as a right and a wrong object (the bias of Dr. GRPO, arXiv 2503.20783).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pixel_sail.data.encode import Encoder
from pixel_sail.losses import mask_ious
from pixel_sail.model.generation import Generated
from pixel_sail.tokens import SEG
from pixel_sail.types import IGNORE_LABEL, Encoded


@dataclass(frozen=True)
class Answer:
    """A sampled answer, how often it was sampled, and its reward."""

    token_ids: tuple[int, ...]
    ended: bool  # with the stop token; else it reached the limit of new tokens
    times: int
    iou: float
    form: float  # 0 or 1

    def reward(self, format_weight: float) -> float:
        return self.iou + format_weight * self.form


def rate(sampled: Sequence[Generated], truth: Encoded, encoder: Encoder, max_new_tokens: int) -> list[Answer]:
    """The different answers among those `sampled` for one question. `truth`: the question with its annotated answer."""
    times = Counter(tuple(answer.token_ids) for answer in sampled)
    first = {tuple(answer.token_ids): answer for answer in reversed(sampled)}
    annotated = truth.labels[truth.labels != IGNORE_LABEL].tolist()
    foreign = set(encoder.tokens.all_ids) - {encoder.tokens.seg, *annotated}
    answers = []
    for token_ids, count in times.items():
        ended = len(token_ids) < max_new_tokens
        text, model = encoder.answer_text(token_ids), encoder.answer_text(annotated)
        well_formed = ended and not foreign & set(token_ids) and has_form(text, model)
        iou = answer_iou(first[token_ids].mask_logits, truth)
        answers.append(Answer(token_ids, ended, count, iou, float(well_formed)))
    return answers


def answer_iou(mask_logits: Tensor, truth: Encoded) -> float:
    """The first term of the reward. `mask_logits`: (K, h', w') of an answer with K [SEG]s."""
    (image,) = truth.images
    if not len(image.masks) or not len(mask_logits):
        return float(len(image.masks) == len(mask_logits))
    united = mask_logits.amax(0, keepdim=True).float()
    return float(mask_ious(united, image.masks.pixels().amax(0, keepdim=True)))


def has_form(text: str, annotated: str) -> bool:
    """Whether an answer abstains in words, or has its [SEG]s as the annotated answer, if that has one, has its own."""
    named, wanted = _named(text), _named(annotated)
    if not named:
        return _has_words(text)
    if not wanted:
        return True
    return all(named) if all(wanted) else len(named) == 1 and not any(named)


def advantages(answers: Sequence[Answer], format_weight: float) -> list[float]:
    """Of each answer: its reward minus the mean over all that were sampled, times how often it was sampled."""
    rewards = [answer.reward(format_weight) for answer in answers]
    if min(rewards) == max(rewards):
        return [0.0] * len(answers)  # exactly: there is nothing to learn
    count = sum(answer.times for answer in answers)
    mean = sum(answer.times * reward for answer, reward in zip(answers, rewards, strict=True)) / count
    return [answer.times * (reward - mean) for answer, reward in zip(answers, rewards, strict=True)]


def _named(text: str) -> list[bool]:
    """Of each [SEG]: whether there are words between it and the one before."""
    return [_has_words(part) for part in text.split(SEG)[:-1]]


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)
