"""Texts of the embedded dataset about regions: every text is parsed from the files and checked on the masks. This code
shares only the words with the generator."""

import json
import pickle
import re
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_scenes import COLOUR_WORDS, COUNT_WORDS, KIND_WORDS, TEXTURE_WORDS, World, resolve

from pixel_sail import scenes
from pixel_sail.scenes import write_regions
from pixel_sail.scenes.resolver import resolve as resolve_query
from pixel_sail.scenes.types import Filter, Query, SceneObject

IMAGES, SEED, LONG_SIDE = 150, 3, 112
BENCHMARKS = ("perbench", "perbench_train")
COUNTS = {"none": 0, "one": 1, **COUNT_WORDS, "seven": 7, "eight": 8}
AHEAD = {"to the left of": (0, -1), "left of": (0, -1), "to the right of": (0, 1), "right of": (0, 1)}
AHEAD |= {"above": (1, -1), "higher than": (1, -1), "below": (1, 1), "lower than": (1, 1)}
RELATION = "|".join(sorted(AHEAD, key=len, reverse=True))
PLACE_WORDS = {"left": "left", "right": "right", "upper": "top", "lower": "bottom", "middle": "middle"}
SIZES = {"small": (0, 0.24), "medium": (0.24, 0.4), "large": (0.4, 9)}


class Masks:
    """One image by its masks alone: which object an RLE is, and every relation of the texts with its margin."""

    def __init__(self, known, annotations):
        self.world = World(known, annotations)
        self.things = known["objects"]
        by_id = {a["id"]: a for a in annotations}
        self.rles = [by_id[thing["ann_id"]]["segmentation"] for thing in self.things]
        self.by_counts = {rle["counts"]: i for i, rle in enumerate(self.rles)}
        self.all = range(len(self.things))
        self.centres_px = self.world.centres * self.world.size
        self.boxes = [coco_mask.toBbox({**rle, "counts": rle["counts"].encode()}) for rle in self.rles]

    def object(self, rle):
        return self.by_counts[rle["counts"]]

    def having(self, text):
        """Indices of what "an orange mug" names."""
        return self.world.names(re.sub(r"^(an?|the) ", "", text))

    def ahead(self, i, anchor, words):
        """(how far ``i`` lies that way from the anchor, how far to the side) in pixels; negative on the other side."""
        axis, sign = AHEAD[words]
        step = self.centres_px[i] - self.centres_px[anchor]
        return sign * step[axis], abs(step[1 - axis])

    def is_ahead(self, i, anchor, words):
        """True or False with a margin, None between."""
        far, off = self.ahead(i, anchor, words)
        axis, _ = AHEAD[words]
        if far > 0.09 * self.world.size[axis] and off < 1.6 * far:
            return True
        return False if far <= 0 else None

    def beside(self, anchor, words):
        """The object directly on that side; None where it is not clear or there is none."""
        cone = [i for i in self.all if i != anchor and self._in_cone(i, anchor, words, 1.35)]
        if not cone:
            return None
        best, *others = sorted(cone, key=lambda i: np.hypot(*(self.centres_px[i] - self.centres_px[anchor])))
        clear = self.is_ahead(best, anchor, words) and self._in_cone(best, anchor, words, 0.75)
        return best if clear and all(self._further(i, best, anchor) for i in others) else None

    def _in_cone(self, i, anchor, words, slope):
        far, off = self.ahead(i, anchor, words)
        return far > 0 and off < slope * far

    def _further(self, i, j, anchor):
        far = [np.hypot(*(self.centres_px[k] - self.centres_px[anchor])) for k in (i, j)]
        return far[0] > 1.2 * far[1]

    def nearest(self, indices, anchor):
        best, *others = sorted(indices, key=lambda i: np.hypot(*(self.centres_px[i] - self.centres_px[anchor])))
        return best if all(self._further(i, best, anchor) for i in others) else None

    def larger(self, i, j):
        """True, False, or None where the areas are near each other."""
        ratio = self.world.areas[i] / self.world.areas[j]
        return None if 1 / 1.24 < ratio < 1.24 else bool(ratio > 1)

    def at(self, i, where):
        """True, False or None for "top left", "left", "middle", ..."""
        x, y = self.world.centres[i]
        far = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
        if where == "middle":
            off = np.abs(self.world.centres[i] - 0.5).max()
            return True if off < 0.13 else False if off > 0.23 else None
        share = max(far[side] for side in where.split())
        sure, never = (0.37, 0.49) if " " in where else (0.43, 0.53)
        return True if share < sure else False if share > never else None

    def between(self, i, first, second):
        start, end = self.centres_px[first], self.centres_px[second]
        along = (end - start) / np.hypot(*(end - start))
        step = self.centres_px[i] - start
        share = step @ along / np.hypot(*(end - start))
        off = np.hypot(*(step - (step @ along) * along)) / np.hypot(*(end - start))
        if 0.24 < share < 0.76 and off < 0.21:
            return True
        return None if 0.06 < share < 0.94 and off < 0.39 else False

    def has_size(self, i, word):
        low, high = SIZES[word]
        return low < max(self.boxes[i][2:]) / min(self.world.size) < high and self.things[i]["size_class"] == word


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("regions") / "data"
    scenes.generate(out, IMAGES, SEED, LONG_SIDE, workers=1, lessons=True)
    return out


@pytest.fixture(scope="module")
def read(folder):
    return lambda name: json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def known(read):
    return read("scenes.json")


@pytest.fixture(scope="module")
def images(known, read):
    """File name -> Masks."""
    by_image = {}
    for annotation in read("refcoco/instances.json")["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return {image["file_name"]: Masks(image, by_image[image["id"]]) for image in known["images"]}


@pytest.fixture(scope="module")
def splits(known):
    return {image["file_name"]: image["split"] for image in known["images"]}


def check_description(text, image, i):
    """Every claim of a sentence holds of object ``i``; returns how many relations and places it had."""
    assert 12 <= len(text.split()) <= 25 and re.fullmatch(r"[A-Z][a-z, ]+\.", text), text
    text = text[:-1].lower().removeprefix("this is ")
    there = re.fullmatch(r"(.+) there is (.+), (.+)", text)
    head, *rest = [there[2], there[1], there[3]] if there else text.split(", ")
    where = re.fullmatch(r"(an? .+?) ((?:in|on|at) the .+|to the .+|above .+|below .+)", head)
    if where:
        head, rest = where[1], [where[2], *rest]
    size = next((word for word in SIZES if word in head.split()), None)
    assert i in image.having(" ".join(word for word in head.split() if word != size)), head
    assert size is None or image.has_size(i, size), text
    assert rest, text
    return Counter(_claim(claim, image, i) for claim in rest)


def _claim(claim, image, i):
    kind = image.things[i]["kind"]
    same = sum(thing["kind"] == kind for thing in image.things)
    relation = re.fullmatch(rf"({RELATION}) (an? .+)", claim)
    place = re.fullmatch(r"(?:in|on|at) the (\w+)(?: (\w+))?(?: corner| side| half| part)? of the picture", claim)
    only = re.fullmatch(r"the only (\w+) in the picture", claim)
    one_of = re.fullmatch(r"one of the (\w+) (\w+) in the picture", claim)
    if relation:
        (anchor,) = image.having(relation[2])
        assert image.is_ahead(i, anchor, relation[1]), claim
        return "relation"
    if place:
        words = [word for word in place.groups() if word and word not in ("half", "side", "part", "corner")]
        where = " ".join({**PLACE_WORDS, "center": "middle"}.get(word, word) for word in words)
        assert image.at(i, where), claim
        return "place"
    if only:
        assert KIND_WORDS[only[1]] == kind and same == 1, claim
    else:
        assert one_of, claim
        assert KIND_WORDS[one_of[2]] == kind and COUNTS[one_of[1]] == same > 1, claim
    return "count"


def _word(count):
    return next(word for word, value in COUNTS.items() if value == count)


def test_every_description_is_true(read, images):
    claims, texts = Counter(), []
    for name, objects in _described(read):
        for rle, text in objects:
            image = images[name]
            try:
                claims += check_description(text, image, image.object(rle))
            except AssertionError as error:
                raise AssertionError(f"{text!r} of {name}: {error}") from error
            texts.append(text)
    assert len(texts) > 1200 and len(set(texts)) > 1000
    assert claims["relation"] > 0.8 * len(texts) and claims["place"] > 0.8 * len(texts) and claims["count"] > 20


def _described(read):
    """(image, [(RLE, description)]) of all the files."""
    for name in ["sam_captions/train", "sam_captions/val", *(f"{b}/STBench_Detailed_Caption" for b in BENCHMARKS)]:
        for entry in read(f"{name}.json"):
            yield entry["image_name"], [(o["segmentation"], o["caption"]) for o in entry["object_annotations"]]
    for entry in read("osprey/osprey_detail_description.json"):
        assert [t["value"] for t in entry["conversations"][::2]] == ["Describe <region1> in detail."]
        yield entry["file_name"], [(entry["annotation"][0]["segmentation"], entry["conversations"][1]["value"])]


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_segments_are_the_masks_and_the_rest(split, read, folder, images, splits):
    data, described = read(f"annotations/panoptic_{split}2017.json"), read(f"pix2cap/pix2cap_coco_{split}.json")
    categories = {c["id"]: (c["name"], c["isthing"]) for c in data["categories"]}
    assert sorted(isthing for _, isthing in categories.values()) == [0] + [1] * 20
    assert {i["file_name"] for i in data["images"]} == {
        n for n, s in splits.items() if (s == "train") == (split == "train")
    }
    names = {image["id"]: image["file_name"] for image in data["images"]}
    big = 0
    for annotation, captioned in zip(data["annotations"], described["annotations"], strict=True):
        image = images[names[annotation["image_id"]]]
        png = Image.open(folder / f"annotations/panoptic_{split}2017" / annotation["file_name"])
        assert png.mode == "RGB" and png.size == tuple(image.world.size)
        rgb = np.asarray(png).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        big = max(big, ids.max())
        assert set(np.unique(ids)) == {s["id"] for s in annotation["segments_info"]} and ids.min() > 0
        *things, rest = annotation["segments_info"]
        for i, segment in enumerate(things):
            assert categories[segment["category_id"]] == (image.things[i]["kind"], 1)
            assert np.array_equal(ids == segment["id"], coco_mask.decode(image.rles[i]).astype(bool))
        assert categories[rest["category_id"]] == ("background", 0)
        for segment in annotation["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(xs) and segment["iscrowd"] == 0
            assert segment["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        *texts, none = [segment.pop("description", None) for segment in captioned["segments_info"]]
        assert none is None and captioned == annotation
        for i, text in enumerate(texts):
            check_description(text, image, i)
    assert big > 65536  # all of R, G and B are needed


def test_refcocog_sentences_are_longer_and_name_exactly_their_object(read, folder, known, images):
    refs = pickle.loads((folder / "refcocog/refs(umd).p").read_bytes())
    assert (folder / "refcocog/instances.json").read_bytes() == (folder / "refcoco/instances.json").read_bytes()
    listed = {image["id"]: image for image in known["images"]}
    words = []
    for ref in refs:
        image = listed[ref["image_id"]]
        world = images[image["file_name"]].world
        assert ref["split"] == {"testA": "test", "testB": "test"}.get(image["split"], image["split"])
        assert 1 <= len(ref["sentences"]) <= 2
        for sentence in ref["sentences"]:
            named = [world.ids[i] for i in resolve(world, sentence["sent"])]
            assert named == [ref["ann_id"]], sentence["sent"]
            assert known["queries"]["refcocog"][sentence["sent_id"]]["type"] in ("relation", "position")
            words.append(len(sentence["tokens"]))
    short = pickle.loads((folder / "refcoco/refs(unc).p").read_bytes())
    assert np.mean(words) > 1.3 * np.mean([len(s["tokens"]) for ref in short for s in ref["sentences"]])
    assert len(refs) > 0.9 * sum(len(image["objects"]) for image in known["images"])


def _truth(question, option, image, i):
    """Whether an option answers a question about object ``i``: True, False or None (not clear)."""
    thing = image.things[i]
    beside = re.fullmatch(rf"What (?:is|do you see) directly ({RELATION}) <Prompt0>\?", question)
    compared = re.fullmatch(r"How large is <Prompt0> compared with the (.+)\?", question)
    rank = re.fullmatch(r"How many things are (larger|smaller) than <Prompt0>\?", question)
    if "colour" in question:
        return option == thing["colour"] and option in COLOUR_WORDS
    if "texture" in question:
        return option == thing["texture"] and option in TEXTURE_WORDS.values()
    if question in ("What is <Prompt0>?", "What kind of thing is <Prompt0>?"):
        return option == thing["kind"]
    if question in ("Which of these is <Prompt0>?", "What do you see in <Prompt0>?"):
        return i in image.having(option)
    if "art of the picture is <Prompt0>" in question or question.startswith("Where in the picture"):
        return image.at(i, option)
    if beside:
        target = image.beside(i, beside[1])
        return None if target is None else target in image.having(option)
    if question in ("What is nearest to <Prompt0>?", "Which thing is closest to <Prompt0>?"):
        target = image.nearest([j for j in image.all if j != i], i)
        return None if target is None else target in image.having(option)
    if rank:
        steps = [image.larger(j, i) for j in image.all if j != i]
        return None if None in steps else COUNTS[option] == steps.count(rank[1] == "larger")
    anchors = image.having(compared[1])
    if option in ("larger", "smaller"):
        step = image.larger(i, anchors[0]) if anchors else False
        return (
            None
            if step is None and anchors != [i]
            else bool(anchors) and anchors != [i] and step == (option == "larger")
        )
    if option.startswith("it is the "):
        return anchors == [i]
    assert option == f"there is no {compared[1]}" and len(anchors) <= 1
    return not anchors


def _mcqs(read):
    for folder in BENCHMARKS:
        for entry in read(f"{folder}/STBench_MCQ.json"):
            for mcq in entry["mcqs"]:
                question, *lines = mcq["question"].split("\n")
                assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "] and mcq["answer"] in "ABCD"
                yield entry["image_name"], mcq["object"], question, [line[3:] for line in lines], mcq["answer"]


def test_exactly_one_option_of_a_question_is_right(read, images, known):
    letters, first_words = Counter(), Counter()
    for name, rle, question, options, answer in _mcqs(read):
        image = images[name]
        truths = [_truth(question, option, image, image.object(rle)) for option in options]
        assert truths == [letter == answer for letter in "ABCD"], (name, question, options, answer, truths)
        assert len(set(options)) == 4 and question.count("<Prompt0>") == 1
        letters[answer] += 1
        first_words[question] += 1
    total = letters.total()
    assert total > 4 * IMAGES
    assert (
        sum((count - total / 4) ** 2 / (total / 4) for count in letters.values()) < 11.3
    )  # chi-square, 3 df, p = 0.01
    topics = Counter(m["topic"] for regions in known["regions"] for m in regions["mcqs"])
    assert len(topics) == 9 and min(topics.values()) > 5 and max(topics.values()) < 0.3 * total


def test_without_the_region_an_option_is_little_better_than_a_guess(read, images):
    """The best guess from the image: the option that is right of the most objects of it. Chance is 1/4."""
    hits, kept, shown = [], [], []
    for name, rle, question, options, answer in _mcqs(read):
        image, i = images[name], images[name].object(rle)
        right_of = np.array([sum(_truth(question, o, image, j) is True for j in image.all) for o in options])
        best = np.flatnonzero(right_of == right_of.max())
        hits.append(("ABCD".index(answer) in best) / len(best))
        right = options["ABCD".index(answer)]
        kept.append(np.mean([_truth(question, right, image, j) is True for j in image.all if j != i]))
        shown.append(np.mean(right_of > 0))
    assert len(hits) > 500
    assert np.mean(hits) < 0.4 and np.mean(kept) < 0.25 and np.mean(shown) > 0.7


def _parse_request(text):
    text = (
        re.sub(r"^(Segment|Please segment|Find|Show me the mask of) ", "", text).removesuffix(".").removeprefix("the ")
    )
    words = "not|directly|to|above|below|left|right|nearest|closest|larger|smaller"
    return re.sub(rf" (?:that )?(?:is|are) (?={words})", " ", text)


def _meant(text, image, prompts):
    """The set of objects that a request means, None where it is not clear."""
    others = [i for i in image.all if i not in prompts]
    text = _parse_request(text)
    thing = image.things[prompts[0]]
    same = re.fullmatch(r".* (colour|kind|texture)(?: of thing)?(?: as| of) <obj0>", text)
    if same and text.startswith(("all other", "everything else")):
        return {i for i in others if image.things[i][same[1]] == thing[same[1]]}
    mixed = re.fullmatch(r"(?:object|thing) with the colour of <obj0> and the kind of <obj1>", text)
    if mixed:
        kind = image.things[prompts[1]]["kind"]
        return {
            i for i in image.all if image.things[i]["colour"] == thing["colour"] and image.things[i]["kind"] == kind
        }
    if re.fullmatch(r"(?:object|thing|what is) between <obj0> and <obj1>", text):
        return _clear_set(others, [image.between(i, *prompts) for i in others])
    compared = re.fullmatch(r"(?:everything|all things) (larger|smaller) than <obj0>", text)
    if compared:
        steps = [image.larger(i, prompts[0]) for i in others]
        return (
            None if None in steps else {i for i, s in zip(others, steps, strict=True) if s == (compared[1] == "larger")}
        )
    extreme = re.fullmatch(r"(largest|smallest) (.+?) (?:except|not) <obj0>", text)
    if extreme:
        indices = [i for i in image.having(extreme[2]) if i not in prompts]
        best, *rest = sorted(indices, key=lambda i: image.world.areas[i], reverse=extreme[1] == "largest")
        clear = all(image.larger(best, i) == (extreme[1] == "largest") for i in rest)
        return {best} if clear else None
    near = re.fullmatch(r"(.+) (?:nearest|closest) to <obj0>", text)
    if near:
        indices = [i for i in image.having(near[1]) if i not in prompts]
        best = image.nearest(indices, prompts[0]) if indices else None
        return None if best is None else {best}
    beside = re.fullmatch(rf"(?:object|thing) directly ({RELATION}) <obj0>", text)
    if beside:
        target = image.beside(prompts[0], beside[1])
        return None if target is None else {target}
    related = re.fullmatch(rf"(.+?) ({RELATION}) <obj0>", text)
    indices = [i for i in image.having(related[1]) if i not in prompts]
    return _clear_set(indices, [image.is_ahead(i, prompts[0], related[2]) for i in indices])


def _clear_set(indices, truths):
    return None if None in truths else {i for i, true in zip(indices, truths, strict=True) if true}


@pytest.fixture(scope="module")
def requests(read, images, folder):
    """(image, question, prompts, targets) of every VRES item and of requests_train.jsonl, the tags checked."""
    items = []
    for entry in (entry for folder in BENCHMARKS for entry in read(f"{folder}/STBench_VRES.json")):
        asked, said = (re.findall(r"<obj\d+>", entry[key]) for key in ("question", "answer"))
        tags = list(dict.fromkeys(asked + said))
        assert tags == list(entry["segmentations"]) == [f"<obj{k}>" for k in range(len(tags))]
        assert not set(asked) & set(said) and asked and said
        plural = entry["answer"].startswith("They are")
        assert plural == (len(said) > 1) and (plural or entry["answer"] == f"It is {said[0]}.")
        image = images[entry["image_name"]]
        objects = [image.object(rle) for rle in entry["segmentations"].values()]
        items.append((image, entry["question"], objects[: len(asked)], objects[len(asked) :]))
    return items + _in_conversations(images, (folder / "requests_train.jsonl").read_text())


def _in_conversations(images, text):
    """The same of every turn of requests_train.jsonl."""
    items = []
    for line in map(json.loads, text.splitlines()):
        image, masks = images[line["image"].removeprefix("train2014/")], iter(line["masks"])
        regions = {k: image.object(rle) for k, rle in line["regions"].items()}
        assert list(regions) == [str(k) for k in range(len(regions))]
        for turn in line["conversations"]:
            named = re.findall(r"<Prompt(\d+)>", turn["question"])
            question = turn["question"]
            for number, k in enumerate(named):
                question = question.replace(f"<Prompt{k}>", f"<obj{number}>")
            targets = [image.object(next(masks)) for _ in range(turn["answer"].count("[SEG]"))]
            plural = re.fullmatch(r"They are (\[SEG\], )*\[SEG\] and \[SEG\]\.", turn["answer"])
            assert plural or turn["answer"] == "It is [SEG]."
            items.append((image, question, [regions[k] for k in named], targets))
        assert next(masks, None) is None
        assert len({turn["question"] for turn in line["conversations"]}) == len(line["conversations"])
    return items


ASKS_FOR = {
    "same": r"with the same \w+ as|has the \w+ of|of the same kind as|same kind of thing as",
    "nearest": r"nearest to|closest to",
    "beside": r"directly (above|below|to the (left|right) of)",
}
ASKS_FOR["around"] = "|".join(ASKS_FOR.values())


@pytest.mark.parametrize(("lesson", "at_least"), [("same", 6), ("nearest", 6), ("beside", 4), ("around", 4)])
def test_a_lesson_asks_many_times_for_one_thing(folder, images, splits, lesson, at_least):
    text = (folder / f"{lesson}_train.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) > 0.9 * 0.8 * IMAGES and len({line["image"] for line in lines}) == len(lines)
    assert all(splits[line["image"].removeprefix("train2014/")] == "train" for line in lines)
    assert all((len(line["regions"]) == 1) or lesson != "around" for line in lines)
    assert lesson == "around" or max(len(line["conversations"]) for line in lines) == 12
    items = _in_conversations(images, text)
    assert len(items) > at_least * len(lines)
    for image, question, prompts, targets in items:
        assert re.search(ASKS_FOR[lesson], question), question
        assert _meant(question, image, prompts) == set(targets), (question, prompts, targets)


def test_every_request_means_exactly_its_targets(requests, known, folder):
    lines = map(json.loads, (folder / "requests_train.jsonl").read_text().splitlines())
    assert max(len(line["conversations"]) for line in lines) == 12
    assert len(requests) > (4 + 0.8 * 11) * IMAGES  # four of PerBench, and eleven of a training image
    for image, question, prompts, targets in requests:
        assert _meant(question, image, prompts) == set(targets), (question, prompts, targets)
        several = re.search(r"^\D*? (all|everything) ", question) is not None  # the others ask for one object
        assert several or len(targets) == 1, question
    topics = Counter(v["topic"] for regions in known["regions"] for v in regions["vres"])
    assert len(topics) == 8 and min(topics.values()) > 10
    assert np.mean([len(targets) > 1 for *_, targets in requests]) > 0.08
    assert np.mean([len(prompts) > 1 for _, _, prompts, _ in requests]) > 0.08


def test_another_prompt_mostly_means_another_answer(requests):
    """Each prompt is replaced by each other object of the image (the relation of the text stays)."""
    same = []
    for image, question, prompts, targets in requests:
        others = [j for j in image.all if j not in prompts]
        swapped = [_meant(question, image, [j, *prompts[1:]]) for j in others]
        same.append(np.mean([meant == set(targets) for meant in swapped]))
    assert np.mean(same) < 0.2 and np.mean(np.array(same) > 0.5) < 0.08


def test_stored_queries_give_the_targets(known):
    """scenes.json alone: the resolver finds each query clear and its targets."""
    for image, regions in zip(known["images"], known["regions"], strict=True):
        assert len(regions["facts"]) == len(image["objects"])
        for item in regions["vres"]:
            matches = resolve_query(query_of(item["query"]), objects_of(image), image["width"], image["height"])
            assert matches.clear and matches.sure == set(item["targets"]), item


def test_stored_queries_of_references_give_their_objects(known, folder, read):
    """The same for the references of all three datasets."""
    refs = {
        "refcoco": pickle.loads((folder / "refcoco/refs(unc).p").read_bytes()),
        "refcocog": pickle.loads((folder / "refcocog/refs(umd).p").read_bytes()),
        "grefcoco": read("grefcoco/grefs(unc).json"),
    }
    images, types = {image["id"]: image for image in known["images"]}, Counter()
    for name, ref in ((name, ref) for name, references in refs.items() for ref in references):
        image = images[ref["image_id"]]
        expected = ref["ann_id"] if name == "grefcoco" else [ref["ann_id"]]
        for query in (known["queries"][name][sent_id] for sent_id in ref["sent_ids"]):
            objects = objects_of(image)
            matches = resolve_query(query_of(query), objects, image["width"], image["height"])
            assert matches.clear and sorted(objects[i].ann_id for i in matches.sure) == [i for i in expected if i > 0]
            types[query["type"]] += 1
    assert set(types) == {"attribute", "position", "relation", "ordinal", "size", "all", "pair"}


def objects_of(image):
    return [SceneObject(**values, segmentation=None) for values in image["objects"]]


def query_of(values):
    """A query of scenes.json as the resolver takes it."""
    (query,) = [query for query in get_args(Query) if query.type == values["type"]]
    names = {"from": "side", "class": "size_class"}
    return query(**{names.get(key, key): _field_of(value) for key, value in values.items() if key != "type"})


def _field_of(value):
    if isinstance(value, list):
        return tuple(_field_of(item) for item in value)
    if not isinstance(value, dict):
        return value
    attributes = {key: text for key, text in value.items() if key not in ("is", "except")}
    return Filter(attributes, value.get("is"), tuple(value.get("except", ())))


def _turns(entry):
    messages = entry["conversations"]
    assert [m["from"] for m in messages] == ["human", "gpt"] * (len(messages) // 2)
    return [(q["value"], a["value"]) for q, a in zip(messages[::2], messages[1::2], strict=True)]


def _region_answer(question, image, objects):
    """The answer to an Osprey question by the masks; ``objects`` of <region1>, <region2>, ..."""
    tags = [int(n) - 1 for n in re.findall(r"<region(\d+)>", question)]
    i = objects[tags[0]]
    thing = image.things[i]
    text = re.sub(r"<region\d+>", "<R>", question)
    others = [image.things[j] for j in image.all if j != i]
    count = re.fullmatch(r"How many other (\w+)(?: (things))? than <R> are there\?", text)
    if text in ("What colour is <R>?", "Which colour does <R> have?"):
        return thing["colour"]
    if text == "What kind of thing is <R>?":
        return thing["kind"]
    if "texture" in text:
        return thing["texture"]
    if count:
        key = "colour" if count[2] else "kind"
        wanted = count[1] if count[2] else KIND_WORDS[count[1]]
        return _word(sum(other[key] == wanted == thing[key] for other in others))
    is_a = re.fullmatch(r"Is <R> an? (\w+)\?", text)
    if is_a:
        return "yes" if thing["kind"] == KIND_WORDS[is_a[1]] else "no"
    j = objects[tags[1]]
    side = re.fullmatch(rf"Is <R> ({RELATION}) <R>\?", text)
    if side:
        return {True: "yes", False: "no"}[image.is_ahead(i, j, side[1])]
    if text.startswith("Which is"):
        step = image.larger(i, j)
        assert step is not None
        return f"<region{tags[0] + 1}>" if step == ("larger" in text) else f"<region{tags[1] + 1}>"
    key = {"Do <R> and <R> have the same colour?": "colour", "Do <R> and <R> show the same kind of thing?": "kind"}[
        text
    ]
    return "yes" if thing[key] == image.things[j][key] else "no"


@pytest.mark.parametrize("name", ["short_form", "conversation", "lvis_positive_negative"])
def test_answers_about_regions_are_true(name, read, images, splits):
    entries, answers, regions = read(f"osprey/osprey_{name}.json"), Counter(), Counter()
    assert len(entries) == list(splits.values()).count("train")
    for entry in entries:
        image = images[entry["file_name"]]
        assert [entry["width"], entry["height"]] == list(image.world.size)
        assert splits[entry["file_name"]] == "train"
        objects = [image.object(region["segmentation"]) for region in entry["annotation"]]
        for question, answer in _turns(entry):
            if question.startswith("Where"):
                assert image.at(objects[int(question[-3]) - 1], answer), question
            elif question.startswith("How large"):
                assert image.has_size(objects[int(question[-3]) - 1], answer), question
            elif question.startswith(("What is <", "What do you see")):
                i = objects[int(question[-3]) - 1]
                assert i in image.having(answer) and question.startswith("What do you see") == (" " in answer)
            else:
                assert answer == _region_answer(question, image, objects), (question, answer)
            answers[answer] += 1
        regions[len(objects)] += 1
    if name == "lvis_positive_negative":
        assert answers["yes"] == answers["no"] and set(answers) == {"yes", "no"}
    if name == "short_form":
        turns = [len(entry["conversations"]) // 2 for entry in entries]
        assert max(regions) == 5 and max(turns) == 8 and np.mean(turns) > 6
    if name == "conversation":
        assert 0.5 < answers["yes"] / answers["no"] < 2 and regions[2] > 10 and regions[3] > 10
        assert np.mean([len(entry["conversations"]) > 10 for entry in entries]) > 0.9
        assert {"red", "left", "small", "striped"} < set(answers)  # of the questions that ask about one region


def test_parts_are_the_named_half_of_an_object(read, images):
    entries = read("osprey/osprey_part_level.json")
    assert len(entries) > 0.7 * IMAGES
    halves = Counter()
    for entry in entries:
        image = images[entry["file_name"]]
        (region,) = entry["annotation"]
        part = coco_mask.decode(region["segmentation"]).astype(bool)
        i = next(i for i in image.all if (part & (coco_mask.decode(image.rles[i]) > 0)).any())
        whole = coco_mask.decode(image.rles[i]).astype(bool)
        assert not (part & ~whole).any()
        half = _half_of(part, whole)
        halves[half] += 1
        thing = f"{image.things[i]['colour']} {image.things[i]['kind']}"
        an = "an" if thing[0] in "aeiou" else "a"
        expected = {
            "Which part of which thing is <region1>?": f"the {half} part of {an} {thing}",
            f"Which part of the {image.things[i]['kind']} is <region1>?": f"the {half} part",
            "<region1> is a part of what?": f"{an} {thing}",
        }
        assert len(_turns(entry)) == 2
        assert all(expected[question] == answer for question, answer in _turns(entry))
    assert len(halves) == 4


def _half_of(part, whole):
    """Which half of the bounding box holds exactly the pixels of ``part``."""
    ys, xs = np.nonzero(whole)
    y, x = np.mgrid[: whole.shape[0], : whole.shape[1]]
    middle_y, middle_x = ys.min() + (ys.max() - ys.min() + 1) // 2, xs.min() + (xs.max() - xs.min() + 1) // 2
    sides = {"upper": y < middle_y, "lower": y >= middle_y, "left": x < middle_x, "right": x >= middle_x}
    (half,) = [name for name, side in sides.items() if np.array_equal(part, whole & side)]
    return half


def _image_answer(question, image):
    count = re.fullmatch(r"How many (\w+)(?: (things))? are there\?", question)
    presence = re.fullmatch(r"Is there (an? .+) in the picture\?", question)
    if question == "How many things are there in the picture?":
        return _word(len(image.things))
    if count:
        values = [thing["colour" if count[2] else "kind"] for thing in image.things]
        return _word(values.count(count[1] if count[2] else KIND_WORDS[count[1]]))
    if presence:
        return "yes" if image.having(presence[1]) else "no"
    (i,) = image.having(re.fullmatch(r"What colour is the (\w+)\?", question)[1])
    return image.things[i]["colour"]


def _text_answer(question):
    total = re.fullmatch(r"What is (\w+) (plus|minus) (\w+)\?", question)
    plural = re.fullmatch(r"What is the plural of (\w+)\?", question)
    longer = re.fullmatch(r"Which word is longer, (\w+) or (\w+)\?", question)
    if total:
        return _word(COUNTS[total[1]] + COUNTS[total[3]] * (1 if total[2] == "plus" else -1))
    if plural:
        return _plural(plural[1])
    if longer:
        assert len(longer[1]) != len(longer[2])
        return max(longer.groups(), key=len)
    sort = re.fullmatch(r"Is (\w+|an? \w+) a colour or a kind of thing\?", question)[1]
    return "a colour" if sort in COLOUR_WORDS else "a kind of thing"


def _plural(word):
    irregular = {"box": "boxes", "leaf": "leaves", "fish": "fish"}
    return irregular.get(word, word + "s")


def test_llava_answers_are_true_and_some_need_no_image(read, folder, images, splits):
    entries = read("llava/train.json")
    assert len({entry["id"] for entry in entries}) == len(entries)
    grounded = read("GranDf/annotations/train/OpenPsgGCG_train.json")  # a quarter of the images
    captions = {entry["file_name"]: entry["caption"].strip('"') for entry in grounded}
    seen, lengths = Counter(), Counter()
    for entry in entries:
        turns = _turns(entry)
        lengths[len(turns)] += 1
        if "image" not in entry:
            assert all(_text_answer(question) == answer for question, answer in turns)
            seen["text"] += 1
            continue
        assert (folder / "images" / entry["image"]).is_file()
        name = entry["image"].removeprefix("train2014/")
        asked, described = turns[0]
        assert splits[name] == "train" and asked == "<image>\nDescribe this image."
        assert captions.pop(name, described) == described
        for question, answer in turns[1:]:
            assert _image_answer(question, images[name]) == answer, (name, question, answer)
            seen[answer if question.startswith("Is") else "other"] += 1
    assert seen["text"] == -(-IMAGES // 20) - sum(i % 20 == 0 and s != "train" for i, s in enumerate(splits.values()))
    assert 0.5 < seen["yes"] / seen["no"] < 2 and lengths[2] > 5 and lengths[5] > 5
    assert grounded and not captions


def test_the_benchmark_shows_no_training_image(read, splits):
    for folder, held_out in (("perbench", True), ("perbench_train", False)):
        for task in ("Detailed_Caption", "MCQ", "VRES"):
            names = {entry["image_name"] for entry in read(f"{folder}/STBench_{task}.json")}
            assert {splits[name] != "train" for name in names} == {held_out}
            assert len(names) > 0.9 * sum((split != "train") == held_out for split in splits.values())


def test_training_texts_name_no_new_combination(read, known):
    held_out = {(colour, kind) for kind, colour in known["held_out_pairs"]}
    names = ["llava/train", "sam_captions/train", "pix2cap/pix2cap_coco_train"]
    names += [f"osprey/osprey_{name}" for name in write_regions.OSPREY]
    names += [f"perbench_train/STBench_{task}" for task in ("Detailed_Caption", "MCQ", "VRES")]
    for text in (text for name in names for text in _texts(read(f"{name}.json"))):
        for colour, kind in re.findall(r"(\w+) (\w+)", text) + re.findall(r"\w+ (\w+) (\w+)", text):
            assert (colour, KIND_WORDS.get(kind)) not in held_out, text


def _texts(value):
    """All strings with a space in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) and " " in value else []


def test_the_vocabulary_is_small(read, folder):
    files = [p for p in folder.rglob("*.json") if p.parent.name in ("osprey", "llava", "sam_captions", *BENCHMARKS)]
    words = {
        w for p in files for text in _texts(json.loads(p.read_text())) for w in re.findall(r"[a-z]+", text.lower())
    }
    assert len(files) == 5 + 2 + 2 + 6 and 120 < len(words) < 250


def test_the_benchmark_is_cut_at_its_number_of_items_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(write_regions, "BENCHMARK_ITEMS", 13)
    scenes.generate(tmp_path / "data", 30, SEED, 96, workers=1)  # 6 images are held out
    for task, key in (("Detailed_Caption", "object_annotations"), ("MCQ", "mcqs"), ("VRES", None)):
        entries = json.loads((tmp_path / f"data/perbench/STBench_{task}.json").read_text())
        counts = Counter()
        for entry in entries:
            counts[entry["image_name"]] += len(entry[key]) if key else 1
        assert counts.total() == 13 and len(counts) == 6
        assert max(counts.values()) - min(counts.values()) <= 1 + (min(counts.values()) == 1), counts
