"""MFU counts what is computed: by hand, and against the attention of a brute-force mask."""

from __future__ import annotations

import packed

from pixel_sail.train.flops import Flops
from pixel_sail.types import Batch


def pairs_by_hand(batch: Batch) -> int:
    """Every token and every token that it sees."""
    pairs = 0
    for start, image_start, image_stop, stop in batch.spans:
        for query in range(start, stop):
            in_image = image_start <= query < image_stop
            pairs += sum(key <= query or (in_image and image_start <= key < image_stop) for key in range(start, stop))
    return pairs


def test_attended_pairs() -> None:
    assert packed.pack([packed.only_text(0, 4)]).attended == 10
    image = packed.pack([packed.with_image(1, 2, 3, words=4)])
    assert image.attended == 12 * 13 // 2 + 8 * 7 // 2  # 8 tokens of the image block, 4 words
    batch = packed.pack([packed.only_text(0, 7), packed.with_image(1, 3, 3), packed.with_image(2, 1, 2)])
    assert batch.attended == pairs_by_hand(batch)


def test_flops_by_hand() -> None:
    flops = Flops.of(packed.small_model())
    # two layers of width 32, 4 heads of 8, 2 of keys and values, MLPs of 64; biases of q, k, v; three norms
    attention = 32 * 32 + 32 + 2 * (32 * 16 + 16) + 32 * 32
    passed = 2 * (attention + 3 * 32 * 64 + 2 * 32) + 32
    assert flops == Flops(6 * passed, 12 * 2 * 32)
    assert flops.of_step(10, 55) == 6 * passed * 10 + 12 * 2 * 32 * 55
