import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY, edit_instances, free_port, write_refer_dataset
from PIL import Image

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.evaluate import kinds, runner
from pixel_sail.evaluate.benchmark import Benchmark, Options, by_image
from pixel_sail.evaluate.file_names import file_name
from pixel_sail.evaluate.predictions import PredictionFiles, read_lines
from pixel_sail.types import BadSample

MADE_WITH = {"checkpoint": "a"}


@dataclass
class Answer:
    text: str
    masks: list[np.ndarray]
    scores: list[float] | None = None
    presence: float | None = None


class Colours:
    """Answers from the pixels alone: a mask of the channel that the length of the expression picks."""

    def __init__(self, fail_after: int | None = None):
        self.calls: list[list[str]] = []
        self.fail_after = fail_after

    def segment(self, image: Image.Image, expressions: list[str]) -> list[Answer]:
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(list(expressions))
        pixels = np.asarray(image)
        return [Answer("It is [SEG].", [pixels[..., len(text) % 3] > 128]) for text in expressions]


@dataclass
class Knowing:
    """Answers with the ground truth, moved right by `shift` pixels, in two pieces."""

    benchmark: Benchmark
    shift: int = 0
    known: dict = field(default_factory=dict)

    def __post_init__(self):
        for case in self.benchmark.cases:
            self.known[Image.open(case.image).convert("RGB").tobytes(), case.sentence] = case.mask

    def segment(self, image: Image.Image, expressions: list[str]) -> list[Answer]:
        return [self._answer(self.known[image.tobytes(), text]) for text in expressions]

    def _answer(self, rle):
        if rle is None:
            return Answer("No.", [])
        mask, upper = np.roll(decode_mask(rle), self.shift, axis=1), np.arange(rle["size"][0])[:, None] < 20
        return Answer("[SEG] [SEG]", [mask & upper, mask & ~upper])


class Silent:
    def segment(self, image: Image.Image, expressions: list[str]) -> list[Answer]:
        return [Answer("Nothing.", []) for _ in expressions]


def _boxes_only(root):
    """A dataset of one 10 x 10 box an image, far enough from the edges to be moved."""

    def change(values):
        box = [[10, 10, 20, 10, 20, 20, 10, 20]]
        for annotation in values["annotations"]:
            annotation["segmentation"] = box

    write_refer_dataset(root)
    edit_instances(root, change)
    return root


@pytest.mark.parametrize("name", ["refcoco:val", "grefcoco:val"])
def test_ground_truth_gives_100(dataset, tmp_path, name):
    benchmark = runner.open_benchmark(name, dataset)
    scores = runner.run_benchmark(Knowing(benchmark), benchmark, tmp_path, MADE_WITH)
    percentages = {k: v for k, v in scores.items() if k in ("ciou", "giou", "n_acc", "t_acc") or k.startswith("pr@")}
    assert len(percentages) >= 4 and set(percentages.values()) == {100}
    assert scores["images"] == 3 and scores["cases"] == len(benchmark.cases)


def test_silence_scores_0_and_recognizes_every_absent_object(dataset, tmp_path):
    for name in ("refcoco:val", "grefcoco:val"):
        benchmark = runner.open_benchmark(name, dataset)
        scores = runner.run_benchmark(Silent(), benchmark, tmp_path, MADE_WITH)
        assert scores["ciou"] == 0
    assert scores["n_acc"] == 100 and scores["t_acc"] == 0
    assert scores["giou"] == pytest.approx(100 / 3)  # of three cases an image one is absent
    lines = read_lines(tmp_path / "predictions" / "grefcoco_val.jsonl", benchmark)
    assert all(line["segmentation"] is None for line in lines)


def test_a_shifted_box_gives_the_value_computed_by_hand(tmp_path):
    benchmark = runner.open_benchmark("refcoco:val", _boxes_only(tmp_path / "root"))
    scores = runner.run_benchmark(Knowing(benchmark, shift=3), benchmark, tmp_path, MADE_WITH)
    assert scores["ciou"] == pytest.approx(100 * 70 / 130) and scores["giou"] == pytest.approx(100 * 70 / 130)
    assert scores["pr@0.5"] == 100 and scores["pr@0.6"] == 0


def test_each_image_is_seen_once_with_all_its_expressions(dataset, tmp_path):
    segmenter, benchmark = Colours(), runner.open_benchmark("refcoco:val", dataset)
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert [len(expressions) for expressions in segmenter.calls] == [6, 6, 6]
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)  # complete: nothing is predicted again
    assert len(segmenter.calls) == 3


def test_files_and_lines_are_as_documented(dataset, tmp_path):
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    scores = runner.run_benchmark(Colours(), benchmark, tmp_path, MADE_WITH)
    path = tmp_path / "predictions" / "refcoco_val.jsonl"
    lines = [json.loads(row) for row in path.read_text().splitlines()]
    for line, case in zip(lines, benchmark.cases, strict=True):
        assert list(line) == ["ref_id", "sent_id", "sentence", "text", "segmentation"]
        assert (line["ref_id"], line["sent_id"], line["sentence"]) == (case.ref_id, case.sent_id, case.sentence)
        assert line["segmentation"]["size"] == [48, 64] and isinstance(line["segmentation"]["counts"], str)
    assert sorted(p.name for p in path.parent.iterdir()) == ["refcoco_val.jsonl", "refcoco_val.manifest.json"]
    written = json.loads(runner.write_metrics(tmp_path, Path("runs/x/export"), {"refcoco:val": scores}).read_text())
    numbers = {name for name in scores if isinstance(scores[name], float)} - {"small_below"}
    assert numbers and numbers <= set(written.pop("definitions")["refcoco:val"])
    assert written == {"checkpoint": "runs/x/export", "benchmarks": {"refcoco:val": scores}}
    details = {"boundary_iou", "small_ciou", "small_giou", "small_cases", "small_below"}
    assert set(scores) == {"ciou", "giou", "cases", "images", *(f"pr@{x}" for x in (0.5, 0.6, 0.7, 0.8, 0.9))} | details
    assert f"{scores['ciou']:.1f}" in runner.table({"refcoco:val": scores})


def _interrupted(benchmark, out, after):
    with pytest.raises(KeyboardInterrupt):
        runner.run_benchmark(Colours(fail_after=after), benchmark, out, MADE_WITH)
    return out / "predictions" / f"{file_name(benchmark.name)}.rank0.jsonl"


def test_an_interrupted_run_continues_after_its_last_complete_image(dataset, tmp_path):
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    expected = runner.run_benchmark(Colours(), benchmark, tmp_path / "whole", MADE_WITH)
    part = _interrupted(benchmark, tmp_path / "torn", after=2)
    text = part.read_text()
    assert text.count("\n") == 12
    part.write_text(text[: len(text) - 40])  # as killed while writing the last line of the second image
    segmenter = Colours()
    scores = runner.run_benchmark(segmenter, benchmark, tmp_path / "torn", MADE_WITH)
    assert len(segmenter.calls) == 2 and scores == expected
    files = [tmp_path / out / "predictions" / "refcoco_val.jsonl" for out in ("whole", "torn")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_interrupted_twice_and_by_another_number_of_processes(dataset, tmp_path):
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    _interrupted(benchmark, tmp_path, after=1).rename(tmp_path / "predictions" / "refcoco_val.rank5.jsonl")
    _interrupted(benchmark, tmp_path, after=1)
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert len(segmenter.calls) == 1


@pytest.mark.parametrize("other", ["checkpoint", "data"])
def test_predictions_made_with_anything_else_are_not_continued(dataset, tmp_path, capsys, other):
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    runner.run_benchmark(Silent(), benchmark, tmp_path, MADE_WITH)
    _interrupted(runner.open_benchmark("refcoco:val", dataset, 2), tmp_path, after=1)
    made_with = {"checkpoint": "b"} if other == "checkpoint" else MADE_WITH
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, made_with)
    assert len(segmenter.calls) == 3
    expected = {
        "checkpoint": 'checkpoint was "a", is "b"; the cases differ',
        "data": "are replaced: the cases differ (other data, or another --max-images)",
    }
    message = capsys.readouterr().out
    assert "the earlier predictions of refcoco:val are replaced" in message and expected[other] in message


def test_predictions_without_a_readable_manifest_are_replaced(dataset, tmp_path, capsys):
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    runner.run_benchmark(Silent(), benchmark, tmp_path, MADE_WITH)
    (tmp_path / "predictions" / "refcoco_val.manifest.json").write_text('{"made_')
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert len(segmenter.calls) == 3 and "does not say what they were made with" in capsys.readouterr().out


def test_names_and_help_come_from_one_list(dataset):
    """A benchmark of every kind is named in the error for an unknown name and in the help of tools/test.py."""
    with pytest.raises(DatasetError) as error:
        runner.open_benchmark("coco:val", dataset)
    for kind in runner.BENCHMARKS:
        names = kind.names
        assert names.form in str(error.value) and f"  {names.form}\n      {names.help}" in kinds.benchmark_help()
    prefixes = [prefix for kind in runner.BENCHMARKS for prefix in kind.names.prefixes]
    assert len(set(prefixes)) == len(prefixes)
    assert kinds.tasks_of("perbench") == ("perbench:caption", "perbench:mcq", "perbench:vtres")
    assert kinds.tasks_of("perbench:mcq") == ("perbench:mcq",) and kinds.tasks_of("gcg") == ("gcg",)


def test_a_fingerprint_depends_on_files_and_settings(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    before = runner.fingerprint(tmp_path, precision="fp32")
    assert runner.fingerprint(tmp_path, precision="fp32") == before != runner.fingerprint(tmp_path, precision="bf16")
    weights.write_bytes(b"22")
    assert runner.fingerprint(tmp_path, precision="fp32") != before


def _one_rank(rank: int, world: int, port: int, root: Path, out: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo")
    segmenter = Colours()
    for name in ("refcoco:val", "grefcoco:val"):
        scores = runner.run_benchmark(segmenter, runner.open_benchmark(name, root), out, MADE_WITH)
        assert (scores is None) == (rank != 0)
        if rank == 0:
            (out / f"{name}.json").write_text(json.dumps(scores))
    (out / f"calls{rank}").write_text(str(len(segmenter.calls)))
    dist.destroy_process_group()


def test_two_ranks_share_the_images_and_give_the_result_of_one(dataset, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    torch.multiprocessing.spawn(_one_rank, args=(2, free_port(), dataset, two), nprocs=2)
    assert [(two / f"calls{rank}").read_text() for rank in (0, 1)] == ["4", "2"]
    for name in ("refcoco:val", "grefcoco:val"):
        scores = runner.run_benchmark(Colours(), runner.open_benchmark(name, dataset), tmp_path, MADE_WITH)
        assert json.loads((two / f"{name}.json").read_text()) == scores
        single, shared = (out / "predictions" / f"{file_name(name)}.jsonl" for out in (tmp_path, two))
        assert single.read_bytes() == shared.read_bytes()


def _perfect_file(root, path, name="refcoco:val"):
    rows = [
        {"ref_id": c.ref_id, "sent_id": c.sent_id, "sentence": c.sentence, "text": "", "segmentation": c.mask}
        for c in runner.open_benchmark(name, root).cases
    ]
    return rows, path


def _write(rows, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_any_model_are_scored_in_any_order(dataset, tmp_path):
    rows, path = _perfect_file(dataset, tmp_path / "p.jsonl")
    assert runner.score_file(_write(rows[::-1], path), "refcoco:val", dataset)["ciou"] == 100
    first = runner.open_benchmark("refcoco:val", dataset, max_images=1)
    assert len(by_image(first.cases)) == 1
    assert runner.score_file(_write(rows[:6], path), "refcoco:val", dataset, max_images=1)["cases"] == 6


def test_files_that_do_not_fit_the_benchmark_are_refused(dataset, tmp_path):
    rows, path = _perfect_file(dataset, tmp_path / "p.jsonl")

    def refused(changed, kind, message):
        with pytest.raises(kind, match=message):
            runner.score_file(_write(changed, path), "refcoco:val", dataset)

    ids = f"\\({rows[0]['ref_id']}, {rows[0]['sent_id']}\\)"
    refused(rows[7:], DatasetError, f"7 of the 18 cases of refcoco:val are missing; .*: {ids}, .*, \\.\\.\\.$")
    refused([*rows, rows[0]], DatasetError, f"1 cases are given more than once; .*: {ids}$")
    refused([*rows, rows[0] | {"ref_id": 7}], DatasetError, "1 lines are of no case of refcoco:val; .*: .7, ")
    wrong = encode_mask(np.ones((64, 48), dtype=bool))
    refused([rows[0] | {"segmentation": wrong}, *rows[1:]], BadSample, "of size .64, 48., the image is .48, 64.")
    torn = {"size": [48, 64], "counts": "0"}
    refused([rows[0] | {"segmentation": torn}, *rows[1:]], BadSample, "ref_id 130 sent_id 1300: the run lengths")
    refused([{"ref_id": 1}], DatasetError, "p.jsonl, line 1: .* is no prediction .'sent_id'.; a line is a JSON object")
    path.write_text('{"ref_id"')
    with pytest.raises(DatasetError, match="p.jsonl, line 1"):
        runner.score_file(path, "refcoco:val", dataset)
    with pytest.raises(DatasetError, match="no predictions file .*absent"):
        runner.score_file(tmp_path / "absent", "refcoco:val", dataset)


def test_predictions_in_other_encodings_are_read_or_named(dataset, tmp_path):
    file = tmp_path / "p.jsonl"
    rows, _ = _perfect_file(dataset, file)
    text = "".join(json.dumps(row | {"text": "où"}, ensure_ascii=False) + "\r\n" for row in rows)
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes(text.encode(encoding))
        assert runner.score_file(file, "refcoco:val", dataset)["giou"] == 100
    file.write_bytes(text.encode("cp1252"))
    with pytest.raises(DatasetError, match="p.jsonl, line 1: the text is not UTF-8 .*iconv"):
        runner.score_file(file, "refcoco:val", dataset)


@pytest.mark.parametrize("name", ["refcoco:val", "grefcoco:val"])
def test_a_benchmark_without_a_case_is_an_error(dataset, name):
    """Ids as text in one of the files: every ref is left out."""
    path = dataset / name.partition(":")[0] / "instances.json"
    values = json.loads(path.read_text())
    for image in values["images"]:
        image["id"] = str(image["id"])
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="nothing of .* can be used; first: g?refcoco/val/ref=130: image 13 is"):
        runner.open_benchmark(name, dataset)


def test_an_image_of_another_size_than_its_annotations_stops_the_scoring(dataset, tmp_path):
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    Image.new("RGB", (30, 20)).save(benchmark.cases[0].image)
    with pytest.raises(BadSample, match="is .30, 20., its annotations are for .64, 48."):
        runner.run_benchmark(Colours(), benchmark, tmp_path, MADE_WITH)


def test_annotations_left_out_are_counted_in_the_scores(dataset):
    edit_instances(dataset, lambda values: values["annotations"][-1].update(segmentation=[[1, 1, 5, 5]]))
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    lines = [{"segmentation": case.mask} for case in benchmark.cases]
    assert len(lines) == 16 and benchmark.score(lines)["unusable"] == 1


def test_all_problems_are_listed_and_the_first_are_shown(dataset, tmp_path):
    problems = tuple(f"{index}: no image {index}.jpg" for index in range(300))
    benchmark = replace(runner.open_benchmark("refcoco:val", dataset), problems=problems)
    shown = PredictionFiles(tmp_path, benchmark).list_problems().splitlines()
    listed = tmp_path / "predictions" / "refcoco_val.left_out.txt"
    assert shown == [f"300 left out of refcoco:val, listed in {listed}; the first:", *(f"  {p}" for p in problems[:5])]
    assert tuple(listed.read_text().splitlines()) == problems
    assert PredictionFiles(tmp_path, replace(benchmark, problems=())).list_problems() is None
    assert not listed.exists(), "the list of an earlier run"


def test_a_small_prediction_is_a_prediction_unless_a_rule_is_asked_for(dataset):
    """Published numbers of gRefCOCO have no rule of 50 pixels. One pixel where nothing matches: N-acc 0, or 100."""
    pixel = np.zeros((48, 64), dtype=bool)
    pixel[0, 0] = True
    for options, expected in ((None, 0), (Options(), 0), (Options(min_pixels=50), 100)):
        benchmark = runner.open_benchmark("grefcoco:val", dataset, options=options)
        scores = benchmark.score([{"segmentation": case.mask or encode_mask(pixel)} for case in benchmark.cases])
        assert scores["n_acc"] == expected and scores["min_pixels"] == (options.min_pixels if options else 0)
        assert (
            "0: no such rule, as in the paper" in runner.definitions({benchmark.name: scores})[benchmark.name]["n_acc"]
        )


def test_the_tool_scores_files_without_a_checkpoint(dataset, tmp_path):
    plain, general = tmp_path / "plain.jsonl", tmp_path / "general.jsonl"
    _write(*_perfect_file(dataset, plain))
    _write(*_perfect_file(dataset, general, "grefcoco:val"))
    call = [sys.executable, "tools/test.py", "--data-root", str(dataset), "--out", str(tmp_path / "scores")]
    both = ["--predictions", str(plain), "--benchmark", "refcoco:val"]
    both += ["--predictions", str(general), "--benchmark", "grefcoco:val"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*call, *both], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "refcoco:val" in done.stdout and "100.0" in done.stdout
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["checkpoint"] is None and metrics["benchmarks"]["refcoco:val"]["pr@0.9"] == 100
    assert metrics["benchmarks"]["grefcoco:val"]["n_acc"] == 100
    for name, scores in metrics["benchmarks"].items():
        numbers = {key for key, value in scores.items() if isinstance(value, float)} - {"small_below"}
        assert numbers <= set(metrics["definitions"][name])
    giou = metrics["definitions"]["grefcoco:val"]["giou"]
    printed = done.stdout.replace("\n      ", " ")
    assert giou.endswith("[GRES, arXiv 2306.00968]") and f"grefcoco:val giou, ciou, n_acc, t_acc: {giou}" in printed
    plain.write_text("")
    failed = subprocess.run([*call, *both], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and "error: " in failed.stderr and "18 of the 18 cases" in failed.stderr
    assert "Traceback" not in failed.stderr
