"""GroundingSuite-Eval, Ref-L4, DLC-Bench and GAR-Bench: files as published are read, and scores are those of another
computation, on pixels and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from warm import run_tool

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import write_json_lines
from pixel_sail.errors import UserError
from pixel_sail.evaluate import rows, runner
from pixel_sail.evaluate.benchmark import Options
from pixel_sail.evaluate.dlc_bench import choice_of
from pixel_sail.evaluate.kinds import tasks_of
from pixel_sail.evaluate.pixfoundation.judge import Judge
from pixel_sail.evaluate.ref_l4 import CLASSES
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Answer, Chat
from pixel_sail.types import BadSample

HEIGHT, WIDTH = 30, 40
GRANULARITIES = {1: "stuff", 2: "part", 3: "multi", 4: "single"}


def rle(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def region(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def pictures(folder: Path, *names: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (size[1], size[0]), "grey").save(folder / name)


def score(root: Path, name: str, lines: list[dict[str, Any]], options: Options | None = None) -> dict[str, Any]:
    write_json_lines(root / "mine.jsonl", lines)
    return runner.score_file(root / "mine.jsonl", name, root, options=options)


# --- GroundingSuite-Eval --------------------------------------------------------------------------------------------


def gseval_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """13 rows of two images; none has several objects."""
    masks = [rng.random((HEIGHT, WIDTH)) < rng.choice([0.02, 0.5]) for _ in range(13)]
    rows = []
    for idx, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        box = [x.min() + 0.25, y.min() + 0.25, x.max() + 0.75, y.max() + 0.75]  # as in the file: half a pixel inside
        row = {"idx": idx, "image_path": f"unlabeled2017/{idx % 2}.jpg", "class_id": (1, 2, 4)[idx % 3]}
        row |= {"label": "x", "caption": f"The thing {idx}.", "box": [float(v) for v in box], "segmentation": rle(mask)}
        rows.append(row)
    return rows


@pytest.fixture
def gseval(tmp_path: Path) -> Path:
    pictures(tmp_path / "gseval/unlabeled2017", "0.jpg", "1.jpg")
    write_json_lines(tmp_path / "gseval/GroundingSuite-Eval.jsonl", gseval_rows(np.random.default_rng(0)))
    return tmp_path


def area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def test_gseval_is_the_mean_iou_of_pixels_and_of_boxes(gseval: Path) -> None:
    rng, truths = np.random.default_rng(1), gseval_rows(np.random.default_rng(0))
    lines, ious, hits = [], [], []
    for row in truths:
        truth = coco_mask.decode(row["segmentation"]).astype(bool)
        predicted = truth ^ (rng.random(truth.shape) < 0.2) if row["idx"] % 4 else None
        lines.append({"idx": row["idx"], "segmentation": None if predicted is None else rle(predicted)})
        if predicted is None:
            ious.append(0.0), hits.append(False)
            continue
        ious.append((truth & predicted).sum() / (truth | predicted).sum())
        y, x = np.nonzero(predicted)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        corners = np.array([row["box"], box])
        low, high = corners[:, :2].max(axis=0), corners[:, 2:].min(axis=0)
        common = np.prod(np.clip(high - low, 0, None))
        hits.append(common / (area(row["box"]) + area(box) - common) >= 0.5)
    scores = score(gseval, "gseval", lines[::-1])
    assert scores["giou"] == pytest.approx(100 * np.mean(ious)) and 10 < scores["giou"] < 90
    assert scores["acc@0.5"] == pytest.approx(100 * np.mean(hits)) and 0 < scores["acc@0.5"] < 100
    for class_id, name in GRANULARITIES.items():
        own = [k for k, row in enumerate(truths) if row["class_id"] == class_id]
        assert scores[f"{name}_cases"] == len(own)
        assert scores[f"{name}_giou"] == (pytest.approx(100 * np.mean([ious[k] for k in own])) if own else None)
        assert scores[f"{name}_acc@0.5"] == (pytest.approx(100 * np.mean([hits[k] for k in own])) if own else None)
    assert scores["cases"] == 13 and "unusable" not in scores


def test_gseval_boxes_of_any_model(gseval: Path) -> None:
    truths = gseval_rows(np.random.default_rng(0))
    lines: list[dict[str, Any]] = [{"idx": row["idx"], "box": row["box"]} for row in truths]
    assert score(gseval, "gseval:box", lines)["acc@0.5"] == 100
    left, top, right, bottom = truths[0]["box"]
    lines[0]["box"] = [left, top, left + (right - left) / 2, bottom]  # half of it: an IoU of 0.5 is right
    lines[1]["box"] = None
    lines[2]["box"] = [truths[2]["box"][k] for k in (2, 3, 0, 1)]  # upside down
    assert score(gseval, "gseval:box", lines)["acc@0.5"] == pytest.approx(100 * 11 / 13)
    lines[3]["box"] = [0, 0, float("nan"), 1]
    with pytest.raises(BadSample, match="idx 3: .* is no box; expected four finite numbers"):
        score(gseval, "gseval:box", lines)
    with pytest.raises(DatasetError, match="is no prediction .*idx, segmentation"):
        score(gseval, "gseval", lines)


def test_gseval_cases_of_an_image_are_asked_together(gseval: Path) -> None:
    asked = []

    class Fake:
        def segment(self, image: Image.Image, captions: list[str]) -> list[Answer]:
            asked.append(len(captions))
            return [Answer("It is [SEG] and [SEG].", [region(1, 2, 4, 6), region(7, 2, 8, 5)]) for _ in captions]

    benchmark = runner.open_benchmark("gseval:box", gseval)
    lines = [line for call in runner.calls(benchmark) for line in benchmark.predict(Fake(), call)]
    assert sorted(asked) == [6, 7] and {tuple(line["box"]) for line in lines} == {(1, 2, 8, 6)}
    benchmark = runner.open_benchmark("gseval", gseval, max_images=1)
    (line, *_) = benchmark.predict(Fake(), runner.calls(benchmark)[0])
    assert coco_mask.area(line["segmentation"]) == 12 + 3 and len(benchmark.cases) == 7


# --- Ref-L4 ---------------------------------------------------------------------------------------------------------


def ref_l4_rows(split: str, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        side = int(rng.choice([20, 127, 128, 129, 200, 256, 257, 300]))
        x, y = (int(v) for v in rng.integers(0, 60, 2))
        category = ("o365_1", "refcoco_1", "o365_2", "refcoco_16")[number % 4]  # a person; 16 is a bird: o365_56
        row = {"id": number + (1000 if split == "test" else 0), "caption": f"the thing {number}", "split": split}
        row |= {"bbox": [float(x), float(y), float(side), float(side)], "bbox_area": float(side**2), "bbox_id": "b"}
        row |= {"ori_category_id": category, "image_id": "i", "height": 400, "width": 400, "is_rewrite": True}
        rows.append(row | {"file_name": f"{split}{number % 3}.jpg"})
    return rows


@pytest.fixture
def ref_l4(tmp_path: Path) -> Path:
    for split in ("val", "test"):
        pictures(tmp_path / "ref_l4/images", *(f"{split}{k}.jpg" for k in range(3)), size=(400, 400))
        write_json_lines(tmp_path / f"ref_l4/ref-l4-{split}.jsonl", ref_l4_rows(split, 24, np.random.default_rng(2)))
    return tmp_path


def test_ref_l4_is_that_of_boxes_drawn_as_pixels(ref_l4: Path) -> None:
    """The boxes have whole sides: their pixels are counted. Half of the predictions are xywh."""
    rng = np.random.default_rng(3)
    truths = [*ref_l4_rows("val", 24, np.random.default_rng(2)), *ref_l4_rows("test", 24, np.random.default_rng(2))]
    lines, ious = [], []
    for number, row in enumerate(truths):
        x, y, w, h = (int(side) for side in row["bbox"])
        dx, dy, dw, dh = (int(step) for step in rng.integers(0, max(1, w // int(rng.choice([3, 8, 30]))), 4))
        box = [x + dx, y + dy, x + w - dw // 2, y + h + dh]
        truth, predicted = region(x, y, x + w, y + h, (700, 700)), region(*box, (700, 700))
        ious.append(Fraction(int((truth & predicted).sum()), int((truth | predicted).sum())))
        xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        form = "xywh" if number % 2 else "xyxy"
        lines.append({"id": row["id"], "pred_bbox": xywh if number % 2 else box, "format": form})
    thresholds = [Fraction(5 * k, 100) for k in range(10, 20)]

    def percent(chosen: list[int]) -> tuple[float, float]:
        hits = np.array([[ious[k] > threshold for threshold in thresholds] for k in chosen])
        return 100 * hits[:, 0].mean(), 100 * hits.mean()

    scores = score(ref_l4, "ref_l4:all", lines)
    every = list(range(48))
    assert (scores["acc@0.5"], scores["macc"]) == pytest.approx(percent(every)) and 20 < scores["macc"] < 95
    assert scores["acc@0.75"] == pytest.approx(100 * np.mean([iou > Fraction(3, 4) for iou in ious]))
    assert scores["acc@0.9"] == pytest.approx(100 * np.mean([iou > Fraction(9, 10) for iou in ious]))
    sides = np.array([row["bbox"][2] for row in truths])
    parts = {"small": sides < 128, "medium": (sides >= 128) & (sides <= 256), "large": sides > 256}
    for name, inside in parts.items():
        own = np.flatnonzero(inside).tolist()
        assert (scores[f"{name}_acc@0.5"], scores[f"{name}_macc"]) == pytest.approx(percent(own))
        assert scores[f"{name}_cases"] == len(own) > 0
    people = [k for k in every if truths[k]["ori_category_id"] in ("o365_1", "refcoco_1")]
    classes = [people, [k for k in every if k % 4 == 2], [k for k in every if k % 4 == 3]]
    expected = np.mean([percent(own) for own in classes], axis=0)
    assert (scores["class_acc@0.5"], scores["class_macc"]) == pytest.approx(tuple(expected))
    assert scores["classes"] == 3 and len(CLASSES) == 80 and CLASSES["refcoco_16"] == "o365_56"


def test_ref_l4_needs_more_than_the_threshold_and_a_box(ref_l4: Path) -> None:
    rows = ref_l4_rows("val", 24, np.random.default_rng(2))
    lines: list[dict[str, Any]] = [{"id": row["id"], "pred_bbox": row["bbox"], "format": "xywh"} for row in rows]
    assert score(ref_l4, "ref_l4:val", lines)["macc"] == 100
    x, y, w, h = rows[0]["bbox"]
    lines[0]["pred_bbox"] = [x, y, w / 2, h]  # an IoU of 0.5 is not above 0.5
    lines[1]["pred_bbox"] = None
    scores = score(ref_l4, "ref_l4:val", lines)
    assert scores["acc@0.5"] == pytest.approx(100 * 22 / 24) and scores["cases"] == 24
    lines[2]["format"] = "cxcywh"
    with pytest.raises(BadSample, match="id 2: the format is 'cxcywh'; expected one of xyxy, xywh"):
        score(ref_l4, "ref_l4:val", lines)


def test_ref_l4_says_what_is_missing(ref_l4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.open_benchmark("ref_l4", ref_l4).name == "ref_l4:all"
    (ref_l4 / "ref_l4/images/val0.jpg").unlink()
    benchmark = runner.open_benchmark("ref_l4:val", ref_l4)
    assert len(benchmark.cases) == 16 and "ref-l4-val.jsonl, row 1: no image 'val0.jpg' in" in benchmark.problems[0]
    (ref_l4 / "ref_l4/images").rename(ref_l4 / "elsewhere")
    (ref_l4 / "ref_l4/images.tar.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"images.tar.gz is not unpacked: tar -xzf images.tar.gz -C images, in"):
        runner.open_benchmark("ref_l4:val", ref_l4)
    (ref_l4 / "ref_l4/ref-l4-val.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"no file .*ref-l4-val.parquet \(or .*ref-l4-val.jsonl, the same rows as"):
        runner.open_benchmark("ref_l4:val", ref_l4)
    (ref_l4 / "ref_l4/ref-l4-val.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"needs pyarrow: .*; or put its rows as JSON lines, ref-l4-val.jsonl, besi"):
        runner.open_benchmark("ref_l4:val", ref_l4)


def test_ref_l4_reads_parquet(ref_l4: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = runner.open_benchmark("ref_l4", ref_l4)
    for split in ("val", "test"):
        (ref_l4 / f"ref_l4/ref-l4-{split}.jsonl").unlink()
        table = pyarrow.Table.from_pylist(ref_l4_rows(split, 24, np.random.default_rng(2)))
        parquet.write_table(table, ref_l4 / f"ref_l4/ref-l4-{split}.parquet")
    assert runner.open_benchmark("ref_l4", ref_l4).cases == lines.cases
    (ref_l4 / "ref_l4/ref-l4-val.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"ref-l4-val.parquet cannot be read as parquet"):
        runner.open_benchmark("ref_l4", ref_l4)


# --- DLC-Bench ------------------------------------------------------------------------------------------------------

QA = {
    "7": [
        {"question": "Which colour?", "choices": [["red", 1], ["blue", -1], ["none", 0]], "type": "positive"},
        {"question": "Is it said to fly?", "choices": [["yes", -1], ["no", 1]], "type": "negative"},
        {"question": "How large?", "choices": [["large", 1], ["small", 0.5], ["none", 0]], "type": "positive"},
    ],
    "9": [{"question": "Which shape?", "choices": [["round", 1], ["square", -1]], "type": "positive"}],
    "8": [
        {"question": "Has it a handle?", "choices": [["yes", 1], ["no", 0]], "type": "positive"},
        {"question": "Is it said to be new?", "choices": [["yes", -1], ["no", 1]], "type": "negative"},
        {"question": "Is it said to be old?", "choices": [["yes", -0.5], ["no", 1]], "type": "negative"},
    ],
}
TEXTS = {"7": "<Prompt0>: a large red mug.", "8": "A spoon.", "9": "A thing."}


@pytest.fixture
def dlc(tmp_path: Path) -> Path:
    pictures(tmp_path / "dlc_bench/images", "a.jpg", "b.jpg")
    images = [
        {"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in ((1, "a.jpg"), (2, "b.jpg"))
    ]
    polygon = [[2.0, 2.0, 12.0, 2.0, 12.0, 9.0, 2.0, 9.0]]
    annotations = [
        {"id": k, "image_id": image, "category_id": 1, "segmentation": polygon, "area": 70.0, "iscrowd": 0}
        for k, image in ((7, 1), (8, 1), (9, 2), (10, 2))
    ]
    values = {
        "annotations": {"images": images, "annotations": annotations, "categories": []},
        "class_names": {"7": "mug", "8": "scissors", "9": "ball", "10": "unasked"},
        "qa": QA,
    }
    for name, content in values.items():
        (tmp_path / f"dlc_bench/{name}.json").write_text(json.dumps(content))
    return tmp_path


def judged(root: Path, name: str, answer: Callable[[str], str]) -> Options:
    """The replies of `answer` (of a request's prompt) to the requests of an earlier call, through files."""
    options = Options(requests=root / "requests.jsonl", replies=(root / "replies.jsonl",))
    requests = [json.loads(row) for row in (root / "requests.jsonl").read_text().splitlines()]
    write_json_lines(
        root / "replies.jsonl", ({"request": r["request"], "reply": answer(r["prompt"])} for r in requests)
    )
    return options


def dlc_lines(**texts: str) -> list[dict[str, Any]]:
    return [{"id": key, "text": text} for key, text in (TEXTS | texts).items()]


def test_dlc_scores_are_those_of_the_points_by_hand(dlc: Path) -> None:
    first = score(dlc, "dlc_bench", dlc_lines(), Options(requests=dlc / "requests.jsonl"))
    assert first["positive"] is first["negative"] is first["average"] is None and first["requests"] == 3 + 7
    assert "10 of 10 requests to a judge have no reply" in first["problems"]["average"]
    assert "the requests are in" in first["problems"]["average"]
    requests = [json.loads(row) for row in (dlc / "requests.jsonl").read_text().splitlines()]
    assert [r["request"].partition("#")[0] for r in requests[:5]] == [
        *(f"dlc_bench/7/{k}" for k in range(4)), "dlc_bench/8/0"
    ], "the regions of an image side by side"  # fmt: skip
    assert "\na large red mug.\n" in requests[0]["prompt"] and "'mug'" in requests[0]["prompt"]
    assert requests[1]["prompt"].endswith("Which colour?\nA. red\nB. blue\nC. none")
    assert requests[0]["image"].endswith("a.jpg") and coco_mask.area(requests[0]["regions"])[0] == 70

    said = {"'mug'": "Yes", "'scissors'": "no.", "'ball'": "A", "colour": "A. red", "fly": "B", "large?": "small"}
    said |= {"shape": "It is square", "handle": "yes", "new": "no", "old": "yes"}
    options = judged(dlc, "dlc_bench", lambda prompt: next(said[word] for word in said if word in prompt))
    scores = score(dlc, "dlc_bench", dlc_lines(), options)
    # 7: positive 1 and 0.5, negative 1; 9: positive -1; 8 is not recognized: min(0, 1), min(0, 1), min(0, -0.5)
    assert scores["positive"] == pytest.approx(100 * (0.75 - 1 + 0) / 3)
    assert scores["negative"] == pytest.approx(100 * (1 + (0 - 0.5) / 2) / 2), "9 has no negative question"
    assert scores["average"] == pytest.approx((scores["positive"] + scores["negative"]) / 2)
    assert (scores["recognized"], scores["unread"], scores["cases"]) == (2, 0, 3)

    other = score(dlc, "dlc_bench", dlc_lines(**{"9": "A ball."}), options)
    assert "2 of 10 requests to a judge have no reply, the first: dlc_bench/9/0#" in other["problems"]["positive"]


def test_dlc_by_a_judge_that_is_asked(dlc: Path) -> None:
    prompts = []

    def reply(prompt: str) -> str:
        prompts.append(prompt)
        return "A"

    for _ in range(2):
        asked = Judge("fake", reply, dlc / "verdicts.jsonl")
        scores = score(dlc, "dlc_bench", dlc_lines(), Options(judge=asked))
        assert scores["positive"] == 100 and scores["negative"] == pytest.approx(100 * (-1 - 0.75) / 2)
    assert len(prompts) == 10, "replies are kept"
    lost = Judge("other", lambda prompt: "Perhaps.", dlc / "verdicts.jsonl")
    with pytest.raises(DatasetError, match=r"the reply 'Perhaps.' to dlc_bench/7/0#\w+ is neither Yes nor No"):
        score(dlc, "dlc_bench", dlc_lines(), Options(judge=lost))


@pytest.mark.parametrize(
    ("reply", "choices", "index"),
    [
        (" Dark Red ", ("red", "dark red"), 1),
        ("b. dark red", ("red", "dark red"), 1),
        ("A", ("red", "blue"), 0),
        ("It is blue.", ("red", "blue"), 1),
        ("b. surely, not red but blue", ("red", "blue"), 1),
        ("a. surely, not red but blue", ("red", "blue"), 0),
        ("first red, then blue", ("blue", "red"), 0),
        ("it is dark red", ("dark", "dark red", "red"), 2),  # "red" begins last
        ("it is reddish", ("red", "reddish"), 1),  # both begin there: the longer one
        ("lue", ("blue", "a light blue", "red"), 1),  # a part of two: the longer one
        ("b\nbecause it is so", ("round", "square"), 1),
        ("no idea", ("round", "square"), None),
        ("", ("round", "square"), None),
        ("d. x", ("round", "square"), None),
    ],
)
def test_what_a_reply_chooses(reply: str, choices: tuple[str, ...], index: int | None) -> None:
    assert choice_of(reply, choices) == index


# --- GAR-Bench ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gar(tmp_path: Path) -> Path:
    pictures(tmp_path / "gar_bench/images", "vqa_0.png", "vqa_1.png")
    one, two = rle(region(1, 1, 9, 9)), rle(region(20, 5, 30, 15))
    colours = ["A. red", "B. dark red", "C. blue"]
    vqa = [
        {"image": f"images/vqa_{k % 2}.png", "mask_rles": [one], "question": "What colour is <Prompt0>?"}
        | {"choices": colours, "answer": "B", "type": "color"}
        for k in range(4)
    ]
    both = {"image": "images/vqa_1.png", "mask_rles": [one, two]}
    where = {"question": "Where is <Prompt1>, seen from <Prompt0>?", "choices": ["(A) left", "(B) right"]}
    vqa.append(both | where | {"answer": "B", "type": "relation"})
    simple = [both | {"question": "How are <Prompt0> and <Prompt1> related?", "answer": "holds"} for _ in range(3)]
    names = {"subject_name": "boy", "object_name": "kite", "predicate_name": "flying"}
    for name, values in (("VQA", vqa), ("Caption-Simple", simple), ("Caption-Detailed", [both | names])):
        (tmp_path / f"gar_bench/GAR-Bench-{name}.json").write_text(json.dumps(values))
    return tmp_path


def test_gar_questions_by_hand(gar: Path) -> None:
    texts = ["b", " B ", "It is dark red.", "red", "(B) right"]  # of the file's places 0 to 4
    scores = score(gar, "gar_bench:vqa", [{"id": k, "text": text} for k, text in enumerate(texts)])
    assert (scores["accuracy"], scores["accuracy_option"]) == (40, 80), "the authors count the letter alone"
    assert scores["by_type"] == {
        "color": {"accuracy": 50.0, "accuracy_option": 75.0, "cases": 4},
        "relation": {"accuracy": 0.0, "accuracy_option": 100.0, "cases": 1},
    }
    assert (scores["unparsed"], scores["cases"]) == (0, 5)
    assert tasks_of("gar_bench") == ("gar_bench:vqa", "gar_bench:simple", "gar_bench:detailed")


def test_gar_regions_are_those_that_the_question_names(gar: Path) -> None:
    chats: list[Chat] = []

    class Fake:
        sampling = Sampling()

        def chat_many(self, asked: list[Chat], sampling: Any) -> list[list[Answer]]:
            chats.extend(asked)
            return [[Answer("A", [])] for _ in asked]

    benchmark = runner.open_benchmark("gar_bench:vqa", gar)
    benchmark.predict(Fake(), [case for case in benchmark.cases if case.type == "relation"])
    (chat,) = chats
    assert chat.questions == ["Where is <Prompt1>, seen from <Prompt0>?\nA. left\nB. right"]
    assert {k: int(mask.sum()) for k, mask in chat.regions.items()} == {0: 64, 1: 100}


def test_gar_captions_are_counted_by_the_word_true(gar: Path) -> None:
    lines = [{"id": k, "text": f"caption {k}"} for k in range(3)]
    without = score(gar, "gar_bench:simple", lines, Options(requests=gar / "requests.jsonl"))
    assert without["accuracy"] is None and "3 of 3 requests" in without["problems"]["accuracy"]
    replies = {"caption 0": " True\n", "caption 1": "False", "caption 2": "It is True"}
    answer: Callable[[str], str] = lambda prompt: next(replies[text] for text in replies if text in prompt)  # noqa: E731
    scores = score(gar, "gar_bench:simple", lines, judged(gar, "gar_bench:simple", answer))
    assert (scores["accuracy"], scores["unread"], scores["cases"]) == (pytest.approx(100 / 3), 1, 3)
    score(gar, "gar_bench:detailed", [{"id": 0, "text": "A boy."}], Options(requests=gar / "requests.jsonl"))
    (request,) = (json.loads(row) for row in (gar / "requests.jsonl").read_text().splitlines())
    assert all(word in request["prompt"] for word in ("boy", "kite", "flying", "A boy."))
    assert len(request["regions"]) == 2 and runner.open_benchmark("gar_bench:detailed", gar).cases[
        0
    ].prompts.keys() == {0, 1}


def test_replies_that_are_none(gar: Path) -> None:
    lines = [{"id": k, "text": f"caption {k}"} for k in range(3)]
    options = Options(replies=(gar / "replies.jsonl",))
    for text, problem in (
        ('{"request": "a"}', "reply 1: expected an object with the texts 'request' and 'reply'"),
        ('["a", "b"]', "reply 1: expected an object"),
        (
            '{"request": "a", "reply": "x"}\n{"request": "a", "reply": "y"}',
            "reply 2: the request 'a' has two different",
        ),
        ("{", "line 1: '{' is not JSON"),
    ):
        (gar / "replies.jsonl").write_text(text)
        with pytest.raises(DatasetError, match=problem):
            score(gar, "gar_bench:simple", lines, options)


# --- all of them ----------------------------------------------------------------------------------------------------

BAD: list[tuple[str, str, tuple[Any, ...], Any, str]] = [
    ("gseval", "gseval/GroundingSuite-Eval.jsonl", (0, "class_id"), 5, "line 1: its 'class_id' is 5; known are"),
    ("gseval", "gseval/GroundingSuite-Eval.jsonl", (0, "box"), [1, 2, 3], "line 1: its 'box': "),
    ("gseval", "gseval/GroundingSuite-Eval.jsonl", (0, "segmentation", "counts"), "0", "the RLE is torn"),
    ("gseval", "gseval/GroundingSuite-Eval.jsonl", (0, "image_path"), "../../a.jpg", "leads out of the dataset"),
    ("gseval", "gseval/GroundingSuite-Eval.jsonl", (0, "caption"), 3, "its 'caption' is 3; expected str"),
    ("ref_l4:val", "ref_l4/ref-l4-val.jsonl", (0, "bbox"), [1, 2, 0, 4], "row 1: its 'bbox' is"),
    ("ref_l4:val", "ref_l4/ref-l4-val.jsonl", (0, "ori_category_id"), 7, "its 'ori_category_id' is 7"),
    ("ref_l4:val", "ref_l4/ref-l4-val.jsonl", (0, "height"), -1, "its 'height' is -1"),
    ("dlc_bench", "dlc_bench/qa.json", ("7", 0, "type"), "neutral", "qa.json, 7, question 0: its 'type' is 'neutral'"),
    ("dlc_bench", "dlc_bench/qa.json", ("7", 0, "choices", 0), ["red", "1"], "question 0: its 'choices' are"),
    ("dlc_bench", "dlc_bench/qa.json", ("9", 0, "type"), "negative", "qa.json, 9: it has no positive question"),
    ("dlc_bench", "dlc_bench/class_names.json", ("7",), "", "class_names.json: its '7' is empty"),
    ("dlc_bench", "dlc_bench/annotations.json", ("annotations", 0, "segmentation"), {}, "annotation 7 of image 1"),
    ("gar_bench:vqa", "gar_bench/GAR-Bench-VQA.json", (0, "choices"), ["red", "blue"], "VQA/0: its 'choices' are"),
    ("gar_bench:vqa", "gar_bench/GAR-Bench-VQA.json", (0, "answer"), "D", "its answer 'D' is not one of the options"),
    ("gar_bench:vqa", "gar_bench/GAR-Bench-VQA.json", (0, "mask_rles"), [], "it has 0 regions; expected 1 to 15"),
    ("gar_bench:vqa", "gar_bench/GAR-Bench-VQA.json", (0, "question"), "Of <Prompt1>?", r"names the regions \[1\]"),
]


@pytest.mark.parametrize(("name", "file", "path", "value", "problem"), BAD)
def test_what_cannot_be_used_is_left_out_and_named(
    request: pytest.FixtureRequest, name: str, file: str, path: tuple[Any, ...], value: Any, problem: str
) -> None:
    root = request.getfixturevalue(name.partition(":")[0].removesuffix("_bench"))
    before = len(runner.open_benchmark(name, root).cases)
    is_lines = file.endswith(".jsonl")
    text = (root / file).read_text()
    values = [json.loads(row) for row in text.splitlines()] if is_lines else json.loads(text)
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    (root / file).write_text("\n".join(map(json.dumps, values)) if is_lines else json.dumps(values))
    benchmark = runner.open_benchmark(name, root)
    assert len(benchmark.cases) == before - 1 and len(benchmark.problems) == 1
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(benchmark.problems[0])


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 10_000, "[1, {}]", '{"a": 1}'])
@pytest.mark.parametrize(("name", "file"), list(dict.fromkeys((name, file) for name, file, *_ in BAD)))
def test_files_of_another_kind(request: pytest.FixtureRequest, name: str, file: str, text: str) -> None:
    root = request.getfixturevalue(name.partition(":")[0].removesuffix("_bench"))
    (root / file).write_text(text)
    with pytest.raises(UserError) as error:
        runner.open_benchmark(name, root)
    assert len(str(error.value)) < 1000


def test_the_tool_writes_requests_and_takes_replies(gar: Path, dlc: Path) -> None:
    """`gar` and `dlc` are one folder."""
    write_json_lines(gar / "a.jsonl", dlc_lines())
    write_json_lines(gar / "b.jsonl", ({"id": k, "text": "x"} for k in range(3)))
    files = ("--predictions", gar / "a.jsonl", "--predictions", gar / "b.jsonl")
    names = ("--benchmark", "dlc_bench", "--benchmark", "gar_bench:simple")
    command = ("tools/test.py", *files, *names, "--data-root", gar, "--out", gar / "out")
    status, printed = run_tool(*command)
    assert status == 0 and "10 of 10 requests to a judge have no reply" in printed
    assert f"the requests are in {gar}/b.requests.jsonl" in printed
    for name in "ab":
        requests = [json.loads(row) for row in (gar / f"{name}.requests.jsonl").read_text().splitlines()]
        said = "Yes" if name == "a" else "True"
        write_json_lines(gar / f"{name}.replies.jsonl", ({"request": r["request"], "reply": said} for r in requests))
    replies = (part for name in "ab" for part in ("--judge-replies", gar / f"{name}.replies.jsonl"))
    status, printed = run_tool(*command, *replies)
    scores = json.loads((gar / "out/metrics.json").read_text())["benchmarks"]
    assert status == 0 and scores["gar_bench:simple"]["accuracy"] == 100 and scores["dlc_bench"]["recognized"] == 3
