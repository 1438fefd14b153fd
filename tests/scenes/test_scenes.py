"""The embedded dataset, checked by its files: sentences are parsed from their text and resolved on the masks. This code
shares only the words with the generator."""

import hashlib
import json
import pickle
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail import scenes
from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.sources import open_source
from pixel_sail.errors import FileError
from pixel_sail.scenes import dataset

IMAGES, SEED, LONG_SIDE = 150, 3, 112
ROOT = Path(__file__).parents[2]

KIND_WORDS = {
    word: kind
    for kind, words in {
        "ball": "ball balls",
        "box": "box boxes",
        "mug": "mug mugs cup cups",
        "ring": "ring rings",
        "key": "key keys",
        "tree": "tree trees",
        "house": "house houses",
        "car": "car cars",
        "fish": "fish",
        "star": "star stars",
        "arrow": "arrow arrows",
        "umbrella": "umbrella umbrellas",
        "bicycle": "bicycle bicycles bike bikes",
        "chair": "chair chairs",
        "lamp": "lamp lamps",
        "flower": "flower flowers",
        "leaf": "leaf leaves",
        "bottle": "bottle bottles",
        "ladder": "ladder ladders",
        "kite": "kite kites",
    }.items()
    for word in words.split()
}
COLOUR_WORDS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black"]
TEXTURE_WORDS = {"striped": "striped", "dotted": "dotted", "checkered": "checkered", "plain": "plain"}
TEXTURE_WORDS |= {"stripes": "striped", "dots": "dotted", "checks": "checkered"}
CLASS_WORDS = {"small": "small", "little": "small", "large": "large", "big": "large"}
RANK_WORDS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
COUNT_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "both": 2}
AXIS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1), "upper": (1, 1), "lower": (1, -1)}
AXIS |= {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "highest": (1, 1), "lowest": (1, -1)}
AXIS |= {"bottommost": (1, -1), "up": (1, 1), "down": (1, -1)}
SIDE = "left|right|top|bottom"
RANK = "|".join(RANK_WORDS)


class World:
    """One image as arrays, from the masks: centres (N, 2) as shares of (width, height), areas (N,) in pixels."""

    def __init__(self, known, annotations):
        self.things = known["objects"]
        by_id = {a["id"]: a for a in annotations}
        self.ids = [o["ann_id"] for o in self.things]
        masks = [coco_mask.decode(by_id[i]["segmentation"]) for i in self.ids]
        size = np.array([known["width"], known["height"]])
        self.size = size
        self.areas = np.array([m.sum() for m in masks], float)
        self.centres = np.array([np.argwhere(m)[:, ::-1].mean(axis=0) + 0.5 for m in masks]) / size

    def pick(self, text):
        """Indices of the objects that a plain noun phrase names; the size class, if named, comes back too."""
        wanted, size_class = {}, None
        for word in re.sub(r"\b(the|that is|with|in the picture)\b", " ", text).split():
            if word in KIND_WORDS:
                wanted["kind"] = KIND_WORDS[word]
            elif word in COLOUR_WORDS:
                wanted["colour"] = word
            elif word in TEXTURE_WORDS:
                wanted["texture"] = TEXTURE_WORDS[word]
            elif word in CLASS_WORDS:
                size_class = CLASS_WORDS[word]
            elif word not in ("object", "objects", "thing", "things"):
                raise AssertionError(f"unknown word {word!r} in {text!r}")
        indices = [i for i, o in enumerate(self.things) if all(o[k] == v for k, v in wanted.items())]
        return indices, size_class

    def names(self, text):
        indices, size_class = self.pick(text)
        if size_class is None:
            return indices
        inside = [i for i in indices if self.things[i]["size_class"] == size_class]
        outside = [i for i in indices if i not in inside]
        for i in inside:
            for j in outside:  # visibly smaller or larger than all the others of the name
                small, large = sorted([i, j], key=lambda k: self.areas[k])
                assert self.areas[large] > 1.2 * self.areas[small]
                assert (size_class == "large") == (large == i)
        return inside

    def on_side(self, indices, side, sure=0.43):
        """The objects in that half; fails where any object is near the middle line."""
        inside = []
        for i in indices:
            axis, sign = AXIS[side]
            far = self.centres[i, axis] if sign > 0 else 1 - self.centres[i, axis]
            assert far < sure or far > 0.53, "too near the middle line"
            if far < 0.5:
                inside.append(i)
        return inside

    def outermost(self, indices, side):
        axis, sign = AXIS[side]
        far = sorted((sign * self.centres[i, axis], i) for i in indices)
        assert len(far) == 1 or far[1][0] - far[0][0] > 0.075
        return [far[0][1]]

    def ranked(self, indices, rank, side):
        axis, sign = AXIS[side]
        far = sorted((sign * self.centres[i, axis], i) for i in indices)
        assert all(b[0] - a[0] > 0.055 for a, b in zip(far, far[1:], strict=False))
        return [far[rank - 1][1]]

    def by_size(self, indices, largest):
        order = sorted(indices, key=lambda i: -self.areas[i] if largest else self.areas[i])
        ratio = self.areas[order[0]] / self.areas[order[1]]
        assert max(ratio, 1 / ratio) > 1.24
        return [order[0]]

    def beside(self, indices, anchor, axis, sign):
        (anchor,) = anchor
        ahead = {i: sign * (self.centres[i, axis] - self.centres[anchor, axis]) for i in indices if i != anchor}
        inside = [i for i, gap in ahead.items() if gap > 0]
        assert all(ahead[i] > 0.09 for i in inside), "too near for the relation"
        return inside

    def nearest(self, indices, anchor):
        (anchor,) = anchor
        offsets = (self.centres - self.centres[anchor]) * self.size
        far = sorted((float(np.hypot(*offsets[i])), i) for i in indices if i != anchor)
        assert len(far) == 1 or far[1][0] > 1.2 * far[0][0]
        return [far[0][1]]

    def in_corner(self, indices, sides):
        inside = [i for i in indices if all(self._far(i, side) < 0.5 for side in sides)]
        assert all(self._far(i, side) < 0.37 for i in inside for side in sides)
        return inside

    def _far(self, i, side):
        axis, sign = AXIS[side]
        return self.centres[i, axis] if sign > 0 else 1 - self.centres[i, axis]

    def in_middle(self, indices):
        off = {i: np.abs(self.centres[i] - 0.5).max() for i in indices}
        inside = [i for i in indices if off[i] < 0.18]
        assert all(off[i] < 0.13 or off[i] > 0.23 for i in indices)
        return inside


# (pattern, meaning); the first that matches the whole text, without a leading "the", counts
GRAMMAR = [
    (
        r"(" + RANK + ") (.+?) (?:counting )?from the (" + SIDE + ")",
        lambda w, r, n, s: w.ranked(w.names(n), RANK_WORDS[r], s),
    ),
    (r"(.+) that is (" + RANK + ") from the (" + SIDE + ")", lambda w, n, r, s: w.ranked(w.names(n), RANK_WORDS[r], s)),
    (r"(.+?) (?:that is )?(?:to the )?left of (.+)", lambda w, a, b: w.beside(w.names(a), w.names(b), 0, -1)),
    (r"(.+?) (?:that is )?(?:to the )?right of (.+)", lambda w, a, b: w.beside(w.names(a), w.names(b), 0, 1)),
    (r"(.+?) (?:(?:that is )?above|higher than) (.+)", lambda w, a, b: w.beside(w.names(a), w.names(b), 1, -1)),
    (r"(.+?) (?:(?:that is )?below|lower than) (.+)", lambda w, a, b: w.beside(w.names(a), w.names(b), 1, 1)),
    (r"(.+?) (?:(?:that is )?nearest|closest) to (.+)", lambda w, a, b: w.nearest(w.names(a), w.names(b))),
    (r"(?:largest|biggest) (.+)", lambda w, n: w.by_size(w.names(n), True)),
    (r"(.+) that is the largest", lambda w, n: w.by_size(w.names(n), True)),
    (r"(?:smallest|tiniest) (.+)", lambda w, n: w.by_size(w.names(n), False)),
    (r"(.+) that is the smallest", lambda w, n: w.by_size(w.names(n), False)),
    (r"(leftmost|rightmost|topmost|highest|lowest|bottommost) (.+)", lambda w, s, n: w.outermost(w.names(n), s)),
    (r"(.+) furthest to the (left|right)", lambda w, n, s: w.outermost(w.names(n), s)),
    (r"(.+) that is (?:furthest|highest) (left|right|down|up)", lambda w, n, s: w.outermost(w.names(n), s)),
    (r"(.+) (?:in|at) the (top|bottom) (left|right)(?: corner)?", lambda w, n, a, b: w.in_corner(w.names(n), [a, b])),
    (r"(top|bottom) (left|right) (.+)", lambda w, a, b, n: w.in_corner(w.names(n), [a, b])),
    (r"(.+) in the (?:middle|center)(?: of the picture)?", lambda w, n: w.in_middle(w.names(n))),
    (r"middle (.+)", lambda w, n: w.in_middle(w.names(n))),
    (
        r"(.+) (?:on|in|at) the (left|right|upper|lower|top|bottom)(?: side| half| part of the picture)?",
        lambda w, n, s: w.on_side(w.names(n), s),
    ),
    (r"(left|right|upper|lower) (.+)", lambda w, s, n: w.on_side(w.names(n), s)),
    (r"(.+)", lambda w, n: w.names(n)),
]


def resolve(world, text):
    """Indices of the objects that a sentence names, from its text and the masks alone."""
    text = text.removeprefix("the ")
    for pattern, meaning in GRAMMAR:
        match = re.fullmatch(pattern, text)
        if match:
            return meaning(world, *match.groups())
    raise AssertionError(f"no pattern for {text!r}")


def resolve_many(world, text):
    """As resolve, for sentences of several targets."""
    pair = re.fullmatch(r"(?:both )?(?:the )?(.+) and (?:the )?(.+)", text)
    if pair:
        both = [world.names(part) for part in pair.groups()]
        assert [len(indices) for indices in both] == [1, 1], text
        return sorted(both[0] + both[1])
    match = re.fullmatch(r"(?:all the|all|every|each|(?:the )?(two|three|four|five|six|both)) (.+)", text)
    assert match, text
    indices = resolve(world, match[2])
    assert match[1] is None or COUNT_WORDS[match[1]] == len(indices), text
    return sorted(indices)


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "data"
    scenes.generate(out, IMAGES, SEED, LONG_SIDE, workers=1)
    return out


@pytest.fixture(scope="module")
def known(folder):
    return json.loads((folder / "scenes.json").read_text())


@pytest.fixture(scope="module")
def instances(folder):
    return json.loads((folder / "refcoco/instances.json").read_text())


@pytest.fixture(scope="module")
def refs(folder):
    return pickle.loads((folder / "refcoco/refs(unc).p").read_bytes())


@pytest.fixture(scope="module")
def grefs(folder):
    return json.loads((folder / "grefcoco/grefs(unc).json").read_text())


@pytest.fixture(scope="module")
def worlds(known, instances):
    by_image = {}
    for annotation in instances["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return {image["id"]: World(image, by_image[image["id"]]) for image in known["images"]}


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(folder, tmp_path):
    scenes.generate(tmp_path / "two", IMAGES, SEED, LONG_SIDE, workers=2)
    assert digest(tmp_path / "two") == digest(folder)
    scenes.generate(tmp_path / "other", 4, SEED + 1, LONG_SIDE, workers=1)
    same = Path("images/train2014/scenes_000000000001.jpg")
    assert (tmp_path / "other" / same).read_bytes() != (folder / same).read_bytes()


def test_every_sentence_names_exactly_its_object(refs, worlds):
    sentences = [(ref, s["sent"]) for ref in refs for s in ref["sentences"]]
    assert len(sentences) >= 1000
    for ref, text in sentences:
        world = worlds[ref["image_id"]]
        try:
            named = [world.ids[i] for i in resolve(world, text)]
        except AssertionError as error:
            raise AssertionError(f"{text!r} in image {ref['image_id']}: {error}") from error
        assert named == [ref["ann_id"]], f"{text!r} in image {ref['image_id']}"


def test_grefs_name_exactly_their_sets(grefs, worlds):
    counts = {"none": 0, "one": 0, "several": 0}
    for ref in grefs:
        world = worlds[ref["image_id"]]
        several = len(ref["ann_id"]) > 1
        counts["none" if ref["no_target"] else "several" if several else "one"] += 1
        for sentence in ref["sentences"]:
            indices = (resolve_many if several else resolve)(world, sentence["sent"])
            expected = [] if ref["no_target"] else ref["ann_id"]
            assert [world.ids[i] for i in indices] == expected, f"{sentence['sent']!r} in image {ref['image_id']}"
        assert (ref["ann_id"] == [-1] and ref["category_id"] == [-1]) == ref["no_target"]
    assert min(counts.values()) > 1.5 * IMAGES


def test_all_types_of_expression_are_there(refs, known):
    queries = known["queries"]["refcoco"]
    types = [queries[i]["type"] for ref in refs for i in ref["sent_ids"]]
    share = {name: types.count(name) / len(types) for name in set(types)}
    assert share["attribute"] > 0.38 and share["position"] > 0.14 and share["relation"] > 0.1
    assert share["ordinal"] > 0.07 and share["size"] > 0.07
    assert np.mean([len({queries[i]["type"] for i in ref["sent_ids"]}) for ref in refs]) > 1.7
    said = [s["sent"].removeprefix("the ") for ref in refs for s in ref["sentences"]]
    first = [next(pattern for pattern, _ in GRAMMAR if re.fullmatch(pattern, text)) for text in said]
    assert set(first) == {pattern for pattern, _ in GRAMMAR}, "a phrasing is never used"


def test_masks_agree_with_the_annotations_and_the_objects(instances, known):
    objects = {o["ann_id"]: o for image in known["images"] for o in image["objects"]}
    names = {c["id"]: c["name"] for c in instances["categories"]}
    total = {image["id"]: np.zeros((image["height"], image["width"]), int) for image in instances["images"]}
    for annotation in instances["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert annotation["area"] == mask.sum() and annotation["bbox"] == box
        thing = objects[annotation["id"]]
        assert (
            thing["area"] == mask.sum() and thing["bbox"] == box and thing["kind"] == names[annotation["category_id"]]
        )
        assert thing["visible_share"] >= 0.4 and mask.mean() >= 0.0015
        assert isinstance(annotation["segmentation"]["counts"], str)
        total[annotation["image_id"]] += mask
    assert max(count.max() for count in total.values()) == 1, "masks of one image overlap"


def test_masks_lie_on_the_objects(folder, instances, known):
    """The mean hue under the mask of a plain object is that of its colour."""
    objects = {o["ann_id"]: o for image in known["images"] for o in image["objects"]}
    spans = {"red": (-15, 14), "orange": (18, 42), "yellow": (44, 64), "green": (95, 160), "blue": (205, 235)}
    spans |= {"purple": (260, 295), "pink": (318, 348), "brown": (5, 40)}
    images = {i["id"]: Image.open(folder / "images/train2014" / i["file_name"]) for i in instances["images"]}
    hsv = {i: np.asarray(p.convert("HSV"), float) for i, p in images.items()}
    thin = ("bicycle", "ladder", "key")  # mostly edges, which mix with the background
    tried = 0
    for annotation in instances["annotations"]:
        thing = objects[annotation["id"]]
        if thing["texture"] != "plain" or thing["size_class"] == "small" or thing["visible_share"] < 1:
            continue
        if thing["colour"] not in spans or thing["kind"] in thin:
            continue
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        hue, saturation, _ = hsv[annotation["image_id"]][mask].T
        low, high = spans[thing["colour"]]
        turn = np.exp(1j * np.deg2rad(hue * 360 / 255 - (low + high) / 2)) * saturation
        off = np.rad2deg(np.angle(turn.mean()))
        assert abs(off) < (high - low) / 2 + 5, (thing, off)
        tried += 1
    assert tried > 100


def test_kinds_with_holes_have_holes(instances, known):
    """Background that is cut off from the border by the mask alone, for unoccluded objects of medium size or more."""
    objects = {o["ann_id"]: o for image in known["images"] for o in image["objects"]}
    holes = {}
    for annotation in instances["annotations"]:
        thing = objects[annotation["id"]]
        if thing["visible_share"] == 1 and thing["size_class"] != "small":
            mask = coco_mask.decode(annotation["segmentation"])
            holes.setdefault(thing["kind"], []).append(
                _enclosed(mask) >= 3
            )  # 1 or 2 pixels may be pinched off at a corner
    for kind in ("mug", "ring", "key", "bicycle", "chair", "ladder"):
        assert holes[kind] and np.mean(holes[kind]) > 0.8, kind
    for kind in ("ball", "box", "house", "car", "star", "arrow", "leaf", "bottle"):
        assert not any(holes[kind]), kind


def _enclosed(mask):
    """Pixels outside the mask that no path of 4-neighbours leads out of the image from."""
    free = np.pad(mask == 0, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0, 0] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= free
        if (grown == reached).all():
            return int((free & ~reached).sum())
        reached = grown


def test_new_combinations_are_in_test_b_only(known, refs, grefs):
    held_out = {tuple(pair) for pair in known["held_out_pairs"]}
    assert 15 <= len(held_out) <= 30
    new = {}
    for image in known["images"]:
        pairs = [(o["kind"], o["colour"]) for o in image["objects"]]
        assert any(pair in held_out for pair in pairs) == (image["split"] == "testB"), image["id"]
        new |= {o["ann_id"]: pair in held_out for o, pair in zip(image["objects"], pairs, strict=True)}
    assert np.mean([new[ref["ann_id"]] for ref in refs if ref["split"] == "testB"]) > 0.55
    for ref in grefs:  # and no sentence says such a pair, even of an absent object
        for sentence in ref["sentences"] if ref["split"] != "testB" else []:
            for phrase in re.split(r" (?:and|of|than|above|below|to) ", sentence["sent"]):
                words = set(phrase.split())
                assert not any(kind in words and colour in words for kind, colour in held_out), sentence["sent"]


def test_splits(known, refs, grefs):
    splits = {image["id"]: image["split"] for image in known["images"]}
    counts = {name: list(splits.values()).count(name) for name in ("train", "val", "testA", "testB")}
    assert min(counts.values()) >= 5 and 0.75 < counts["train"] / IMAGES < 0.85
    assert all(ref["split"] == splits[ref["image_id"]] for ref in refs + grefs)
    assert {ref["split"] for ref in refs} == {ref["split"] for ref in grefs} == set(counts)
    for image in known["images"]:
        kinds = [o["kind"] for o in image["objects"]]
        assert 3 <= len(kinds) <= 8
        assert image["split"] != "testA" or max(kinds.count(k) for k in kinds) >= 3


def test_formats(folder, refs, grefs, instances):
    keys = {"ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sentences", "sent_ids"}
    annotations = {a["id"]: a for a in instances["annotations"]}
    for table, extra in ((refs, set()), (grefs, {"no_target"})):
        assert all(set(ref) == keys | extra for ref in table)
        assert [ref["ref_id"] for ref in table] == list(range(len(table)))
        sentences = [s for ref in table for s in ref["sentences"]]
        assert [s["sent_id"] for s in sentences] == list(range(len(sentences)))
        assert [i for ref in table for i in ref["sent_ids"]] == list(range(len(sentences)))
        for sentence in sentences:
            assert set(sentence) == {"sent_id", "sent", "raw", "tokens"}
            assert (
                re.fullmatch(r"[a-z]+( [a-z]+)*", sentence["sent"]) and sentence["tokens"] == sentence["sent"].split()
            )
    assert len({word for ref in refs + grefs for s in ref["sentences"] for word in s["tokens"]}) < 250
    assert all(annotations[r["ann_id"]]["image_id"] == r["image_id"] for r in refs)
    assert all(annotations[r["ann_id"]]["category_id"] == r["category_id"] for r in refs)
    assert (folder / "refcoco/refs(unc).p").read_bytes()[:2] == b"\x80\x02"  # pickle protocol 2
    assert (folder / "grefcoco/instances.json").read_bytes() == (folder / "refcoco/instances.json").read_bytes()
    for image in instances["images"]:
        with Image.open(folder / "images/train2014" / image["file_name"]) as stored:
            assert stored.size == (image["width"], image["height"]) and max(stored.size) == LONG_SIDE
            assert stored.format == "JPEG" and stored.mode == "RGB"


def test_tool_reuses_refuses_and_overwrites(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", "scenes", *map(str, arguments)])
        runpy.run_path(str(ROOT / "tools/prepare_data.py"), run_name="__main__")
        return capsys.readouterr().out

    out = tmp_path / "scenes"
    request = ("--out", out, "--images", 3, "--long-side", 96, "--workers", 1)
    assert "wrote 3 images" in run(*request)
    before = (out / "scenes.json").stat().st_mtime_ns
    assert "reused" in run(*request) and (out / "scenes.json").stat().st_mtime_ns == before
    scenes.generate(out, 3, 0, 96, workers=1)
    assert (out / "scenes.json").stat().st_mtime_ns == before, "drawn again although nothing changed"
    with pytest.raises(SystemExit, match="^error: .*--overwrite"):
        run(*request, "--seed", 9)
    run(*request, "--seed", 9, "--overwrite")
    assert json.loads((out / "scenes.json").read_text())["request"]["seed"] == 9
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"], "a temporary folder was left"


def test_a_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(FileError, match="choose another folder"):
        scenes.generate(tmp_path / "mine", 3, 0, 96, workers=1, overwrite=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "write_annotations", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scenes.generate(tmp_path / "out", 2, 0, 96, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"images": 0}, {"seed": -1}, {"long_side_px": 10}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="images >= 1"):
        scenes.generate(tmp_path / "out", **({"images": 2, "seed": 0, "long_side_px": 96} | wrong))


def test_pairs_show_the_same_object_twice(folder, known, instances):
    """The region and the mask are the only objects of their colour and kind in their images, which share a split."""
    objects = {image["file_name"]: image["objects"] for image in known["images"]}
    splits = {image["file_name"]: image["split"] for image in known["images"]}
    ids = {json.dumps(a["segmentation"]): a["id"] for a in instances["annotations"]}
    for split in ("train", "val"):
        lines = [json.loads(line) for line in (folder / f"pairs_{split}.jsonl").read_text().splitlines()]
        assert len(lines) > (10 if split == "train" else 0)
        for line in lines:
            names = [name.removeprefix("train2014/") for name in line["images"]]
            assert names[0] != names[1] and {splits[name] == "train" for name in names} == {split == "train"}
            shown = []
            for name, mask in zip(names, (line["regions"]["0"], line["masks"][0]), strict=True):
                (thing,) = [thing for thing in objects[name] if thing["ann_id"] == ids[json.dumps(mask)]]
                same = [o for o in objects[name] if (o["colour"], o["kind"]) == (thing["colour"], thing["kind"])]
                assert same == [thing]
                shown.append((thing["colour"], thing["kind"]))
            assert shown[0] == shown[1] and line["mask_images"] == [1] and line["region_images"] == {"0": 0}
    entry = MixtureEntry(source="jsonl", split="pairs_val")
    source = open_source(entry, DataConfig(root=folder, mixture=[entry]))
    assert source.problems == []
    sample = source.sample(0, np.random.default_rng(0))
    assert len(sample.images) == 2 and sample.mask_images == (1,) and all(path.is_file() for path in sample.images)


def test_places_say_nothing_but_the_place(folder, known, instances, worlds):
    """Each phrase names no kind, colour or texture, and its mask unites what the phrase means; so does each answer."""
    masks = {a["id"]: a["segmentation"] for a in instances["annotations"]}
    images = {image["file_name"]: image for image in known["images"]}
    lines = [json.loads(line) for line in (folder / "places_train.jsonl").read_text().splitlines()]
    names = [line["image"].removeprefix("train2014/") for line in lines]
    assert names == [image["file_name"] for image in known["images"] if image["split"] == "train"]
    said, several = set(), 0
    for line, name in zip(lines, names, strict=True):
        world, given = worlds[images[name]["id"]], iter(line["masks"])
        for turn in line["conversations"]:
            question, answer = turn["question"], turn["answer"]
            assert not set(question.split()) & {*KIND_WORDS, *COLOUR_WORDS, *TEXTURE_WORDS}
            if answer == "[SEG]":
                many = re.match(r"(the )?(all|every|each|two|three|four|five|six|both)\b", question)
                meant = [masks[world.ids[i]] for i in (resolve_many if many else resolve)(world, question)]
                assert np.array_equal(coco_mask.decode(next(given)), coco_mask.decode(meant).any(axis=2)), question
                several += len(meant) > 1
            else:
                region = line["regions"][re.search(r"<Prompt(\d)>", question)[1]]
                (i,) = [i for i, other in enumerate(world.ids) if masks[other] == region]
                assert i in _at(world, answer), question
                said.add(answer)
        assert next(given, None) is None
    assert len(said) == 9 and several > 20


def _at(world, where):
    """The objects whose centre lies in the half or corner, or near the middle."""
    if where == "middle":
        return [i for i in range(len(world.ids)) if np.abs(world.centres[i] - 0.5).max() < 0.2]
    return [i for i in range(len(world.ids)) if all(world._far(i, side) < 0.5 for side in where.split())]
