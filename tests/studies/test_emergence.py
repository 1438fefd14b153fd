"""When grounding emerges: the best phrase, its place and its concept; and the tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from in_process import call_main, load_tool
from needs_spacy import needs_spacy
from PIL import Image

from pixel_sail.architecture import Architecture
from pixel_sail.config import REPOSITORY, ModelSection
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import encode_mask
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.studies.emergence.best_phrase import Answer, Phrase, best_phrase, bin_of, read_answers, summarize, table
from pixel_sail.studies.emergence.concepts import CONCEPTS, concept_of, neighbours
from pixel_sail.studies.emergence.figures import marked
from pixel_sail.types import RLE, BadSample
from pixel_sail.weights.convert.scratch import from_scratch

SIZE = (8, 10)  # height, width


def columns(first: int, end: int) -> RLE:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, first:end] = True
    return encode_mask(mask)


def target(index: int, mask: RLE | None = None) -> PixObject:
    image = Path(f"{index}.jpg")
    return PixObject(index, image, SIZE, "the mug", mask, "Open?", ("Yes", "No"), "a", (index - 1) // 2)


def phrase(text: str, first: int, end: int, *masks: RLE) -> Phrase:
    return Phrase(text, (first, end), (2.5, 3.5), masks)


OBJECT = columns(0, 4)
OUTPUT = "A red mug is on the table, and its handle is to the left of the box."


def answer(index: int, *phrases: Phrase) -> Answer:
    return Answer(index, "Describe.", OUTPUT, 20, phrases)


def test_the_best_phrase_by_hand() -> None:
    """IoU 2/4 of the first phrase, 4/5 of the second mask of the second, and 4/5 of the third, which comes later."""
    phrases = answer(
        1,
        phrase("A red mug", 0, 3, columns(0, 2)),
        phrase("its handle", 9, 11, columns(5, 9), columns(0, 5)),
        phrase("the box", 17, 19, columns(0, 5)),
    )
    best = best_phrase(phrases, target(1, OBJECT))
    assert (best.phrase, best.tokens, best.mask) == ("its handle", (9, 11), columns(0, 5))
    assert best.iou == pytest.approx(0.8) and best.place == pytest.approx(0.5) and best.bin == 5
    assert best.concept == "part"
    assert marked(best) == "A red mug is on the table, and »its handle« is to the left of the box."


def test_counts_by_hand() -> None:
    """Right means above 0.5, not equal to it. For chance, each phrase with a mask counts by its share of its image."""
    objects = {i: target(i, None if i == 3 else OBJECT) for i in range(1, 6)}
    answers = [
        answer(1, phrase("A red mug", 0, 3, columns(0, 5)), phrase("the table", 5, 7, columns(8, 9))),
        answer(
            2, phrase("A red mug", 0, 3, columns(0, 2)), phrase("the box", 17, 19, columns(9, 10)), phrase("it", 4, 5)
        ),
        answer(3, phrase("A red mug", 0, 3, columns(0, 5))),  # the object is absent
        answer(4, phrase("its handle", 9, 11)),  # no mask
        answer(5, phrase("the box", 17, 19, OBJECT)),
    ]
    results = summarize(answers, objects)
    assert (results.images, results.right, results.absent, results.speechless) == (3, 2, (3,), (4,))
    assert results.miou == pytest.approx(100 * (0.8 + 0.5 + 1) / 3)
    assert results.places["best"] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert results.places["right"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert results.places["chance"] == [1, 0, 0, 0.5, 0, 0, 0, 0, 0, 1.5]
    assert results.concepts["best"] == dict.fromkeys(CONCEPTS, 0) | {"appearance": 2, "object": 1}
    assert results.concepts["chance"] == dict.fromkeys(CONCEPTS, 0) | {"appearance": 1, "context": 0.5, "object": 1.5}
    assert "3 images, mIoU of the best phrases 76.7, 2 right; left out: 1 without an object, 1" in table(results)


def test_bins_are_tenths_of_the_output() -> None:
    """In exact fractions, for every run of tokens of outputs of up to 41 tokens."""
    for tokens in (1, 2, 3, 7, 10, 20, 30, 41):
        for first in range(tokens):
            for end in range(first + 1, tokens + 1):
                middle = Fraction(first + end, 2) / tokens
                output = Answer(1, "", "", tokens, ())
                assert bin_of(phrase("x", first, end), output) == int(10 * middle) in range(10)


@pytest.mark.parametrize(
    ("text", "output", "concept"),
    [
        ("the red mug", "", "appearance"),
        ("a yellow color", "", "appearance"),
        ("the mug", "The mug is striped.", "appearance"),
        ("the cat with white fur", "", "appearance"),
        ("the left", "It is on the left.", "location"),
        ("the mug", "I see the mug on the left of the table.", "location"),
        ("the left side", "on the left side of the image", "location"),
        ("the left side", "on the left side of the mug", "part"),
        ("the butterfly's wings", "", "part"),
        ("the dog's left side", "", "part"),
        ("the window on the school bus", "", "part"),
        ("the window", "", "object"),
        ("the leaf", "", "object"),
        ("the leaf", "the leaf of the flower", "part"),
        ("the grassy background", "", "context"),
        ("the table", "A red mug is on the table", "context"),
        ("the open door", "", "state"),
        ("a dog", "There is a dog sleeping.", "state"),
        ("a standing position", "", "location"),
        ("the dog", "The dog, and a red car.", "object"),  # another clause
        ("the dog", "The dog and the red car.", "object"),  # another noun
        ("the dog", "nothing about it", "object"),
        ("THE Dog", "the dog is SLEEPING", "state"),
        ("!", "!", "object"),
        ("", "", "object"),
    ],
)
def test_concepts(text: str, output: str, concept: str) -> None:
    assert concept_of(text, output) == concept


def test_of_two_occurrences_the_nearer_counts() -> None:
    output = "The mug is red. There is a box, and a lamp; the mug on the left."
    assert neighbours("the mug", output, 0.0) == ["is", "red"] and neighbours("the mug", output, 0.9)[0] == "on"
    assert concept_of("the mug", output, 0.0) == "appearance" and concept_of("the mug", output, 0.9) == "location"
    assert neighbours("mug", "mugs and a smug mug today") == ["today"]  # whole words


def write(folder: Path, *lines: dict) -> Path:
    path = folder / "phrases.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(index: int, **changes) -> dict:
    mug = {"text": "A red mug", "tokens": [0, 3], "point_xy": [2.5, 3.5], "masks": [OBJECT], "scores": [0.5]}
    values = {"index": index, "image": f"{index}.jpg", "prompt": "Describe.", "output": OUTPUT, "tokens": 20}
    return values | {"phrases": [mug | changes]}


def test_reading_phrases_and_invalid_lines(tmp_path: Path) -> None:
    objects = {1: target(1, OBJECT)}
    file, expected = write(tmp_path, line(1)), [answer(1, phrase("A red mug", 0, 3, OBJECT))]
    assert read_answers(file, objects) == expected
    with file.open("a") as torn:
        torn.write('{"index": 2, "ima')  # attend_segment.py was killed while writing
    assert read_answers(file, objects) == expected
    for lines, message in (
        ([line(1), line(1)], "line 2: image 1 is in the file twice"),
        ([line(7)], "line 1: image 7 is not in the benchmark"),
        ([line(1, tokens=[18, 21])], "'A red mug' has tokens 18 to 21 of 20"),
        ([line(1, tokens=[3, 3])], "tokens 3 to 3"),
        ([line(1) | {"tokens": 1e300}], "'A red mug' has tokens 0 to 3 of 1e.300"),
        ([{"index": 1}], "is not an answer with phrases"),
    ):
        with pytest.raises(DatasetError, match=message):
            read_answers(write(tmp_path, *lines), objects)
    (tmp_path / "deep.jsonl").write_text("[" * 20_000 + "]" * 20_000 + "\n")
    with pytest.raises(DatasetError, match="line 1: .*nested too deep"):
        read_answers(tmp_path / "deep.jsonl", objects)
    with pytest.raises(BadSample, match="line 1: the text has half a character"):
        read_answers(write(tmp_path, line(1, text="A mug \ud83d")), objects)
    with pytest.raises(BadSample, match=r"the mask is of size \[3, 3\]"):
        read_answers(write(tmp_path, line(1, masks=[encode_mask(np.ones((3, 3), dtype=bool))])), objects)
    with pytest.raises(DatasetError, match=r"attend_segment.py writes it"):
        read_answers(tmp_path / "none.jsonl", objects)


def write_pixmmvp(root: Path) -> None:
    """Two images. The object is the left part of the first and absent from the second."""
    folder = root / "pixmmvp"
    (folder / "MMVP Images").mkdir(parents=True)
    rows = ["Index,Question,Options,Correct Answer", "1,Open?,(a) Yes (b) No,(a)", "2,Open?,(a) Yes (b) No,(b)"]
    (folder / "Questions.csv").write_text("\n".join(rows) + "\n")
    (folder / "Objects.csv").write_text("Index, Object\n1, the mug\n2, None\n")
    images = [{"id": i, "width": SIZE[1], "height": SIZE[0], "file_name": f"{i}.jpg"} for i in (1, 2)]
    polygon = [0, 0, 4, 0, 4, 8, 0, 8]
    annotations = [{"image_id": 1, "segmentation": [polygon], "id": 1}]
    (folder / "Segmentations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for i in (1, 2):
        Image.new("RGB", (SIZE[1], SIZE[0]), "gray").save(folder / "MMVP Images" / f"{i}.jpg")


def call(*arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, str(REPOSITORY / "tools/grounding_emergence.py"), *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=-1, stderr=-2, text=True, timeout=400
    )
    return done.returncode, done.stdout


def test_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pixmmvp(tmp_path / "data")
    file, out = write(tmp_path, line(1), line(2)), tmp_path / "out"
    status, printed = call("--phrases", file, "--data-root", tmp_path / "data", "--out", out)
    assert status == 0 and "1 images, mIoU of the best phrases 100.0, 1 right; left out: 1 without" in printed, printed
    results = json.loads((out / "emergence.json").read_text())
    (best,) = results["best"]
    assert (best["index"], best["phrase"], best["iou"], best["bin"], best["mask"]) == (1, "A red mug", 1.0, 0, OBJECT)
    assert results["places"]["best"] == [1] + 9 * [0] and results["absent"] == [2]
    examples = np.asarray(Image.open(out / "emergence_appearance.png"))
    assert len(np.unique(examples.reshape(-1, 3), axis=0)) > 10
    assert not (out / "emergence_part.png").exists()
    tool, file = load_tool("grounding_emergence"), write(tmp_path, line(9))
    with pytest.raises(SystemExit, match="^error: .*image 9 is not in the benchmark"):
        call_main(monkeypatch, tool, "--phrases", file, "--data-root", tmp_path / "data", "--out", out)
    pytest.importorskip("matplotlib")
    assert (out / "emergence.png").exists()


def test_what_the_tool_calls_attend_and_segment_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In this process, with a stand-in for tools/attend_segment.py that writes phrases; and one that fails."""
    write_pixmmvp(tmp_path / "data")
    tool = load_tool("grounding_emergence")
    work, commands = "pixel_sail.commands.work.grounding_emergence", []

    def run(command: list[str]) -> int:
        assert command[1:4] == ["-m", "pixel_sail", "attend-segment"]
        commands.append(command[4:])
        (tmp_path / "out/attend").mkdir(parents=True)
        write(tmp_path / "out/attend", line(1))
        return 0

    monkeypatch.setattr(f"{work}.run_tool", run)
    monkeypatch.setattr(f"{work}.require_spacy_model", lambda: "a model")
    options = ["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--family", "llava"]
    options += ["--segmenter", "sam:s", "--prompt", "What?", "--max-images", "2"]
    call_main(monkeypatch, tool, "m", *options)
    assert "1 images, mIoU of the best phrases 100.0" in capsys.readouterr().out
    (command,) = commands
    assert command[0] == "m" and dict(zip(command[1::2], command[2::2], strict=True)) == {
        "--family": "llava",
        "--segmenter": "sam:s",
        "--benchmark": "pixmmvp",
        "--data-root": str(tmp_path / "data"),
        "--out": str(tmp_path / "out/attend"),
        "--max-images": "2",
        "--prompt": "What?",
    }
    monkeypatch.setattr(f"{work}.run_tool", lambda command: 3)
    with pytest.raises(SystemExit) as stopped:
        call_main(monkeypatch, tool, "m", *options)
    assert stopped.value.code == 3


def test_without_spacy_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pixmmvp(tmp_path / "data")
    monkeypatch.setattr("pixel_sail.studies.attend_segment.phrases.spacy_model", lambda: None)
    tool, out = load_tool("grounding_emergence"), tmp_path / "out"
    with pytest.raises(SystemExit, match="^error: noun phrases need spaCy and an English model of it: pip install"):
        call_main(monkeypatch, tool, "m", "--data-root", tmp_path / "data", "--out", out)
    assert not out.exists()


@needs_spacy
def test_the_tool_runs_attend_and_segment_on_a_model(tmp_path: Path) -> None:
    """An untrained model says anything, but only about the first image, and the prompt is ours."""
    write_pixmmvp(tmp_path / "data")
    scratch = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_size": 64, "vocab_size": 300}
    section, architecture = ModelSection(scratch=scratch), Architecture(patch_size=4, max_side_px=32, mask_dim=16)
    model, tokenizer = from_scratch(section, architecture, ["the red mug is on the table"] * 9, "{expression}")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    arguments = ("--data-root", tmp_path / "data", "--out", tmp_path / "out", "--max-images", 1)
    status, printed = call(tmp_path / "model", *arguments, "--prompt", "Describe {expression}.")
    assert status == 0 and "left out: 0 without an object" in printed, printed
    (line,) = (tmp_path / "out/attend/phrases.jsonl").read_text().splitlines()
    assert (json.loads(line)["index"], json.loads(line)["prompt"]) == (1, "Describe the mug.")
    results = json.loads((tmp_path / "out/emergence.json").read_text())
    assert [best["index"] for best in results["best"]] + results["speechless"] == [1]
    status, printed = call(tmp_path / "nowhere", *arguments)
    assert status == 1 and "nowhere" in printed and "Traceback" not in printed
