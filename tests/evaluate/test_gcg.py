"""Grounded captions and ReasonSeg: hand-made predictions score as computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.templates import GROUNDED_CAPTION
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import gcg, runner
from pixel_sail.evaluate.gallery import write_gallery
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Answer
from pixel_sail.types import BadSample

SIZE = (40, 60)  # height, width


def box(left: int, top: int, width: int = 10, height: int = 10):
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return encode_mask(mask)


@pytest.fixture(autouse=True)
def caption_calls(monkeypatch) -> list:
    """Caption scores start Java, and are tested in test_perbench.py: here only their arguments."""
    calls: list = []

    def record(predictions, references, names):
        calls.append((predictions, references))
        return dict.fromkeys(names)

    monkeypatch.setattr(gcg, "caption_scores", record)
    return calls


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images with two phrases and one phrase."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (SIZE[1], SIZE[0]), "grey").save(tmp_path / "images" / name)
    common = {"height": SIZE[0], "width": SIZE[1]}
    first = {
        "a red mug": {"token_positives": [0, 9], "rle_masks": [box(0, 0)]},
        "two blue balls": {"token_positives": [15, 29], "rle_masks": [box(20, 0), box(40, 0)]},
    }
    second = {"A kite": {"token_positives": [0, 6], "rle_masks": [box(0, 20)]}}
    entries = [
        common | {"file_name": "a.png", "caption": "A red mug with two blue balls.", "groundings": first},
        common | {"file_name": "b.png", "caption": "A kite in the sky.", "groundings": second},
    ]
    folder = tmp_path / "GranDf/annotations/train"
    folder.mkdir(parents=True)
    (folder / "OpenPsgGCG_val.json").write_text(json.dumps(entries))
    return tmp_path


def write_lines(path: Path, lines: list[dict]) -> Path:
    write_json_lines(path, lines)
    return path


def line(number: int, text: str, *masks) -> dict:
    return {"id": f"open_psg/val/{number}", "text": text, "segmentations": list(masks)}


def score(root: Path, tmp_path: Path, *lines: dict) -> dict:
    return runner.score_file(write_lines(tmp_path / "p.jsonl", list(lines)), "gcg:open_psg", root)


RIGHT = "<p> A red mug </p> [SEG] with <p> two blue balls </p> [SEG]."


def test_perfect_captions(root: Path, tmp_path: Path) -> None:
    both = encode_mask(decode_mask(box(20, 0)) | decode_mask(box(40, 0)))
    perfect = [line(0, RIGHT, box(0, 0), both), line(1, "<p> A kite </p> [SEG] in the sky.", box(0, 20))]
    scores = score(root, tmp_path, *perfect)
    assert scores["recall"] == scores["mask_recall"] == scores["miou"] == 100
    assert scores["ap50"] == pytest.approx(100)
    assert (scores["cases"], scores["phrases"], scores["masks"]) == (2, 3, 3)
    # a mask each for the balls, which are one phrase: united
    apart = line(0, "<p>a red mug</p> [SEG], <p>two blue balls</p> [SEG] and [SEG]", *map(box, (0, 20, 40), (0, 0, 0)))
    assert score(root, tmp_path, apart, perfect[1])["recall"] == 100


def test_recall_by_hand(root: Path, tmp_path: Path) -> None:
    """Three phrases: right mask and words; right mask, wrong words; right words, IoU 1/3."""
    first = line(0, "<p> the red mug </p> [SEG] <p> a zebra </p> [SEG]", box(0, 0), box(20, 0, 20))
    second = line(1, "<p> a kite </p> [SEG]", box(5, 20))
    scores = score(root, tmp_path, first, second)
    # box(20, 0, 20) shares 100 of 300 pixels with the balls, box(5, 20) 50 of 150 with the kite
    assert scores["recall"] == scores["mask_recall"] == pytest.approx(100 / 3)
    assert scores["miou"] == pytest.approx(100 * ((1 + 1 / 3) / 2 + 1 / 3) / 2)
    first["segmentations"][1] = encode_mask(decode_mask(box(20, 0)) | decode_mask(box(40, 0)))
    second["segmentations"] = [box(0, 20, 10, 20)]  # IoU exactly 0.5 counts
    scores = score(root, tmp_path, first, second)
    assert scores["mask_recall"] == pytest.approx(100) and scores["recall"] == pytest.approx(200 / 3)
    nothing = score(root, tmp_path, line(0, "A mug."), line(1, ""))
    assert (nothing["recall"], nothing["ap50"], nothing["miou"], nothing["masks"]) == (0, 0, 0, 0)


def test_ap50_by_hand(root: Path, tmp_path: Path) -> None:
    """All scores are equal, so the order is that of the file: right, wrong, right of 3 masks. Precision 1, 1/2, 2/3.

    Interpolated: 1 up to recall 1/3, 2/3 up to 2/3, 0 beyond; at the 101 recalls 0, 0.01, ...: 34 and 33 of them.
    """
    first = line(0, "[SEG] <p> b </p> [SEG]", box(0, 0), box(50, 30))
    scores = score(root, tmp_path, first, line(1, "[SEG]", box(0, 20)))
    assert scores["ap50"] == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)
    assert scores["mask_recall"] == pytest.approx(200 / 3) and scores["recall"] == 0  # masks without words
    twice = line(0, "[SEG] <p> b </p> [SEG]", box(0, 0), box(0, 0))  # the same mask again is wrong
    assert score(root, tmp_path, twice, line(1, "[SEG]", box(0, 20)))["ap50"] == scores["ap50"]
    half = box(0, 20, 10, 20)  # IoU 0.5 is right, 1/3 is wrong
    assert score(root, tmp_path, twice, line(1, "[SEG]", half))["ap50"] == scores["ap50"]
    assert score(root, tmp_path, twice, line(1, "[SEG]", box(5, 20)))["ap50"] == pytest.approx(100 * 34 / 101)


def test_pairs_are_greedy_and_one_to_one() -> None:
    iou = np.array([[0.9, 0.8, 0.0], [0.85, 0.0, 0.3]])
    assert gcg.greedy_pairs(iou, 0.5) == [(0, 0)]
    assert gcg.greedy_pairs(iou, 0) == [(0, 0), (1, 2)]
    assert gcg.greedy_pairs(np.zeros((2, 0)), 0) == [] == gcg.greedy_pairs(np.zeros((2, 2)), 0)


def test_similar_words() -> None:
    same = [("the red mug", "A RED mug."), ("two balls", "two balls")]
    assert [gcg.similarity(*pair) for pair in same] == pytest.approx([1, 1])
    assert gcg.similarity("a red mug", "a mug") == pytest.approx(0.5**0.5)
    assert gcg.similarity("red mug", "blue mug") == pytest.approx(0.5)
    assert gcg.similarity("a", "the") == gcg.similarity("mug", "kite") == gcg.similarity("", "mug") == 0


def test_the_masks_of_a_phrase_and_the_plain_caption() -> None:
    a, b, c = box(0, 0), box(20, 0), box(40, 0)
    text = "[SEG] lies <p> by a mug </p> [SEG], [SEG]; <p> red </p> and <p> kite"
    (before, mug) = gcg.grounded_phrases(text, [a, b, c])
    assert before == ("", a) and mug[0] == "by a mug"
    assert np.array_equal(decode_mask(mug[1]), decode_mask(b) | decode_mask(c))
    assert gcg.grounded_phrases("<p> a mug [SEG] </p>", [a]) == [("a mug", a)]
    assert gcg.plain_caption(f"{RIGHT} Yes [SEG] !") == "A red mug with two blue balls. Yes!"


def test_lines_that_cannot_be_scored(root: Path, tmp_path: Path) -> None:
    good = line(1, "")
    for bad, message in (
        (line(0, "[SEG]"), r"id open_psg/val/0: the text has 1 \[SEG\], and segmentations: 0; one RLE for each"),
        (line(0, "[SEG]", box(0, 0) | {"size": [3, 4]}), r"segmentation 0: the mask is of size \[3, 4\]"),
        (line(0, "") | {"text": None}, "the text is None"),
        (line(0, "") | {"segmentations": None}, "segmentations is None, expected a list with an RLE for each"),
    ):
        with pytest.raises(BadSample, match=message):
            score(root, tmp_path, bad, good)
    with pytest.raises(DatasetError, match="1 of the 2 cases of gcg:open_psg:val are missing"):
        score(root, tmp_path, good)
    with pytest.raises(DatasetError, match="a line is a JSON object with id, text, segmentations"):
        score(root, tmp_path, {"id": "open_psg/val/0", "text": ""})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gcg:coco", "unknown benchmark gcg:coco; the datasets are grand_f, open_psg, refcocog_gcg, flickr_gcg"),
        ("gcg", "no file .*GranDf/annotations/val_test/val_gcg_coco_caption_gt.json"),
        ("gcg:refcocog_gcg:test", "refcocog_gcg has the splits train, val, got 'test'"),
        ("reasonseg", "no folder .*reason_seg/ReasonSeg/val"),
        (
            "gcgs",
            r"unknown benchmark 'gcgs'; known are refcoco.*, gcg\[:DATASET\[:SPLIT\]\], "
            r"reasonseg\[:SPLIT\], concepts\[:SPLIT\], pixmmvp",
        ),
        ("pixmmvp:val", r"unknown benchmark pixmmvp:val; known are pixmmvp\[:own\], pixcvbench\[:own\]"),
    ],
)
def test_unknown_benchmarks(root: Path, name: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        runner.open_benchmark(name, root)


class Prepared:
    """Gives prepared answers, and records the questions."""

    sampling = Sampling()

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.questions = list(answers), []
        self.model = SimpleNamespace(config=SimpleNamespace(hide="none"))

    def chat_many(self, chats, sampling) -> list[list[Answer]]:
        self.questions += [chat.questions for chat in chats]
        return [[self.answers.pop(0)] for _ in chats]

    def chat(self, image, questions) -> list[Answer]:
        self.questions += [questions]
        return [self.answers.pop(0)]

    def segment(self, image, expressions) -> list[Answer]:
        self.questions += [("segment", *expressions)]
        return [self.answers.pop(0)]


def test_one_question_an_image(root: Path, tmp_path: Path) -> None:
    benchmark = runner.open_benchmark("gcg:open_psg:val", root)
    both = decode_mask(box(20, 0)) | decode_mask(box(40, 0))
    predictor = Prepared(Answer(RIGHT, [decode_mask(box(0, 0)), both]), Answer("Nothing.", []))
    scores = runner.run_benchmark(predictor, benchmark, tmp_path / "out", {"checkpoint": "a"})
    assert predictor.questions == [[GROUNDED_CAPTION[0]]] * 2
    assert scores["recall"] == pytest.approx(200 / 3) and scores["cases"] == 2
    lines = read_lines(tmp_path / "out/predictions/gcg_open_psg_val.jsonl", benchmark)
    assert runner.score_file(write_lines(tmp_path / "p", lines), "gcg:open_psg:val", root) == scores
    page = np.asarray(Image.open(write_gallery(benchmark, tmp_path / "out", 2)))
    coloured = np.ptp(page.astype(int), axis=-1) > 60
    assert 0.01 < coloured.mean() < 0.2  # two masks on the first of two grey images


def test_captions_are_scored_without_their_tags(root: Path, tmp_path: Path, caption_calls: list) -> None:
    scores = score(root, tmp_path, line(0, RIGHT, box(0, 0), box(20, 0)), line(1, "A <p>dog</p> [SEG] .", box(0, 20)))
    assert caption_calls == [
        (["A red mug with two blue balls.", "A dog."], [["A red mug with two blue balls."], ["A kite in the sky."]])
    ]
    assert scores["meteor"] is None is scores["cider"]


# --- ReasonSeg ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reasons(tmp_path: Path) -> Path:
    """A sentence with an ignored part, and a phrase."""
    folder = tmp_path / "reason_seg/ReasonSeg/val"
    folder.mkdir(parents=True)

    def write(name: str, text: str, sentence: bool, **shapes) -> None:
        Image.new("RGB", (SIZE[1], SIZE[0]), "grey").save(folder / f"{name}.jpg")
        polygons = [{"label": label, "points": points} for label, points in shapes.items()]
        values = {"text": [text, "not asked"], "is_sentence": sentence, "shapes": polygons}
        (folder / f"{name}.json").write_text(json.dumps(values))

    write("a", "Who?", True, target=[[0, 0], [19, 0], [19, 9], [0, 9]], ignore=[[10, 0], [19, 0], [19, 9], [10, 9]])
    write("b", "the mug", False, target=[[0, 20], [9, 20], [9, 29], [0, 29]])
    return tmp_path


def test_reason_seg_by_hand(reasons: Path, tmp_path: Path) -> None:
    """The target of the first is box(0, 0); the prediction in its right half is ignored."""
    first = {"id": "a", "segmentation": box(5, 0, 25)}  # 5 right columns, 10 ignored, 10 wrong: 50 of 200 pixels
    second = {"id": "b", "segmentation": box(0, 20, 10, 5)}  # 50 of 100
    scores = runner.score_file(write_lines(tmp_path / "p", [first, second]), "reasonseg", reasons)
    assert scores["giou"] == pytest.approx(100 * (0.25 + 0.5) / 2)
    assert scores["ciou"] == pytest.approx(100 * (50 + 50) / (200 + 100)) and scores["cases"] == 2
    assert {name: scores[name] for name in scores if name.startswith(("short", "long"))} == {
        "short_giou": pytest.approx(50),
        "short_ciou": pytest.approx(50),
        "short_cases": 1,
        "long_giou": pytest.approx(25),
        "long_ciou": pytest.approx(25),
        "long_cases": 1,
    }
    lines = [{"id": "a", "segmentation": box(0, 0, 20)}, {"id": "b", "segmentation": None}]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "reasonseg:val", reasons)
    assert scores["giou"] == 50 and scores["ciou"] == 50


def test_a_benchmark_of_0_cases_is_an_error_with_the_first_reason(reasons: Path) -> None:
    for path in (reasons / "reason_seg/ReasonSeg/val").glob("*.json"):
        values = json.loads(path.read_text())
        target = {"label": "target", "points": [[-9, -9], [-5, -9], [-5, -5]]}
        path.write_text(json.dumps(values | {"shapes": [target]}))
    with pytest.raises(DatasetError, match="reasonseg:val has no case .*; first: reason_seg/val/a: no pixel"):
        runner.open_benchmark("reasonseg:val", reasons)


def test_sentences_are_asked_and_phrases_segmented(reasons: Path, tmp_path: Path) -> None:
    benchmark = runner.open_benchmark("reasonseg:val", reasons)
    right = Answer("[SEG]", [decode_mask(box(0, 0))]), Answer("[SEG]", [decode_mask(box(0, 20))])
    predictor = Prepared(*right)
    scores = runner.run_benchmark(predictor, benchmark, tmp_path / "out", {"checkpoint": "a"})
    assert predictor.questions == [["Who? Please answer with a segmentation mask."], ("segment", "the mug")]
    assert scores["giou"] == scores["pr@0.9"] == 100
    write_gallery(benchmark, tmp_path / "out", 2)
