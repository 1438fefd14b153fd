"""Questions with two options: what `choices` teaches is true of the images, and a pair of the drawn PixMMVP differs
in what is asked and in nothing else. Read from the files, by code that shares only the words with the generator."""

from __future__ import annotations

import colorsys
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from pixel_sail import scenes
from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.sources import open_source
from pixel_sail.evaluate.pixfoundation.pixmmvp import read_objects
from pixel_sail.scenes import write_pixmmvp
from pixel_sail.scenes.colours import COLOURS, HELD_OUT

IMAGES, PAIRS = 60, 40
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
ASKED = {
    "colour": r"What colour is the (?P<kind>\w+)\?",
    "texture": r"Is the (?P<kind>\w+) (?P<x>plain|striped|dotted|checkered) or (?P<y>\w+)\?",
    "kind": r"Is the (?P<colour>\w+) thing an? (?P<x>\w+) or an? (?P<y>\w+)\?",
    "side": r"Is the (?P<kind>\w+) on the left or on the right of the picture\?",
    "presence": r"Can you see an? (?P<kind>\w+) in the picture\?",
    "count": r"Is there one (?P<kind>\w+), or are there two\?",
    "total": r"Are there (?P<x>\w+) or (?P<y>\w+) things in the picture\?",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("choices") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_pixmmvp, "_IMAGES_PER_PAIR", 1)
        patch.setattr(write_pixmmvp, "PAIRS", PAIRS)
        scenes.generate(out, IMAGES, 3, 160, workers=1)
    return out


@pytest.fixture(scope="module")
def pairs(root: Path) -> list[tuple[str, list]]:
    """(topic, its two rows)."""
    objects = read_objects(root)
    assert len(objects) == 2 * PAIRS
    return [(topic_of(row.question)[0], [row, other]) for row, other in zip(objects[::2], objects[1::2], strict=True)]


def topic_of(question: str) -> tuple[str, dict[str, str]]:
    ((topic, match),) = [(name, match) for name, form in ASKED.items() if (match := re.search(form, question))]
    return topic, match.groupdict()


def said(row) -> str:
    return row.options["ab".index(row.answer)].lower()


def mask_of(row) -> np.ndarray:
    return decode_mask(row.mask_rle) if row.mask_rle else np.zeros(row.size_hw, bool)


def pixels(row) -> np.ndarray:
    """Without the grain of the camera, which is not the same in both."""
    with Image.open(row.image) as image:
        assert image.size == row.size_hw[::-1]
        return np.asarray(image.filter(ImageFilter.GaussianBlur(2)), float)


def roughness(row, mask: np.ndarray) -> float:
    """How much fine pattern there is inside a mask."""
    with Image.open(row.image) as image:
        fine = np.asarray(image, float) - np.asarray(image.filter(ImageFilter.GaussianBlur(4)), float)
    return float(np.abs(fine)[ndimage.binary_erosion(mask, iterations=3)].mean())


def test_members_of_a_pair_are_asked_the_same_and_answer_differently(pairs) -> None:
    assert len({topic for topic, _ in pairs}) == 7 and Counter(topic for topic, _ in pairs)["total"] == 2
    for topic, (row, other) in pairs:
        assert (row.question, row.options, row.pair) == (other.question, other.options, other.pair)
        assert row.expression == other.expression and (row.expression is None) == (topic == "total")
        assert {row.answer, other.answer} == {"a", "b"} and row.size_hw == other.size_hw
        assert all(word in row.question for word in (topic_of(row.question)[1].values()))
    firsts = [row.answer for _, (row, _) in pairs]
    assert 8 < firsts.count("a") < 32, "the first image must not give the answer away"


def test_masks_and_images_show_the_answer(pairs) -> None:
    palette = {
        name: 255 * np.array(colorsys.hsv_to_rgb(np.mean(hue) % 360 / 360, np.mean(saturation), np.mean(value)))
        for name, (hue, saturation, value) in COLOURS.items()
    }
    for topic, rows in pairs:
        masks = [mask_of(row) for row in rows]
        if topic == "colour":
            assert (masks[0] == masks[1]).all()
            seen = [pixels(row)[mask] for row, mask in zip(rows, masks, strict=True)]
            wrong = [  # how far the image is from its own colour, and from that of the other
                [np.abs(colours.mean(axis=0) - palette[said(row)]).sum() for row in rows] for colours in seen
            ]
            assert wrong[0][0] + wrong[1][1] < wrong[0][1] + wrong[1][0], rows[0]
        elif topic == "texture":
            assert (masks[0] == masks[1]).all()
            rough = {said(row): roughness(row, mask) for row, mask in zip(rows, masks, strict=True)}
            assert len(rough) == 2
            assert "plain" not in rough or min(rough, key=rough.__getitem__) == "plain", rows[0]
        elif topic == "side":
            for row, mask in zip(rows, masks, strict=True):
                share = (np.nonzero(mask)[1].mean() + 0.5) / mask.shape[1]
                assert (share < 0.43) if said(row) == "left" else (share > 0.57), row
        elif topic == "presence":
            assert [bool(mask.any()) for mask in masks] == [said(row) == "yes" for row in rows]
        elif topic == "count":
            single, double = (masks[[said(row) for row in rows].index(number)] for number in ("one", "two"))
            assert single.any() and (double & single).sum() > 0.45 * single.sum()
            assert (double & ~single).sum() > 0.0016 * double.size
        elif topic == "kind":
            assert masks[0].any() and masks[1].any() and (masks[0] != masks[1]).any()
        else:
            assert not masks[0].any() and not masks[1].any()


def test_nothing_else_differs(pairs) -> None:
    for topic, rows in pairs:
        if topic == "total":  # what is gone has no mask: half of the image at least is the same
            change = np.abs(pixels(rows[0]) - pixels(rows[1])).mean(axis=2)
            assert np.median(change) < 0.6 and change.max() > 5, rows[0].index
            continue
        reach = ndimage.binary_dilation(mask_of(rows[0]) | mask_of(rows[1]), iterations=9)  # shadow and blur
        change = np.abs(pixels(rows[0]) - pixels(rows[1])).mean(axis=2)
        assert change[~reach].mean() < 0.6, (topic, rows[0].index)
        assert change[reach].mean() > 2 * change[~reach].mean(), (topic, rows[0].index)


def test_new_combinations_are_not_shown(pairs) -> None:
    for topic, rows in pairs:
        named = topic_of(rows[0].question)[1]
        for row in rows:
            if topic == "colour":
                assert (named["kind"], said(row)) not in HELD_OUT
            if topic == "kind":
                assert (said(row), named["colour"]) not in HELD_OUT


def test_what_is_taught_is_true(root: Path) -> None:
    known = {image["file_name"]: image for image in json.loads((root / "scenes.json").read_text())["images"]}
    entries = json.loads((root / "llava/choices.json").read_text())
    assert len(entries) == sum(image["split"] == "train" for image in known.values())
    topics, letters = Counter(), Counter()
    for entry in entries:
        image = known[Path(entry["image"]).name]
        assert image["split"] == "train"
        values = [message["value"] for message in entry["conversations"]]
        assert values[0].startswith("<image>\n") and "<image>" not in "".join(values[1:])
        for asked, answer in zip(values[::2], values[1::2], strict=True):
            topic, named = topic_of(asked)
            options = re.search(r"\(a\) (\w+) \(b\) (\w+)", asked).groups()
            assert answer in options and len(set(options)) == 2
            truth = [true_of(topic, named, option.lower(), image) for option in options]
            assert truth[options.index(answer)] and sum(truth) == 1, (asked, answer, image["objects"])
            topics[topic] += 1
            letters["ab"[options.index(answer)]] += 1
    assert len(topics) == 7 and min(topics.values()) > 3 and 0.35 < letters["a"] / letters.total() < 0.65


def true_of(topic: str, named: dict[str, str], option: str, image: dict) -> bool:
    things = image["objects"]
    of_kind = [thing for thing in things if thing["kind"] == named.get("kind")]
    if topic == "presence":
        return bool(of_kind) == (option == "yes")
    if topic in ("count", "total"):
        return len(of_kind if topic == "count" else things) == NUMBERS.index(option)
    (thing,) = of_kind if topic != "kind" else [thing for thing in things if thing["colour"] == named["colour"]]
    pair = {"colour": (thing["kind"], option), "kind": (option, thing["colour"])}.get(topic)
    assert pair not in HELD_OUT
    if topic == "side":
        share = thing["centroid"][0] / image["width"]
        return share < 0.43 if option == "left" else share > 0.57
    return thing[topic] == option


def test_the_source(root: Path) -> None:
    data = DataConfig(root=root, mixture=[MixtureEntry(source="choices")])
    source = open_source(data.mixture[0], data)
    entries = json.loads((root / "llava/choices.json").read_text())
    assert len(source) == len(entries) and not source.problems
    sample = source.sample(1, np.random.default_rng(0))
    assert sample.key == source.key(1) == "llava/choices/1" and sample.image.name == Path(entries[1]["image"]).name
    assert [turn.answer for turn in sample.turns] == [m["value"] for m in entries[1]["conversations"]][1::2]
    assert not sample.masks
    with pytest.raises(ConfigError, match="only the split 'train'"):
        open_source(MixtureEntry(source="choices", split="val"), data)


def test_small_datasets_get_few_pairs(tmp_path: Path) -> None:
    scenes.generate(tmp_path / "a", 2, 0, 64, workers=1)
    assert len(read_objects(tmp_path / "a")) == 4
    assert write_pixmmvp.PAIRS == 150 and 4000 // write_pixmmvp._IMAGES_PER_PAIR >= 150
