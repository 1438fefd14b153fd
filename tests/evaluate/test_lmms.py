"""lmms-eval asks a checkpoint: its own evaluator, on a task of local files, gets what the Predictor answers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from tiny_export import save_export

from pixel_sail.errors import UserError
from pixel_sail.evaluate.lmms.request import one_image, sampling_of
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor

needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="needs lmms-eval: pip install 'pixel_sail[vqa]'"
)
QUESTIONS = ("What is number 0?", "Segment the red mug.", "ball", "Is it left of the mug, or is there none?")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function asked.visual
doc_to_text: !function asked.text
doc_to_target: answer
doc_to_choice: [a, b]
process_results: !function asked.result
generation_kwargs: {{max_new_tokens: 12, temperature: 0, until: ["non"], image_aspect_ratio: original}}
metric_list: [{{metric: same, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
from PIL import Image

def visual(doc):
    return [Image.open(file) for file in doc["images"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return "<image>\\n" + doc["question"]

def result(doc, results):
    return {"same": float(results[0] == doc["answer"])}
"""


def stopping(max_new_tokens: int, stop: str, temperature: float = 0.0) -> Sampling:
    return Sampling(max_new_tokens, temperature, stop_strings=(stop,))


@pytest.mark.parametrize(
    "kwargs, sampling",
    [
        ({}, Sampling(1024)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 0.9, "num_beams": 1, "until": [".."]}, stopping(16, "..")),
        ({"temperature": 0.7, "top_p": 1.0, "top_k": None}, Sampling(1024, 0.7)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 4}, Sampling(1024, 0.7, top_k=4, top_p=0.9)),
        ({"do_sample": True, "top_k": -1}, Sampling(1024, 1.0)),
        ({"temperature": 0.7, "do_sample": False, "top_k": 5}, Sampling(1024)),
        ({"do_sample": True, "temperature": 0, "until": "."}, stopping(1024, ".", 1.0)),
        ({"until": None, "image_aspect_ratio": "original"}, Sampling(1024)),
    ],
)  # fmt: skip
def test_sampling_of_a_task(kwargs: dict[str, Any], sampling: Sampling) -> None:
    assert sampling_of(kwargs, 1024) == sampling


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"temperature": 1, "top_p": 1.5}])
def test_what_would_change_the_answers_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="use --gen_kwargs num_beams=1|sampling needs top_k >= 0 and 0 < top_p <= 1"):
        sampling_of(kwargs, 8)


def test_one_image_for_each_question() -> None:
    red, blue, grey = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (3, 3), "blue"), Image.new("L", (1, 1), 99)
    assert one_image([red], join=False) is red and one_image(None, join=True) is None
    with pytest.raises(UserError, match="shows 2 images.*images=join"):
        one_image([red, blue], join=False)
    with pytest.raises(UserError, match="shows the model a str"):
        one_image(["clip.mp4"], join=True)
    expected = np.zeros((6, 8, 3), np.uint8)
    expected[:2, :4], expected[:3, 4:7], expected[3, 0] = (255, 0, 0), (0, 0, 255), 99
    assert np.array_equal(one_image([red, blue, grey], join=True), expected)


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], kind: str = "generate_until") -> None:
    """A task of lmms-eval with its functions and questions."""
    folder.mkdir()
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder, kind=kind))
    (folder / "asked.py").write_text(FUNCTIONS)
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))


def run_lmms_eval(model: Path, tasks: Path, name: str, *options: str) -> str:
    """Its command, as docs/vqa.md has it; what it prints. The package is seen as it is when it is installed."""
    installed = tasks.parent / "installed"
    installed.mkdir(exist_ok=True)
    setup = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", installed]
    subprocess.run(setup, cwd=REPOSITORY, check=True, capture_output=True)
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "pixel_sail",
        "--model_args",
        f"pretrained={model},precision=fp32",
    ]
    arguments = ["--device", "cpu", "--tasks", name, "--include_path", tasks, *options]
    paths = os.pathsep.join([str(REPOSITORY), str(installed)])
    home = {"HF_HOME": str(tasks.parent / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(
        [*command, *arguments],
        cwd=tasks.parent,
        env=os.environ | home | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    ).stdout


@needs_lmms_eval
def test_the_evaluator_gets_the_answers_of_the_predictor(tmp_path: Path) -> None:
    """Five questions in batches of two, one of them without an image, and one about an image of another size."""
    model, rng = save_export(tmp_path / "model"), np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (24 + 8 * i, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    rows = [{"images": [str(tmp_path / f"{i}.png")], "question": QUESTIONS[i]} for i in range(4)]
    rows.insert(2, {"images": [], "question": QUESTIONS[0]})
    predictor = Predictor.from_pretrained(model, "cpu")
    sampling = Sampling(12, stop_strings=("non",))
    expected = []
    for row in rows:
        image = row["images"][0] if row["images"] else None
        expected += [answer.text for answer in predictor.chat(image, row["question"], sampling=sampling)]
    assert len(set(expected)) == 5 and all(expected)
    for i, (row, answer) in enumerate(zip(rows, expected, strict=True)):
        row["answer"] = answer.strip() if i < 3 else "something else"
    write_task(tmp_path / "tasks", "drawn", rows)

    options = ("--batch_size", "2", "--output_path", "out", "--log_samples")
    printed = run_lmms_eval(model, tmp_path / "tasks", "drawn", *options)

    results = next(tmp_path.glob("out/**/*_results.json"), None)
    assert results is not None, printed
    (samples,) = tmp_path.glob("out/**/*_samples_drawn.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert [line["filtered_resps"] for line in lines] == expected, printed
    assert json.loads(results.read_text())["results"]["drawn"]["same,none"] == 0.6


@needs_lmms_eval
def test_what_the_model_of_lmms_eval_refuses(tmp_path: Path) -> None:
    """Each with the task, and the question where there is one; several images are joined when asked for."""
    from lmms_eval.api.instance import Instance

    from pixel_sail.evaluate.lmms.model import PixelSailLmms

    model = PixelSailLmms(str(save_export(tmp_path / "model")), device="cpu", batch_size="2", max_new_tokens=4)
    images = [Image.new("RGB", (24, 16), colour) for colour in ("red", "blue")]
    model.task_dict = {"drawn": {"test": [images[:1], images]}}

    def asked(number: int, text: str = "Why?", **kwargs: Any) -> Instance:
        arguments = (text, kwargs, lambda doc: doc, number, "drawn", "test")
        return Instance("generate_until", arguments, 0, {"task": "drawn", "doc_id": number, "repeats": 1})

    with pytest.raises(UserError, match="^task drawn, question 1 of test: it shows 2 images"):
        model.generate_until([asked(0), asked(1)])
    with pytest.raises(UserError, match="^task drawn, question 0 of test, or one of the 1 before it: .*empty question"):
        model.generate_until([asked(0), asked(0, "<image>")])
    with pytest.raises(UserError, match="task drawn compares likelihoods"):
        model.loglikelihood([asked(0)])
    with pytest.raises(UserError, match="task drawn asks in several rounds"):
        model.generate_until_multi_round([asked(0)])
    model.join = True
    both = model.generate_until([asked(1, temperature=0), asked(0, max_new_tokens=2), asked(0)])
    sampling = [Sampling(4), Sampling(2), Sampling(4)]
    shown = [one_image(images, join=True), images[0], images[0]]
    alone = [
        model.predictor.chat(*pair, sampling=how)[0].text
        for *pair, how in zip(shown, ["Why?"] * 3, sampling, strict=True)
    ]
    assert both == alone and len(set(both)) > 1
    for bad in ({"batch_size": "auto"}, {"images": "two"}):
        with pytest.raises(UserError, match="it is a number from 1 on|images=two: it is one or join"):
            PixelSailLmms("nowhere", **bad)
