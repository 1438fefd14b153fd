"""A file of the user's own, scored: which questions are cases, what they are asked with, and what their scores are."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.evaluate import runner
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Answer
from pixel_sail.types import BadSample

SIZE = (20, 30)


def box(x, y, width=5, height=4):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def rle(mask):
    return dict(encode_mask(mask))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE[::-1], "grey").save(folder / name)
    talks = [
        {"question": "The cup?", "answer": "[SEG]"},
        {"question": "Why?", "answer": "Because."},
        {"question": "What is near <Prompt3>?", "answer": "[SEG] and [SEG]."},
    ]
    masks = [rle(box(0, 0)), rle(box(10, 0)), rle(box(20, 0))]
    lines = [
        {"image": "a.png", "conversations": talks, "masks": masks, "regions": {"3": [1, 2]}},
        {"image": None, "conversations": [{"question": "Hello?", "answer": "Hello."}]},
        {"image": "b.png", "conversations": [{"question": "All?", "answer": "[SEG]"}], "masks": [rle(box(5, 5))]},
        {"image": "c.png", "conversations": [{"question": "All?", "answer": "[SEG]"}], "masks": [rle(box(5, 5))]},
        {"image": "b.png", "conversations": [{"question": "All?", "answer": "[SEG]"}], "masks": [rle(box(0, 0, 0))]},
    ]
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_cases(root):
    benchmark = runner.open_benchmark("jsonl:mine/val.jsonl", root)
    assert [(case.line, case.turn, case.question, list(case.prompts)) for case in benchmark.cases] == [
        (1, 0, "The cup?", []),
        (1, 2, "What is near <Prompt3>?", [3]),
        (3, 0, "All?", []),
    ]
    targets = [decode_mask(case.mask) for case in benchmark.cases]
    np.testing.assert_array_equal(targets[1], box(10, 0) | box(20, 0))
    assert benchmark.not_scored == 2  # "Why?" and "Hello?"
    first, second = benchmark.problems
    assert first.startswith(f"{root}/mine/val.jsonl:4: no image") and second.endswith(
        "val.jsonl:5: mask 0 has no pixel"
    )
    assert benchmark.name == "jsonl:mine/val.jsonl"
    assert runner.open_benchmark(f"jsonl:{root}/mine/val.jsonl", root / "elsewhere").cases == benchmark.cases


def test_scores(root):
    """IoU 1/2, 1/4 and none: by hand."""
    predictions = root / "predictions.jsonl"
    lines = [
        {"line": 1, "turn": 0, "segmentation": rle(box(0, 0, 10))},  # 20 of 40
        {"line": 1, "turn": 2, "segmentation": rle(box(10, 0, 2, 4) | box(20, 0, 1, 2))},  # 10 of 40
        {"line": 3, "turn": 0, "segmentation": None},  # 0 of 20
    ]
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = runner.score_file(predictions, "jsonl:mine/val.jsonl", root)
    assert scores["giou"] == pytest.approx(100 * (0.5 + 0.25 + 0) / 3)
    assert scores["ciou"] == pytest.approx(100 * (20 + 10) / (40 + 40 + 20))
    assert scores["pr@0.5"] == pytest.approx(100 / 3)
    assert (scores["cases"], scores["images"], scores["not_scored"], scores["unusable"]) == (3, 2, 2, 2)
    lines[0]["segmentation"] = rle(np.ones((3, 3), dtype=bool))
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadSample, match=r"line 1 turn 0: the mask is of size \[3, 3\], the image is \[20, 30\]"):
        runner.score_file(predictions, "jsonl:mine/val.jsonl", root)


def test_a_question_is_asked_alone_with_the_regions_that_it_names(root):
    asked = []

    def chat_many(chats, sampling):
        asked.extend((list(chat.questions), {k: mask.sum() for k, mask in chat.regions.items()}) for chat in chats)
        return [[Answer("[SEG][SEG]", [box(0, 0), box(10, 0)]) for _ in chat.questions] for chat in chats]

    benchmark = runner.open_benchmark("jsonl:mine/val.jsonl", root)
    lines = benchmark.predict(SimpleNamespace(chat_many=chat_many, sampling=Sampling()), benchmark.cases)
    assert asked == [(["The cup?"], {}), (["What is near <Prompt3>?"], {3: 1}), (["All?"], {})]
    assert [(line["line"], line["turn"]) for line in lines] == [(1, 0), (1, 2), (3, 0)]
    np.testing.assert_array_equal(decode_mask(lines[0]["segmentation"]), box(0, 0) | box(10, 0))
    result = benchmark.result(benchmark.cases[1], lines[1])
    assert result.overlap.target_px == 40 and result.groups["question"] == "relation"


def test_what_cannot_be_scored_is_refused(root):
    with pytest.raises(DatasetError, match=r"no file .*/nowhere.jsonl or nowhere.jsonl"):
        runner.open_benchmark("jsonl:nowhere.jsonl", root)
    with pytest.raises(DatasetError, match="write jsonl:FILE, for example"):
        runner.open_benchmark("jsonl", root)
    talk = {"image": None, "conversations": [{"question": "Hello?", "answer": "Hello."}]}
    (root / "talk.jsonl").write_text(json.dumps(talk))
    with pytest.raises(DatasetError, match=r"has nothing to score: 1 questions have no \[SEG\] in their answers$"):
        runner.open_benchmark("jsonl:talk.jsonl", root)


def test_a_question_about_several_images(root):
    """Asked with all of them; its masks and its case are on the one that the file says."""
    Image.new("RGB", (8, 6), "grey").save(root / "mine/small.png")
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:3, 2:5] = True
    pair = {
        "images": ["a.png", "small.png"],
        "conversations": [{"question": "<Prompt0> there?", "answer": "[SEG]"}],
        "regions": {"0": rle(box(0, 0))},
        "region_images": {"0": 0},
        "masks": [rle(mask)],
        "mask_images": [1],
    }
    both = pair | {"masks": [rle(mask), rle(box(1, 1))], "mask_images": [1, 0]}
    both["conversations"] = [{"question": "<Prompt0> in both?", "answer": "[SEG] [SEG]"}]
    (root / "mine/pairs.jsonl").write_text("\n".join(map(json.dumps, [pair, both])))
    benchmark = runner.open_benchmark("jsonl:mine/pairs.jsonl", root)
    (case,) = benchmark.cases
    assert case.image == root / "mine/small.png" and case.size_hw == (6, 8)
    assert benchmark.problems == (
        f"{root}/mine/pairs.jsonl:2: conversation 0 has masks on several images; one can be scored",
    )
    asked = []

    def chat_many(chats, sampling):
        asked.extend(chats)
        return [[Answer("[SEG]", [mask])] for _ in chats]

    (line,) = benchmark.predict(SimpleNamespace(chat_many=chat_many, sampling=Sampling()), [case])
    (chat,) = asked
    assert [image.size for image in chat.image] == [SIZE[::-1], (8, 6)] and chat.masks_on == 1
    assert np.array_equal(chat.regions[0], box(0, 0))
    assert benchmark.score([line])["giou"] == 100
    assert benchmark.result(case, line).prompts == {}  # the region is on the other image
