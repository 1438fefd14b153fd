"""Small annotation files written by the tests of the readers, and what they check of a Sample."""

import json

import numpy as np
from PIL import Image

from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.sources import open_source
from pixel_sail.tokens import prompt_names

SIZE = (30, 40)  # height, width of every image, in pixels


def box_mask(x, y, side=5):
    """(H, W) bool; boxes at different x, y (multiples of 5) are disjoint."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def box_rle(x, y, side=5):
    return dict(encode_mask(box_mask(x, y, side)))


def box_polygon(x, y, side=5):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def box_runs(x, y, side=5):
    flat = box_mask(x, y, side).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    return {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}


def write_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(folder / name)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def open_named(root, source, split="train", count=5, **options):
    data = DataConfig(
        root=root, mixture=[MixtureEntry(source=source, split=split)], expressions_per_image=count, **options
    )
    return open_source(data.mixture[0], data)


def draw_sample(source, index=0, seed=0):
    sample = source.sample(index, np.random.default_rng(seed))
    assert sample.key == source.key(index)
    assert list(sample.prompts) == list(range(len(sample.prompts)))
    first_mentions = dict.fromkeys(k for t in sample.turns for k in prompt_names(t.question + t.answer))
    assert list(first_mentions) == list(sample.prompts)  # numbered in the order in which they are named, none unnamed
    assert sum(turn.answer.count("[SEG]") for turn in sample.turns) == len(sample.masks)
    return sample


def assert_mask(rle, mask):
    np.testing.assert_array_equal(decode_mask(rle), mask)


def messages(*texts):
    """A conversation in LLaVA's format: human and gpt alternate."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
