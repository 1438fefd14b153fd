"""The benchmarks of others that the drawn world writes: what is known of the images answers all of them rightly."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pixel_sail import scenes
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.benchmark import Options

DIRECTIONS = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "data"
    scenes.generate(out, 60, 11, 96, workers=1)
    return out


@pytest.fixture(scope="module")
def things(root):
    """Image name -> {mask of an object as text: what is known of it}."""
    known = json.loads((root / "scenes.json").read_text())
    masks = {
        a["id"]: a["segmentation"] for a in json.loads((root / "refcoco/instances.json").read_text())["annotations"]
    }
    return {
        image["file_name"]: {masks[thing["ann_id"]]["counts"]: thing for thing in image["objects"]}
        for image in known["images"]
    }


def scored(root, name, lines, options=None):
    write_json_lines(root.parent / "lines.jsonl", lines)
    return runner.score_file(root.parent / "lines.jsonl", name, root, options=options)


def test_gseval_has_the_four_granularities_and_exact_masks(root, things):
    cases = runner.open_benchmark("gseval", root).cases
    scores = scored(root, "gseval", [{"idx": case.idx, "segmentation": case.mask} for case in cases])
    assert scores["giou"] == scores["acc@0.5"] == 100 and "unusable" not in scores
    counts = [scores[f"{name}_cases"] for name in ("stuff", "part", "multi", "single")]
    assert counts[0] == len({case.image for case in cases}) == 12 and min(counts) > 2
    for case in cases:
        mask = coco_mask.decode(case.mask).astype(bool)
        objects = [coco_mask.decode({"size": case.mask["size"], "counts": code}) for code in things[case.image.name]]
        if case.granularity == "stuff":
            assert (mask == ~np.any(objects, axis=0)).all()
        elif case.granularity == "part":
            (whole,) = [thing for thing in objects if (thing.astype(bool) & mask).any()]
            assert 0.2 < mask.sum() / whole.sum() < 0.8 and not (mask & ~whole.astype(bool)).any()
        else:
            covered = [(thing.astype(bool) & mask).sum() in (0, thing.sum()) for thing in objects]
            assert all(covered), "whole objects"


def test_ref_l4_has_the_boxes_of_its_objects(root, things):
    for split in ("val", "test"):
        cases = runner.open_benchmark(f"ref_l4:{split}", root).cases
        lines = [{"id": case.id, "pred_bbox": case.box, "format": "xyxy"} for case in cases]
        assert scored(root, f"ref_l4:{split}", lines)["macc"] == 100
        boxes = {tuple(thing["bbox"]) for case in cases for thing in things[case.image.name].values()}
        assert {(l, t, r - l, b - t) for l, t, r, b in (case.box for case in cases)} <= boxes  # noqa: E741
    assert scored(root, "ref_l4:test", lines)["classes"] > 3


def test_dlc_gives_every_point_to_what_is_known(root, things):
    benchmark = runner.open_benchmark("dlc_bench", root)
    requests = root.parent / "requests.jsonl"
    lines = [{"id": case.id, "text": "x"} for case in benchmark.cases]
    scored(root, "dlc_bench", lines, Options(requests=requests))
    right = {}
    for row in map(json.loads, requests.read_text().splitlines()):
        key, number = row["request"].partition("#")[0].split("/")[1:]
        case = next(case for case in benchmark.cases if case.id == key)
        thing = things[case.image.name][case.region["counts"]]
        if number == "0":
            assert f"'{thing['kind']}'" in row["prompt"]
            right[row["request"]] = "Yes"
        else:
            question = case.questions[int(number) - 1]
            words = question.text.lower()
            value = next((thing[name] for name in ("colour", "texture") if name in words), None)
            assert value is None or value in question.choices
            right[row["request"]] = value or ("No" if question.type == "negative" else question.choices[0])
    write_json_lines(root.parent / "replies.jsonl", ({"request": k, "reply": v} for k, v in right.items()))
    scores = scored(root, "dlc_bench", lines, Options(replies=(root.parent / "replies.jsonl",)))
    assert scores["positive"] == scores["negative"] == 100 and scores["recognized"] == scores["cases"] == 12


def test_gar_answers_are_those_of_the_image(root, things):
    cases = runner.open_benchmark("gar_bench:vqa", root).cases
    lines = []
    for case in cases:
        known = [things[case.image.name][case.prompts[k]["counts"]] for k in case.prompts]
        if case.type == "relation":
            axis, sign = DIRECTIONS[case.reply.removesuffix(" it")]
            assert sign * (known[0]["centroid"][axis] - known[1]["centroid"][axis]) > 0
            answer = case.answer
        else:
            answer = known[0][{"color": "colour", "texture/pattern": "texture", "shape": "kind"}[case.type]]
        lines.append({"id": case.id, "text": answer})
    scores = scored(root, "gar_bench:vqa", lines)
    assert scores["accuracy_option"] == 100 and set(scores["by_type"]) == {
        "color", "texture/pattern", "shape", "relation"
    }  # fmt: skip
    for case in runner.open_benchmark("gar_bench:detailed", root).cases:
        known = [things[case.image.name][case.prompts[k]["counts"]] for k in (0, 1)]
        subject, predicate, other = case.sought
        assert [subject, other] == [f"{thing['colour']} {thing['kind']}" for thing in known]
        axis, sign = DIRECTIONS[predicate]
        assert sign * (known[0]["centroid"][axis] - known[1]["centroid"][axis]) > 0
    simple = runner.open_benchmark("gar_bench:simple", root).cases
    assert all(len(case.prompts) == 2 and "The " in case.reply for case in simple)
