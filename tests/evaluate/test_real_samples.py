"""The layouts of PixMMVP and PixCV-Bench on real photographs, in any clone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.data.masks import decode_mask
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.pixfoundation import pixcvbench, pixmmvp
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.scratch import from_scratch

SAMPLES = REPOSITORY / "tests/samples"
PHOTOGRAPHS = SAMPLES / "mini_coco/images/train2014"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both benchmarks with two photographs each; two images of PixMMVP are missing."""
    for name in ("pixmmvp", "pixcvbench"):
        shutil.copytree(SAMPLES / name, tmp_path / name, copy_function=shutil.copyfile)
    for number, photograph in (("1", "229358"), ("2", "255165")):
        source = PHOTOGRAPHS / f"COCO_train2014_000000{photograph}.jpg"
        for place in (f"pixmmvp/MMVP Images/{number}.jpg", f"pixcvbench/COCO/coco/images/000000{photograph}.jpg"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, tmp_path / place)
    return tmp_path


def test_rows_of_pixmmvp(root: Path) -> None:
    person, book, word, nothing = pixmmvp.read_objects(root)
    values = json.loads((root / "pixmmvp/Segmentations.json").read_text())
    for read, size in ((person, (423, 640)), (book, (480, 640))):
        polygons = [
            polygon for a in values["annotations"] if a["image_id"] == read.index for polygon in a["segmentation"]
        ]
        drawn = np.any(coco_mask.decode(coco_mask.frPyObjects(polygons, *size)), axis=2)
        assert read.size_hw == size and np.array_equal(decode_mask(read.mask_rle), drawn)
    assert len(polygons) == 2
    assert (word.expression, word.mask_rle, nothing.expression) == ('the word "Go"', None, None)
    assert [row.pair for row in (person, book, word, nothing)] == [0, 0, 1, 1]
    assert (book.options, book.answer) == (("Whole", "In parts"), "b")


def test_pixmmvp_end_to_end_and_scored_again(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    scratch = ScratchConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, mlp_size=64, vocab_size=400)
    parts = Architecture(patch_size=16, mask_stride=4, mask_dim=16, max_side_px=64)
    texts = ["Segment the person.", "It is [SEG]. (a) (b)"] * 3
    model, tokenizer = from_scratch(ModelSection(scratch=scratch), parts, texts, "Find {expression}.")
    predictor, benchmark = Predictor(model.eval(), tokenizer), runner.open_benchmark("pixmmvp", root)
    assert [case.index for case in benchmark.cases] == [1, 2] and len(benchmark.problems) == 2
    scores = runner.run_benchmark(predictor, benchmark, tmp_path / "out", {"test": 1})
    assert predictor.images_encoded == 2 and scores["pairs"] == 1 and scores["unusable"] == 2
    lines = read_lines(tmp_path / "out/predictions/pixmmvp.jsonl", benchmark)
    assert [(len(line["answers"]), len(line["segmentations"])) for line in lines] == [(10, 7)] * 2
    assert lines[1]["requests"][1] == "Can you segment the book in this image?"
    assert "\n(a) Large (b) Small\nInstruct:" in lines[0]["questions"][0]
    right = [
        {"index": case.index, "answers": [f"({case.answer})"], "segmentations": [case.mask_rle]}
        for case in benchmark.cases
    ]
    write_json_lines(tmp_path / "right.jsonl", right)
    perfect = runner.score_file(tmp_path / "right.jsonl", "pixmmvp", root)
    assert perfect["score"] == perfect["accuracy"] == perfect["miou"] == 100


def test_masks_of_pixcvbench_get_the_size_of_their_image(root: Path) -> None:
    book, person = pixcvbench.read_objects(root)
    assert [(row.index, row.expression) for row in (book, person)] == [(3, "book and person"), (7, "person")]
    values = json.loads((root / "pixcvbench/COCO/FinalSegmentations.json").read_text())
    own = [coco_mask.decode(a["segmentation"]) for a in values["annotations"] if a["image_id"] == 7]
    assert {mask.shape for mask in own} == {(369, 492)}
    scaled = Image.fromarray(np.any(own, axis=0)).resize((640, 423), Image.Resampling.NEAREST)
    assert person.size_hw == (423, 640) and np.array_equal(decode_mask(person.mask_rle), np.asarray(scaled))
    assert book.size_hw == (480, 640) and 0 < decode_mask(book.mask_rle).sum() < 480 * 640
