"""Attend-and-segment from end to end: segmenters, the choice of a mask, files that continue after a kill."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from in_process import call_main, load_tool
from needs_spacy import needs_spacy
from PIL import Image, ImageDraw
from tiny_mllms import HUGGING_FACE, PROMPT, tiny
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from pixel_sail.config import ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px, decode_mask, encode_mask
from pixel_sail.data.regions import Points
from pixel_sail.data.templates import CHOOSE
from pixel_sail.errors import FileError
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.studies.attend_segment import baseline, phrases, select
from pixel_sail.studies.attend_segment.adapters import HuggingFaceAdapter, open_adapter
from pixel_sail.studies.attend_segment.baseline import Baseline, collect, fill_prompt, score
from pixel_sail.studies.attend_segment.generate import AttendedAnswer
from pixel_sail.studies.attend_segment.segmenters import PixelSailSegmenter, PointMasks, Sam, open_segmenter
from pixel_sail.types import BadSample

SIZE = (120, 80)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8))


def tiny_sam() -> Sam:
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
    vision |= {"output_channels": 16, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 4, "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 8,
    }
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    sides = {"height": 64, "width": 64}
    images = SamImageProcessor(
        size={"longest_edge": 64},
        pad_size=sides,
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    return Sam(_strong(SamModel(config)), SamProcessor(images))


def tiny_sam2() -> Sam:
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
        "image_size": 64,
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 8}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    images = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    return Sam(_strong(Sam2Model(config)), Sam2Processor(images, target_size=64))


def _strong(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights: with transformers' N(0, 0.02) every point would get the same masks."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_sam_gives_three_masks_a_point(kind: str, image: Image.Image, tmp_path: Path) -> None:
    sam = {"sam": tiny_sam, "sam2": tiny_sam2}[kind]()
    points = [(7.0 * i + 0.5, 4.0 * i + 0.5) for i in range(17)]  # one more than fit into a call
    results = sam.segment(image, points)
    assert len(results) == 17
    for i in (0, 15, 16):  # transformers' result for this point alone, with the image encoded again
        inputs = sam.processor(image, input_points=[[[list(points[i])]]], input_labels=[[[1]]], return_tensors="pt")
        with torch.inference_mode():
            output = sam.model(**inputs, multimask_output=True)
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        (masks,) = sam.processor.post_process_masks(output.pred_masks, *sizes)
        assert np.array_equal(np.stack(results[i].masks), masks[0].numpy())
        assert results[i].scores == pytest.approx(output.iou_scores[0, 0].tolist(), abs=1e-5)
        assert [(mask.shape, mask.dtype) for mask in results[i].masks] == [((80, 120), bool)] * 3
    assert results[0].scores != results[16].scores  # points matter
    sam.model.save_pretrained(tmp_path / "saved")
    sam.processor.save_pretrained(tmp_path / "saved")
    (again,) = open_segmenter(f"{kind}:{tmp_path / 'saved'}").segment(image, points[:1])
    assert np.array_equal(np.stack(again.masks), np.stack(results[0].masks))


def test_our_model_as_segmenter(image: Image.Image, monkeypatch) -> None:
    predictor = tiny("pixel_sail").predictor
    seg = predictor.encoder.tokens.seg
    monkeypatch.setattr(
        "pixel_sail.model.generation._choose", lambda logits, sampling: [seg] * len(logits)
    )  # random weights never generate [SEG]
    points = [(10.5, 10.5), (100.5, 60.5)]
    results = PixelSailSegmenter(predictor).segment(image, points)
    for point, point_masks in zip(points, results, strict=True):
        (answer,) = predictor.segment(image, "<Prompt0>", [Points((point,))])
        # in a batch and alone; a pixel may differ where a logit is 0 up to rounding
        assert np.mean(np.stack(point_masks.masks) != np.stack(answer.masks)) < 1e-4
        assert point_masks.scores == [1.0] * len(point_masks.masks)
    assert not np.array_equal(results[0].masks[0], results[1].masks[0])


def test_messages_for_segmenters_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown segmenter 'clip:/x'; give one of sam:PATH"):
        open_segmenter("clip:/x")
    with pytest.raises(ConfigError, match="does not exist, and no hub answers"):
        open_segmenter(f"sam:{tmp_path / 'nowhere'}")
    sam = tiny_sam()
    del sam.model.mask_decoder.iou_token
    sam.model.save_pretrained(tmp_path / "torn")
    sam.processor.save_pretrained(tmp_path / "torn")
    with pytest.raises(ConfigError, match="no fitting weights for 1 tensors of SamModel, first mask_decoder.iou_token"):
        open_segmenter(f"sam:{tmp_path / 'torn'}")


@pytest.mark.parametrize("model_type", HUGGING_FACE)
def test_a_saved_model_finds_its_adapter(model_type: str, image: Image.Image, tmp_path: Path) -> None:
    adapter = tiny(model_type)
    adapter.model.save_pretrained(tmp_path)
    adapter.processor.save_pretrained(tmp_path)
    opened = open_adapter(tmp_path)
    assert isinstance(opened, HuggingFaceAdapter) and type(opened) is type(adapter)
    weights, saved = (model.model.state_dict() for model in (opened, adapter))
    assert weights.keys() == saved.keys() and all(torch.equal(weights[name], saved[name]) for name in saved)
    answer, expected = (model.answer(image, PROMPT, 6) for model in (opened, adapter))
    assert answer.text == expected.text
    torch.testing.assert_close(answer.maps, expected.maps)  # some CPUs add up in another order at another address


def test_tiles_are_refused(image: Image.Image, monkeypatch) -> None:
    adapter = tiny("internvl")
    monkeypatch.setattr(type(adapter), "processor_settings", {"crop_to_patches": True, "min_patches": 2})
    with pytest.raises(ValueError, match="for a grid of 4 x 4; .* cuts the image into tiles"):
        adapter.answer(image, PROMPT, 2)


def test_models_without_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="a 'llama' model, which has no adapter"):
        open_adapter(tmp_path)
    with pytest.raises(ConfigError, match="unknown family 'llama'"):
        open_adapter(tmp_path, "llama")
    with pytest.raises(ConfigError, match="cannot read"):
        open_adapter(tmp_path / "nowhere")


# The choice of a mask


def box(x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((80, 120), dtype=bool)
    mask[:, x0:x1] = True
    return mask


def phrase(text: str, *masks: tuple[int, int], scores: tuple[float, ...] = ()) -> dict:
    rles = [encode_mask(box(*mask)) for mask in masks]
    return {
        "text": text,
        "tokens": [0, 1],
        "point_xy": [0, 0],
        "masks": rles,
        "scores": list(scores or [0.5] * len(rles)),
    }


def pix_object(mask: np.ndarray | None, expression: str | None = "the dog") -> PixObject:
    rle = None if mask is None else encode_mask(mask)
    return PixObject(1, Path("x.png"), (80, 120), expression, rle, "Is it red?", ("Yes", "No"), "a", 0)


def test_the_oracle_takes_the_best_of_all_masks() -> None:
    record = {"phrases": [phrase("sky", (0, 90), (0, 40)), phrase("dog"), phrase("cat", (10, 50), (60, 120))]}
    assert np.array_equal(decode_mask(select.oracle(record, pix_object(box(10, 52)))), box(10, 50))
    assert np.array_equal(decode_mask(select.oracle(record, pix_object(box(70, 120)))), box(60, 120))
    assert select.oracle({"phrases": [phrase("dog")]}, pix_object(box(0, 9))) is None
    assert select.oracle(record, pix_object(None)) is None  # protocol of 2026: empty where the truth is empty
    assert select.oracle(record, pix_object(None, None)) is None


def test_words_choose_the_phrase_and_scores_the_mask(image: Image.Image) -> None:
    phrases = [
        phrase("the brown fence", (0, 9)),
        phrase("two dogs", (9, 30), (9, 40), scores=(0.2, 0.9)),
        phrase("a dog"),
    ]
    record = {"phrases": phrases}
    mask, undecided = select.automatic(record, image, "the dog's brown tail", select.by_words)
    assert mask is None and not undecided  # one word in common with each: a similarity of 0.4, below 0.7
    mask, undecided = select.automatic(record, image, "a fence, brown", select.by_words)
    assert np.array_equal(decode_mask(mask), box(0, 9)) and not undecided  # the same words in another order
    mask, _ = select.automatic(record, image, "the brown dog", select.by_words)
    assert np.array_equal(decode_mask(mask), box(9, 40))  # the last word counts most, "a dog" has no mask
    assert select.automatic(record, image, None, select.by_words) == (None, False)
    assert select.automatic({"phrases": phrases[2:]}, image, "the dog", select.by_words) == (None, False)


class Scripted:
    """A model that gives prepared replies, and records what it was asked."""

    family = "fake"

    def __init__(self, *replies: str):
        self.replies, self.prompts = list(replies), []

    def answer(self, image: Image.Image, prompt: str, max_new_tokens: int) -> AttendedAnswer:
        text = self.replies.pop(0)
        self.prompts.append((image, prompt))
        words = text.split()
        ends = np.cumsum([len(word) + 1 for word in words]).tolist()
        spans = [(end - len(word) - 1, end - 1) for word, end in zip(words, ends, strict=True)]
        maps = torch.zeros(len(words), 2, 3)
        for i in range(len(words)):
            maps[i].view(-1)[i % 6] = 1.0
        return AttendedAnswer(text, spans, maps, (0.0, 0.0, float(image.width), float(image.height)))


def test_a_model_chooses_by_number(image: Image.Image) -> None:
    phrases = [phrase("sky", (0, 60)), phrase("dog", (60, 120)), phrase("cat", (0, 120))]
    model = Scripted("It is number 2.", "1 or 2", "7", "NONE", "In none of them.", "I cannot say", "1", "none")
    choose = select.AskModel(model)
    none = select.NONE
    assert [choose(image, "the dog", phrases) for _ in range(6)] == [1, None, None, none, none, None]
    copies, prompt = model.prompts[0]
    assert "3 numbered copies" in prompt and "the dog" in prompt
    assert copies.size == (2 * 336, 2 * 224)
    plain = np.asarray(image.resize((336, 224)), dtype=float)
    tiles = np.asarray(copies, dtype=float)
    # the second copy, right of the first, is painted in its right half only
    second = np.abs(tiles[:224, 336:] - plain).mean(axis=(0, 2))
    assert second[190:330].min() > 5 * second[60:150].max()
    assert [choose(image, "the dog", phrases[:1]) for _ in range(2)] == [0, none]  # one candidate may be wrong too
    rejected = select.automatic({"phrases": phrases}, image, "the cat", select.AskModel(Scripted("NONE")))
    assert rejected == (None, False)
    undecided = select.automatic({"phrases": phrases}, image, "the cat", select.AskModel(Scripted("?")))
    assert undecided == (phrases[2]["masks"][0], True)  # the words decide


# Over a benchmark


def write_pixmmvp(root: Path) -> Path:
    """Two pairs of images with a red box, at another place in each; the fourth has no box."""
    folder = root / "pixmmvp"
    (folder / "MMVP Images").mkdir(parents=True)
    rows = [f"{i},Is the box left or right?,(a) Left (b) Right,({'ab'[i % 2]})" for i in range(1, 5)]
    (folder / "Questions.csv").write_text("Index,Question,Options,Correct Answer\n" + "\n".join(rows) + "\n")
    objects = ["the red box", "the red box", "the red box", "None"]
    (folder / "Objects.csv").write_text("Index, Object\n" + "".join(f"{i}, {o}\n" for i, o in enumerate(objects, 1)))
    images, annotations = [], []
    for i in range(1, 5):
        image = Image.new("RGB", SIZE, "grey")
        x = 20 * i
        if i < 4:
            ImageDraw.Draw(image).rectangle((x, 20, x + 29, 59), fill="red")
            polygon = [x, 20, x + 30, 20, x + 30, 60, x, 60]
            annotations.append({"id": i, "image_id": i, "segmentation": [polygon]})
        image.save(folder / f"MMVP Images/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 80, "width": 120})
    (folder / "Segmentations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


class Squares:
    """Returns the 20 px around a point, and the whole image."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def segment(self, image: Image.Image, points_xy) -> list[PointMasks]:
        self.points += points_xy
        rows, columns = np.mgrid[: image.height, : image.width]
        near = [(abs(columns - x) < 20) & (abs(rows - y) < 20) for x, y in points_xy]
        return [PointMasks([mask, np.ones_like(mask)], [0.9, 0.1]) for mask in near]


def the_phrases(text: str) -> list[tuple[int, int]]:
    """A chunker without spaCy: "the" with its noun, and "red" between them."""
    return [match.span() for match in re.finditer(r"\bthe (?:red )?[a-z]+", text)]


def fake_baseline(replies: list[str]) -> Baseline:
    return Baseline(Scripted(*replies), Squares(), the_phrases, select.by_words, CHOOSE)


def replies(images: int) -> list[str]:
    """For each image: the description, then an answer to each of the three wordings."""
    return [text for _ in range(images) for text in ("the wall behind the red box", "(a)", "(b) Right", "I see")]


def test_records_predictions_and_scores(tmp_path: Path) -> None:
    root = write_pixmmvp(tmp_path)
    benchmark = runner.open_benchmark("pixmmvp", root)
    records = collect(benchmark.cases, fake_baseline(replies(4)), tmp_path / "out", {"model": "x"})
    (first, *_) = [json.loads(line) for line in (tmp_path / "out/phrases.jsonl").read_text().splitlines()]
    assert first == json.loads(json.dumps(records[0]))
    assert (first["index"], first["output"], first["tokens"]) == (1, "the wall behind the red box", 6)
    assert first["image"] == str(root / "pixmmvp/MMVP Images/1.png")
    assert first["prompt"] == "Describe the red box in detail."
    assert [(p["text"], p["tokens"]) for p in first["phrases"]] == [("the wall", [0, 2]), ("the red box", [3, 6])]
    assert [len(p["masks"]) for p in first["phrases"]] == [2, 2] and first["phrases"][0]["scores"] == [0.9, 0.1]
    assert first["answers"] == ["(a)", "(b) Right", "I see"]
    x, y = first["phrases"][1]["point_xy"]
    assert 0 < x < 120 and 40 < y < 80  # tokens 3 to 5 attend to the lower row of the grid
    results = score(benchmark, records, tmp_path / "out")
    for name in baseline.CHOICES:
        file = tmp_path / f"out/predictions/{name}.jsonl"
        scored = runner.score_file(file, "pixmmvp", root)
        assert scored == {key: value for key, value in results[name].items() if key != "undecided_choices"}
    assert results["oracle"]["miou"] >= results["automatic"]["miou"]
    automatic = [json.loads(line) for line in (tmp_path / "out/predictions/automatic.jsonl").read_text().splitlines()]
    assert automatic[3]["segmentations"] == [None]  # no expression
    assert area_px(automatic[0]["segmentations"][0]) == area_px(first["phrases"][1]["masks"][0])


def test_continues_after_a_kill(tmp_path: Path, capsys) -> None:
    benchmark = runner.open_benchmark("pixmmvp", write_pixmmvp(tmp_path))
    whole = collect(benchmark.cases, fake_baseline(replies(4)), tmp_path / "whole", {"model": "x"})
    out = tmp_path / "out"
    collect(benchmark.cases[:2], fake_baseline(replies(2)), out, {"model": "x"})
    with (out / "phrases.jsonl").open("a") as file:
        file.write('{"index": 3, "ima')  # killed while writing
    # there are replies for two images only: another one would raise IndexError
    resumed = collect(benchmark.cases, fake_baseline(replies(2)), out, {"model": "x"})
    assert json.dumps(resumed) == json.dumps(whole)
    assert (out / "phrases.jsonl").read_bytes() == (tmp_path / "whole/phrases.jsonl").read_bytes()
    collect(benchmark.cases, fake_baseline(replies(4)), out, {"model": "another"})
    printed = capsys.readouterr().out
    assert "made with another model or other settings" in printed and 'model was "x", is "another"' in printed


def test_prompts_are_filled() -> None:
    target = pix_object(None, "the {odd} dog")
    assert fill_prompt("{question} {options} {expression}", target) == "Is it red? (a) Yes (b) No the {odd} dog"
    assert fill_prompt("{expression}", pix_object(None, None)) == "None"


def every_word(text: str) -> list[tuple[int, int]]:
    """A chunker for models that do not speak in sentences."""
    return [match.span() for match in re.finditer(r"[a-z]+", text)]


def save_parts(folder: Path) -> list[object]:
    """A tiny Qwen2.5-VL and a tiny SAM as folders, two images of PixMMVP; the arguments of the tool for them."""
    root = write_pixmmvp(folder)
    model, sam = tiny("qwen2_5_vl"), tiny_sam()
    for part in (model.model, model.processor):
        part.save_pretrained(folder / "model")
    for part in (sam.model, sam.processor):
        part.save_pretrained(folder / "sam")
    arguments = [folder / "model", "--segmenter", f"sam:{folder / 'sam'}", "--data-root", root, "--out", folder / "out"]
    return arguments + ["--max-images", "2", "--max-new-tokens", "24", "--select", "model", "--device", "cpu"]


def check_outputs(folder: Path, printed: str) -> None:
    out = folder / "out"
    assert "oracle" in printed and "automatic" in printed
    records = [json.loads(line) for line in (out / "phrases.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == [1, 2]
    assert sum(len(p["masks"]) == 3 for record in records for p in record["phrases"]) > 2
    metrics = json.loads((out / "metrics.json").read_text())["benchmarks"]
    assert metrics["oracle"]["cases"] == 2 and 0 < metrics["oracle"]["miou"] >= metrics["automatic"]["miou"]
    scored = runner.score_file(out / "predictions/oracle.jsonl", "pixmmvp", folder, max_images=2)
    assert json.loads(json.dumps(scored)) == metrics["oracle"]


def test_the_tool_on_a_foreign_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In this process, with a chunker that needs no spaCy."""
    monkeypatch.setattr(phrases, "spacy_model", lambda: "words")
    monkeypatch.setattr(phrases, "open_chunker", lambda: every_word)
    arguments = save_parts(tmp_path)
    call_main(monkeypatch, load_tool("attend_segment"), *arguments)
    check_outputs(tmp_path, capsys.readouterr().out)
    assert json.loads((tmp_path / "out/phrases.manifest.json").read_text())["phrases"] == "words"


@needs_spacy
def test_the_tool_as_a_process_with_spacy(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools/attend_segment.py"), *map(str, save_parts(tmp_path))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    check_outputs(tmp_path, done.stdout)


def test_without_spacy_the_tool_stops_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases, "spacy_model", lambda: None)
    tool, nowhere = load_tool("attend_segment"), tmp_path / "nowhere"
    with pytest.raises(SystemExit, match=r"^error: noun phrases need spaCy and an English model of it: pip install"):
        call_main(monkeypatch, tool, nowhere, "--segmenter", "sam:x", "--data-root", nowhere, "--out", nowhere)
    assert not nowhere.exists()


def test_records_that_no_call_of_ours_wrote(tmp_path: Path) -> None:
    """Of an edited phrases.jsonl: the file is named, and no mask is decoded that is not whole."""
    mask = {"size": [4, 4], "counts": "0`0"}
    phrase = {"text": "a dog", "tokens": [0, 1], "point_xy": [1.0, 1.0], "masks": [mask], "scores": [1.0]}
    record = {
        "index": 1,
        "image": "x",
        "prompt": "p",
        "output": "o",
        "tokens": 1,
        "phrases": [phrase],
        "answers": ["a"],
    }
    record |= {"automatic": mask, "undecided": False}
    path = tmp_path / "phrases.jsonl"
    (tmp_path / "phrases.manifest.json").write_text('{"model": 1}')
    for lines in (
        [record | {"phrases": [phrase | {"scores": []}]}],
        [record | {"phrases": [phrase | {"scores": [float("nan")]}]}],
        [record | {"phrases": [phrase | {"masks": ["x"]}]}],
        [record | {"answers": [3]}],
        [record | {"automatic": "x"}],
        [record | {"undecided": None}],
        [{"index": 1}],
        [3],
        [record, record],
    ):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(
            DatasetError, match=r"phrases\.jsonl has a line that is not a record .*; move the file away"
        ):
            baseline._resume(path, {"model": 1})
    path.write_text(json.dumps(record | {"automatic": {"size": [4, 4], "counts": "5"}}) + "\n")
    target = PixObject(1, Path("x"), (4, 4), "dog", None, "q", (), "a", 0)
    with pytest.raises(BadSample, match="image 1: .*the RLE is torn"):
        baseline.collect([target], None, tmp_path, {"model": 1})
    (tmp_path / "phrases.manifest.json").write_text('{"mod')
    with pytest.raises(FileError, match=r"phrases\.manifest\.json is not valid JSON.* move it away with phrases.jsonl"):
        baseline._resume(path, {"model": 1})
    assert path.read_text()
