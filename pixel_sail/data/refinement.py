"""Turns of clicks for training, made from samples with masks: a mask that is wrong, and clicks that mend it.

The masks that the model itself would draw are not there where samples are read. Wrong masks stand in for them: of
another object of the image, beside its place, with too much, with too little, or empty. The first is what a model draws
that mistakes an expression, the second has errors at its edges, as those of a trained model have; the others have
larger and straighter ones. Since the text holds no mask but only clicks, nothing in a sample says which wrong mask the
clicks were made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import shift

from pixel_sail.config import ClickConfig
from pixel_sail.data.masks import decode_mask, resize_nearest
from pixel_sail.data.next_click import random_clicks
from pixel_sail.data.turn_masks import turns_with_masks
from pixel_sail.tokens import CLICK, SEG
from pixel_sail.types import RLE, Click, Sample, Turn

WORK_PX = 256  # longer side at most of the masks that clicks are made on
OTHERS = 3  # masks of other objects that are decoded
SEVERAL = 0.2  # share of the turns that have two or three clicks
BESIDE_PX = 4  # of a mask that lies beside its place, down and to the right: -4 to 4
MISTAKEN = 0.5  # of the conversations that begin with a phrase, how many begin with that of another object


def with_clicks(sample: Sample, clicks: ClickConfig, rng: np.random.Generator) -> Sample:
    """The sample, at the rate `clicks.share`, with turns of clicks about one of its masks; all draws are from `rng`.

    They come first, behind the turn of the mask (or of the mask that was drawn instead), as they do in a Session; each
    is answered with the whole mask. The other turns follow. A sample without a turn that has one [SEG], with its mask
    on the first image, stays as it is: one that has a crop (data/zoom.py), for example.
    """
    if rng.random() >= clicks.share:
        return sample
    owned = _turns_of_one_mask(sample)
    if not owned:
        return sample
    chosen = [owned[i] for i in rng.permutation(len(owned))[: 1 + OTHERS]]
    full = [decode_mask(sample.masks[mask]) for _, mask in chosen]
    size_hw = full[0].shape
    scale = min(1.0, WORK_PX / max(size_hw))
    small_hw = tuple(max(1, round(side * scale)) for side in size_hw)
    masks = [resize_nearest(mask, small_hw) for mask in full]
    by_phrase = rng.random() >= clicks.alone
    target = 0
    if by_phrase and rng.random() < MISTAKEN:  # the phrase of another object, whose mask is drawn
        apart = [i for i, mask in enumerate(masks) if i and mask.any() and not (mask & masks[0]).any()]
        target = apart[0] if apart else 0
    if not masks[target].any():
        return sample
    drawn = masks[0] if target else None if by_phrase else np.zeros(small_hw, dtype=bool)
    others = [mask for i, mask in enumerate(masks) if i != target]
    turns = _click_turns(masks[target], others, drawn, size_hw, int(rng.integers(clicks.turns)) + 1, rng)
    return _placed(sample, chosen[0][0] if by_phrase else None, turns, sample.masks[chosen[target][1]])


def _turns_of_one_mask(sample: Sample) -> list[tuple[int, int]]:
    """(turn, mask) of each turn whose answer has one [SEG], with its mask on the first image."""
    turns, on = turns_with_masks(sample), sample.image_of_masks
    if not sum(len(own) for _, own in turns) == len(on) == len(sample.masks):  # the encoder reports it
        return []
    return [(number, own.start) for number, (_, own) in enumerate(turns) if len(own) == 1 and on[own.start] == 0]


def _click_turns(
    truth: np.ndarray,
    others: Sequence[np.ndarray],
    drawn: np.ndarray | None,
    size_hw: tuple[int, int],
    count: int,
    rng: np.random.Generator,
) -> list[Turn]:
    """`count` turns of clicks on masks that are not `truth`: first on `drawn`, then on others that are wrong."""
    turns = []
    for _ in range(count):
        wrong = wrong_mask(truth, others, rng) if drawn is None else drawn
        number = 1 if rng.random() >= SEVERAL else int(rng.integers(2, 4))
        clicks = [_at_full_size(click, truth.shape, size_hw) for click in random_clicks(wrong, truth, number, rng)]
        if clicks:
            turns.append(Turn(CLICK * len(clicks), SEG, tuple(clicks)))
        drawn = None
    return turns


def wrong_mask(truth: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`truth` (H, W) bool a little beside its place, without all on one side of a line, or with too much.

    Too much is another object or a disc.
    """
    kind = rng.integers(3)
    if kind == 0:  # clicks on edges, as trained models get most of them
        return shift(truth.view(np.uint8), rng.integers(-BESIDE_PX, BESIDE_PX + 1, size=2), order=0).view(bool)
    ys, xs = np.nonzero(truth)
    at = rng.integers(len(ys))
    rows, columns = np.ogrid[: truth.shape[0], : truth.shape[1]]
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        side = (columns - xs[at]) * np.cos(angle) + (rows - ys[at]) * np.sin(angle) >= 0
        return truth & ~side
    if others and rng.random() < 0.5:
        return truth | others[rng.integers(len(others))]
    radius = np.sqrt(len(ys) / np.pi) * rng.uniform(0.3, 1.0) + 1
    return truth | ((columns - xs[at]) ** 2 + (rows - ys[at]) ** 2 <= radius**2)


def _at_full_size(click: Click, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Click:
    x, y = ((at + 0.5) * to // old for at, old, to in zip((click.x, click.y), from_hw[::-1], to_hw[::-1], strict=True))
    return replace(click, x=x, y=y)


def _placed(sample: Sample, anchor: int | None, turns: Sequence[Turn], target: RLE) -> Sample:
    """The sample with the turn `anchor` and the turns of clicks about `target` before its other turns."""
    numbered = list(zip(sample.masks, sample.image_of_masks, strict=True))
    with_masks = [(turn, [numbered[n] for n in own]) for turn, own in turns_with_masks(sample)]
    first = [] if anchor is None else [anchor]
    order = [*first, *(i for i in range(len(sample.turns)) if i != anchor)]
    of_order = [with_masks[i] for i in order]
    of_clicks = [(turn, [(target, 0)]) for turn in turns]
    both = [*of_order[: len(first)], *of_clicks, *of_order[len(first) :]]
    placed = [mask for _, own in both for mask in own]
    return replace(
        sample,
        turns=tuple(turn for turn, _ in both),
        masks=tuple(rle for rle, _ in placed),
        mask_images=tuple(image for _, image in placed) if any(sample.mask_images) else (),
    )
