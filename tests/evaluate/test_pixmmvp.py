"""PixMMVP as published: what is read, and scores of hand-made predictions against numbers computed by hand."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_predictor import tiny_predictor

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px, decode_mask, encode_mask
from pixel_sail.data.templates import choose
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.gallery import write_gallery
from pixel_sail.evaluate.pixfoundation import pixmmvp
from pixel_sail.evaluate.pixfoundation.failures import mask_right
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.vqa import chosen_option
from pixel_sail.evaluate.pixfoundation.wordings import INSTRUCTION, read_wordings
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.types import BadSample

SIDE = 224
YES_NO, OPEN = ("Yes", "No"), ("Open", "Closed")


@pytest.fixture(scope="module")
def raw(shared: Path) -> tuple[list[list[str]], dict[int, list]]:
    """Answers (rows of Questions.csv) and polygons by image, read without the package."""
    with (shared / "data/pixmmvp/Questions.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    values = json.loads((shared / "data/pixmmvp/Segmentations.json").read_text())
    polygons: dict[int, list] = {index: [] for index in range(1, 301)}
    for annotation in values["annotations"]:
        polygons[annotation["image_id"]] += annotation["segmentation"]
    return rows, polygons


@pytest.fixture(scope="module")
def masks(raw) -> dict[int, np.ndarray]:
    """The union of the polygons of each image, (224, 224) bool."""
    drawn = {}
    for index, polygons in raw[1].items():
        decoded = [coco_mask.decode(coco_mask.frPyObjects([polygon], SIDE, SIDE))[..., 0] for polygon in polygons]
        drawn[index] = np.any(decoded, axis=0) if decoded else np.zeros((SIDE, SIDE), bool)
    return drawn


@pytest.fixture(scope="module")
def full(shared: Path, tmp_path_factory) -> Path:
    """The published annotations, with a grey image in place of each of the 300 images, which we do not have."""
    root = tmp_path_factory.mktemp("pixmmvp")
    (root / "pixmmvp/MMVP Images").mkdir(parents=True)
    for name in ("Questions.csv", "Objects.csv", "Segmentations.json"):
        shutil.copyfile(shared / "data/pixmmvp" / name, root / "pixmmvp" / name)
    Image.new("RGB", (SIDE, SIDE), "grey").save(root / "grey.jpg")
    for index in range(1, 301):
        (root / f"pixmmvp/MMVP Images/{index}.jpg").symlink_to(root / "grey.jpg")
    return root


def score(root: Path, lines: list[dict], name: str = "pixmmvp") -> dict:
    path = root / "lines.jsonl"
    write_json_lines(path, lines)
    return runner.score_file(path, name, root)


def rle(mask: np.ndarray) -> dict | None:
    return encode_mask(mask) if mask.any() else None


def test_the_published_annotation(shared: Path, raw, masks) -> None:
    objects = pixmmvp.read_objects(shared / "data")
    assert [row.index for row in objects] == list(range(1, 301))
    assert sum(len(polygons) for polygons in raw[1].values()) == 384
    assert sum(row.mask_rle is not None for row in objects) == 247
    absent = [int(name.partition(".")[0]) for name in (shared / "data/pixmmvp/meta_none.txt").read_text().split()]
    assert [row.index for row in objects if row.expression is None] == absent and len(absent) == 14
    for case, row in zip(objects, raw[0], strict=True):
        assert (case.mask_rle is None) == (not masks[case.index].any())
        assert case.mask_rle is None or (decode_mask(case.mask_rle) == masks[case.index]).all(), case.index
        assert f"({case.answer})" == row[3] and case.question == row[1]
        assert " ".join(f"({'ab'[i]}) {text}" for i, text in enumerate(case.options)) == row[2].strip()
    several = [index for index, polygons in raw[1].items() if len(polygons) > 1]
    assert several and any(  # united, and not added
        area_px(objects[i - 1].mask_rle)
        < sum(coco_mask.area(coco_mask.frPyObjects([p], SIDE, SIDE))[0] for p in raw[1][i])
        for i in several
    )
    assert objects[8].expression == 'the key "Z"' and objects[62].options == ("Correct", "Incorrect")
    assert [row.pair for row in objects[:5]] == [0, 0, 1, 1, 2]


def test_perfect_empty_and_shifted_masks(full: Path, raw, masks) -> None:
    right = [row[3] for row in raw[0]]
    shifted = {index: np.roll(mask, 7, axis=1) for index, mask in masks.items()}

    def lines(answers: list[str], drawn: dict[int, np.ndarray]) -> list[dict]:
        return [{"index": i, "answers": [answers[i - 1]], "segmentations": [rle(drawn[i])]} for i in range(1, 301)]

    perfect = score(full, lines(right, masks))
    assert {perfect[name] for name in ("score", "accuracy", "miou", "miou_no_absent", "miou_present")} == {100.0}
    assert perfect["both_right"] == perfect["pairs"] == 150 and perfect["undecided"] == 0

    empty = score(full, lines(right, dict.fromkeys(masks, np.zeros((SIDE, SIDE), bool))))
    assert empty["miou"] == pytest.approx(100 * 53 / 300) and empty["miou_present"] == 0
    assert empty["miou_no_absent"] == pytest.approx(100 * 39 / 286)
    assert empty["score"] == pytest.approx(2 * 100 * (5300 / 300) / (100 + 5300 / 300))
    both_absent = [[i, i + 1] for i in range(1, 300, 2) if not masks[i].any() and not masks[i + 1].any()]
    assert empty["failures"]["both_right"] == both_absent
    assert empty["only_grounding_wrong"] == 150 - len(both_absent) and empty["both_wrong"] == 0

    ious = {i: (masks[i] & shifted[i]).sum() / max(1, (masks[i] | shifted[i]).sum()) for i in masks}
    ious |= {i: 1.0 for i in masks if not masks[i].any()}
    scores = score(full, lines(["(a)"] * 300, shifted))
    assert scores["miou"] == pytest.approx(100 * np.mean(list(ious.values())))
    assert scores["accuracy"] == 0 and scores["accuracy_single"] == 50 and scores["score"] == 0
    good = [[i, i + 1] for i in range(1, 300, 2) if min(ious[i], ious[i + 1]) > 0.5]
    assert 0 < len(good) < 150 and scores["failures"]["only_vqa_wrong"] == good
    assert scores["both_wrong"] == 150 - len(good)


def test_a_pair_counts_when_both_are_right(full: Path, raw) -> None:
    right = [row[3] for row in raw[0]]
    answers = [answer if i < 20 or i % 2 else "hard to say" for i, answer in enumerate(right)]
    scores = score(full, [{"index": i + 1, "answers": [text], "segmentations": []} for i, text in enumerate(answers)])
    assert scores["accuracy"] == pytest.approx(100 * 10 / 150)
    assert scores["accuracy_single"] == pytest.approx(100 * (20 + 140) / 300)
    assert scores["score"] is None and scores["miou"] is None and scores["failures"] is None
    assert scores["undecided"] == 140
    assert scores["wordings"]["vqa"][0]["undecided"][0] == {"index": 21, "answer": "hard to say"}


def test_wordings_best_mean_and_spread(full: Path, raw, masks) -> None:
    """The best wording of the question and the best of the request go into the score and the histogram."""
    right, nothing = [row[3] for row in raw[0]], np.zeros((SIDE, SIDE), bool)
    lines = [
        {
            "index": i,
            "answers": ["(a)", right[i - 1] if i <= 150 else "(a)"],
            "segmentations": [rle(nothing), rle(masks[i]), rle(nothing)],
        }
        for i in range(1, 301)
    ]
    scores, floor = score(full, lines), 100 * 53 / 300
    assert (scores["accuracy"], scores["accuracy_mean"], scores["accuracy_spread"]) == (50, 25, 50)
    assert scores["miou"] == 100 and scores["miou_mean"] == pytest.approx((100 + 2 * floor) / 3)
    assert scores["miou_spread"] == pytest.approx(100 - floor)
    assert (
        scores["score"] == pytest.approx(2 * 50 * 100 / 150) and scores["both_right"] == scores["only_vqa_wrong"] == 75
    )
    assert [wording["miou"] for wording in scores["wordings"]["grounding"]] == pytest.approx([floor, 100, floor])
    tied = [line | {"answers": ["it is", "(a)"]} for line in lines]  # no pair is right in either
    assert score(full, tied)["accuracy"] == 0 and score(full, tied)["accuracy_single"] == 50
    lines[3]["answers"] = ["(a)"]
    with pytest.raises(DatasetError, match=r"lines have \[1, 2\] answers"):
        score(full, lines)
    lines[3] = {"index": 4, "answers": "(a)", "segmentations": [None] * 3}
    with pytest.raises(BadSample, match="index 4: answers is '\\(a\\)', expected a list"):
        score(full, lines)
    lines[3] = {"index": 4, "answers": ["(a)"] * 2, "segmentations": [encode_mask(np.ones((4, 4), bool)), None, None]}
    with pytest.raises(BadSample, match="segmentation 0: the mask is of size"):
        score(full, lines)


def test_a_mask_is_right_above_a_half() -> None:
    half, whole = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    half[:2] = True
    present = PixObject(1, Path("x"), (4, 4), "it", encode_mask(whole), "", (), "", 0)
    absent = PixObject(1, Path("x"), (4, 4), "it", None, "", (), "", 0)
    assert not mask_right(encode_mask(half), present) and mask_right(encode_mask(whole), present)  # 0.5 is not above
    assert not mask_right(None, present) and mask_right(None, absent)
    assert not mask_right(encode_mask(half), absent)  # a half is not below
    half[1, 3] = False
    assert mask_right(encode_mask(half), absent) and mask_right(encode_mask(~half), present)


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("(b)", OPEN, "b"),
        ("b", OPEN, "b"),
        ("B.", OPEN, "b"),
        ("b) because they are folded", OPEN, "b"),
        ("Closed (b)", OPEN, "b"),
        ("(b) Closed.", OPEN, "b"),
        ("The wings are closed.", OPEN, "b"),
        ("They are not closed.", OPEN, None),  # a judge may say (a)
        ("They aren't closed", OPEN, None),
        ("Not (b), so (a)", OPEN, None),
        ("Open or closed, I cannot say", OPEN, None),
        ("It is a photo of a butterfly", OPEN, None),
        ("", OPEN, None),
        ("Yes", YES_NO, "a"),
        ("No, it is not there.", YES_NO, "b"),
        ("No.", YES_NO, "b"),
        ("I do not know", YES_NO, None),
        ("I have no idea.", YES_NO, None),
        ("No idea", YES_NO, None),
        ("There is no way to tell, but I would say yes", YES_NO, "a"),
        ("There is no way to tell.", ("Three", "No way to tell"), "b"),
        ("It is [SEG]. (a)", YES_NO, "a"),
        ("Incorrect", ("Correct", "Incorrect"), "b"),
        ("(c)", ("0", "1", "2"), "c"),
        ("There are 2.", ("0", "1", "2"), "c"),
    ],
)
def test_the_option_of_a_free_answer(answer: str, options: tuple[str, ...], letter: str | None) -> None:
    assert chosen_option(answer, options) == letter


def test_bad_files_say_what_is_wrong(full: Path, tmp_path: Path) -> None:
    def refused(name: str, change, message: str) -> None:
        root = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        (root / "pixmmvp").mkdir(parents=True)
        for other in ("Questions.csv", "Objects.csv", "Segmentations.json"):
            text = (full / "pixmmvp" / other).read_text()
            (root / "pixmmvp" / other).write_text(change(text) if other == name else text)
        with pytest.raises((DatasetError, BadSample), match=message):
            pixmmvp.read_objects(root)

    refused("Questions.csv", lambda text: text.replace("\n7,", "\n8,"), "not numbered from 1 to 300")
    refused("Objects.csv", lambda text: text.replace("\n300, None", ""), "299 rows are not numbered")
    refused("Objects.csv", lambda text: text.replace("Index, Object", "Index, Thing"), "expected Index, Object")
    refused("Questions.csv", lambda text: text.replace("(a) Round (b) Thin,(a)", "(a) Round (b) Thin,(c)"), "image 3")
    refused("Questions.csv", lambda text: text.replace("3,Is the", "3,x,Is the", 1), "line 4: 5 values for 4 columns")
    refused("Segmentations.json", lambda text: text.replace('"image_id":1,', '"image_id":999,'), "image 999")
    refused("Segmentations.json", lambda text: text.replace("[[109,77,", "[[109,77"), "no polygon")
    shutil.copytree(full / "pixmmvp", tmp_path / "none/pixmmvp", ignore=shutil.ignore_patterns("*.jpg"))
    with pytest.raises(DatasetError, match="all 300 images of pixmmvp are missing"):
        runner.open_benchmark("pixmmvp", tmp_path / "none")
    with pytest.raises(DatasetError, match=r"no file .*pixmmvp/Questions.csv"):
        pixmmvp.read_objects(tmp_path)


@pytest.mark.parametrize("what", ["images", "annotations"])
def test_two_entries_with_one_id_are_named(full: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(full / "pixmmvp", tmp_path / "pixmmvp", ignore=shutil.ignore_patterns("*.jpg"))
    path = tmp_path / "pixmmvp/Segmentations.json"
    values = json.loads(path.read_text())
    values[what][1]["id"] = values[what][0]["id"]
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=f"Segmentations.json has several {what} with the id"):
        pixmmvp.read_objects(tmp_path)


def test_the_four_real_images_end_to_end(shared: Path, tmp_path: Path) -> None:
    texts = ["Segment the red mug.", "It is [SEG]. (a) (b)"]
    predictor = tiny_predictor(texts, "Find {expression}.", architecture={"patch_size": 16})
    benchmark = runner.open_benchmark("pixmmvp", shared / "data")
    assert [case.index for case in benchmark.cases] == [1, 3, 6, 161] and len(benchmark.problems) == 296
    scores = runner.run_benchmark(predictor, benchmark, tmp_path, {"test": 1})
    assert predictor.images_encoded == 4, "an image is encoded once for all its prompts"
    lines = read_lines(tmp_path / "predictions/pixmmvp.jsonl", benchmark)
    assert Counter(len(line["answers"]) for line in lines) == {10: 4}
    assert all(len(line["segmentations"]) == len(line["replies"]) == 7 for line in lines)
    assert (
        lines[0]["requests"][6] == "Output mask for the the butterfly's wings." and len(set(lines[0]["requests"])) == 6
    )
    asked = "Is the flame of the match more round or thin?"
    instruction = "Answer with the option's letter from the given choices directly."
    assert lines[1]["questions"][0] == f"Ques:{asked}\n(a) Round (b) Thin\nInstruct:{instruction}\nAns:"
    assert scores["cases"] == 4 and scores["pairs"] == 0 and scores["accuracy"] is None and scores["unusable"] == 296
    assert 0 <= scores["miou"] <= 100 and "failures" not in runner.table({"pixmmvp": scores})
    assert write_gallery(benchmark, tmp_path, 4).is_file()


def test_three_wordings_of_our_own(shared: Path, tmp_path: Path) -> None:
    predictor = tiny_predictor(["It is [SEG]. (a) (b)"], "Find {expression}.", architecture={"patch_size": 16})
    benchmark = runner.open_benchmark("pixmmvp:own", shared / "data", max_images=2)
    assert benchmark.name == "pixmmvp:own"
    (first, second) = benchmark.predict(predictor, benchmark.cases)
    assert len(first["answers"]) == len(first["segmentations"]) == len(set(first["requests"])) == 3
    assert first["requests"][0] == "Find the butterfly's wings."
    assert second["questions"][0] == "Is the flame of the match more round or thin? (a) Round (b) Thin"
    with pytest.raises(DatasetError, match=r"unknown benchmark pixmmvp:mine; known are pixmmvp\[:own\], pixcvbench"):
        runner.open_benchmark("pixmmvp:mine", shared / "data")


def test_the_published_wordings_are_read_and_embedded(shared: Path, full: Path, tmp_path: Path) -> None:
    """`full` has no files of wordings, the published folder has them: 10 and 7, and the same."""
    embedded, published = (read_wordings(root, own=False) for root in (full, shared / "data"))
    assert embedded == published and (len(embedded.questions), len(embedded.requests)) == (10, 7)
    question = choose("Is it?", ("Yes", "No"), embedded.questions[4])
    assert question == f"Is it?\t(a) Yes (b) No\t{INSTRUCTION}Answer::" and "|" not in "".join(embedded.questions)
    folder = tmp_path / "pixmmvp"
    folder.mkdir()
    (folder / "prompt_templates.csv").write_text('Index,Template\n1,"{}? |{} |{}"\n')
    wordings = read_wordings(tmp_path, own=False)
    assert wordings.questions == (f"{{question}}? {{options}} {INSTRUCTION}",) and len(wordings.requests) == 7
    (folder / "lang_grounding_prompt_templates.csv").write_text("Index,Template\n1,Segment it.\n")
    with pytest.raises(
        DatasetError, match=r"lang_grounding_prompt_templates.csv: a template has 1 \{\}, got 'Segment it"
    ):
        read_wordings(tmp_path, own=False)


def test_disputed_labels_count_in_one_score_and_not_in_the_other(full: Path, raw, masks) -> None:
    """Wrong in images 99 and 279 alone: 148 of 150 pairs, and all 148 without the disputed labels."""
    right = [row[3] for row in raw[0]]
    lines = [
        {
            "index": i,
            "answers": [right[i - 1] if i not in (99, 279) else {"(a)": "(b)", "(b)": "(a)"}[right[i - 1]]],
            "segmentations": [rle(masks[i])],
        }
        for i in range(1, 301)
    ]
    scores = score(full, lines)
    assert scores["accuracy"] == pytest.approx(100 * 148 / 150) and scores["accuracy_undisputed"] == 100
    assert scores["accuracy_single"] == pytest.approx(100 * 298 / 300) and scores["accuracy_single_undisputed"] == 100
    assert scores["score_undisputed"] == 100 > scores["score"]
    numbers = {key for key, value in scores.items() if isinstance(value, float)}
    assert numbers == set(runner.definitions({"pixmmvp": scores})["pixmmvp"])
    masks_alone = score(full, [line | {"answers": []} for line in lines])
    assert masks_alone["accuracy_undisputed"] is masks_alone["score_undisputed"] is None


def test_other_data_in_the_same_format_has_no_disputed_labels(full: Path, raw, tmp_path: Path) -> None:
    shutil.copytree(full / "pixmmvp", tmp_path / "pixmmvp", symlinks=True)
    path = tmp_path / "pixmmvp/Objects.csv"
    path.write_text(
        path.read_text().replace("the elephant's tusks", "the mug").replace("the elderly person", "the cup")
    )
    lines = [{"index": i, "answers": [raw[0][i - 1][3]], "segmentations": []} for i in range(1, 301)]
    assert "accuracy_undisputed" not in score(tmp_path, lines)
