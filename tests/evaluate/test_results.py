"""What stays when scoring fails or is stopped: file names, damaged files of our own, metrics.json, signals."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import free_port
from PIL import Image
from test_scoring import MADE_WITH, Answer, Colours, Silent
from warm import run_tool

from pixel_sail.data.errors import DatasetError
from pixel_sail.errors import UserError
from pixel_sail.evaluate import perbench, runner
from pixel_sail.evaluate.file_names import MAX_CHARACTERS, earlier_file_name, file_name
from pixel_sail.evaluate.report import Report
from pixel_sail.interrupts import SIGNALS, Stopped, on_signal
from pixel_sail.types import BadSample
from pixel_sail.weights.card_data import dataset_name, front_matter
from pixel_sail.weights.model_card import _scores
from pixel_sail.weights.publish import read_metrics

NAMES = [f"{name}:{split}" for name in ("refcoco", "refcoco+", "refcocog", "grefcoco") for split in ("val", "testA")]
NAMES += [*perbench.TASKS, "region_caption:refcocog", "region_caption:refcocog:val", "gcg:open_psg:val", "pixmmvp:own"]
ODD = [
    "jsonl:a/b.jsonl",
    "jsonl:a_b.jsonl",
    "jsonl:a:b",
    "jsonl:A/b.jsonl",
    "jsonl:../../etc/x",
    "jsonl:C:\\x\\y?.jsonl",
]
ODD += [f"jsonl:{'long/' * 100}x.jsonl", f"jsonl:{'long/' * 100}y.jsonl", "jsonl:Übung/ä b.jsonl", "jsonl:[a]*.jsonl"]


def test_file_names_are_portable_and_all_different() -> None:
    names = [file_name(name) for name in NAMES + ODD]
    assert len({name.lower() for name in names}) == len(NAMES + ODD)
    portable = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    for name in names:
        assert set(name) <= portable and len(name) <= MAX_CHARACTERS and name[0] not in ".-", name
    assert file_name("refcoco+:testA") == "refcocoplus_testA" and file_name("jsonl:a/b.jsonl").startswith("jsonl_a_b-")


def _files(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "predictions").iterdir())


@pytest.mark.parametrize("name", ["refcoco:val", "jsonl:[a]/b.jsonl"])
def test_files_with_colons_are_continued(dataset: Path, tmp_path: Path, name: str) -> None:
    benchmark = replace(runner.open_benchmark("refcoco:val", dataset), name=name)
    runner.run_benchmark(Colours(), benchmark, tmp_path, MADE_WITH)
    folder, new, old = tmp_path / "predictions", file_name(name), earlier_file_name(name)
    for suffix in ("jsonl", "manifest.json"):
        (folder / f"{new}.{suffix}").rename(folder / f"{old}.{suffix}")
    (folder / f"{old}.v2.jsonl").write_text("of another benchmark")
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert segmenter.calls == []
    assert _files(tmp_path) == sorted([f"{old}.v2.jsonl", f"{new}.jsonl", f"{new}.manifest.json"])


def test_damaged_lines_of_our_own_are_predicted_again(dataset: Path, tmp_path: Path, capsys) -> None:
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    expected = runner.run_benchmark(Colours(), benchmark, tmp_path, MADE_WITH)
    path = tmp_path / "predictions/refcoco_val.jsonl"
    whole = path.read_bytes()
    rows = whole.splitlines(keepends=True)
    for damage in (
        b"\xff\xfe\x00\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        rows[7].replace(b'"counts": "', b'"counts": "zz'),
    ):
        path.write_bytes(b"".join([*rows[:7], damage, *rows[8:]]))
        segmenter = Colours()
        assert runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH) == expected
        assert len(segmenter.calls) == 1 and path.read_bytes() == whole
        printed = capsys.readouterr().out
        assert "1 damaged lines are predicted again; the first: " in printed and f"{path}, line 8" in printed


@pytest.mark.parametrize("manifest", [None, b"\xff", b"[]", b"[" * 100_000, b'{"made_with": 1, "cases": {}}', b"null"])
def test_predictions_of_unknown_origin_are_kept_beside(dataset: Path, tmp_path: Path, manifest: bytes | None) -> None:
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    runner.run_benchmark(Silent(), benchmark, tmp_path, MADE_WITH)
    path = tmp_path / "predictions/refcoco_val.jsonl"
    before = path.read_bytes()
    if manifest is None:
        path.with_name("refcoco_val.manifest.json").unlink()
    else:
        path.with_name("refcoco_val.manifest.json").write_bytes(manifest)
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert len(segmenter.calls) == 3 and path.with_name("refcoco_val.replaced.jsonl").read_bytes() == before


def test_other_images_under_the_same_names_are_other_data(dataset: Path, tmp_path: Path, capsys) -> None:
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    runner.run_benchmark(Colours(), benchmark, tmp_path, MADE_WITH)
    path = benchmark.cases[0].image
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert len(segmenter.calls) == 3 and "1 image files differ, the first: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [48, 64], "counts": "\ud800"}}, "line 1|ref_id"),
        ({"segmentation": {"size": [60_000, 60_000], "counts": "PPPP"}}, "the mask is of size"),
        ({"segmentation": {"size": [48, 64], "counts": "o" * 20_000}}, "ref_id 130 sent_id 1300: "),
        ({"segmentation": {"size": [48.0, 64], "counts": "0"}}, "ref_id 130 sent_id 1300: "),
        ({"segmentation": [1]}, "ref_id 130 sent_id 1300: "),
        ({"ref_id": [1]}, "line 1: .* is no prediction"),
        ({"ref_id": float("nan")}, "1 lines are of no case"),
        ({"ref_id": "x" * 1_000_000}, "1 lines are of no case"),
    ],
)
def test_lines_of_others_are_refused_by_name(dataset: Path, tmp_path: Path, change: dict, message: str) -> None:
    cases = runner.open_benchmark("refcoco:val", dataset).cases
    rows = [{"ref_id": case.ref_id, "sent_id": case.sent_id, "segmentation": None} for case in cases]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [rows[0] | change, *rows[1:]]))
    with pytest.raises(UserError, match=message) as error:
        runner.score_file(file, "refcoco:val", dataset)
    assert str(file) in str(error.value) and len(str(error.value)) < 1000


def test_pipes_and_folders_are_not_read(dataset: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(DatasetError, match=f"is {kind}"):
            runner.score_file(path, "refcoco:val", dataset)


def test_a_model_that_says_nothing_is_noticed(dataset: Path, tmp_path: Path) -> None:
    class Mute:
        def segment(self, image, expressions):
            return [Answer(" ", []) for _ in expressions]

    benchmark = runner.open_benchmark("refcoco:val", dataset)
    assert runner.run_benchmark(Mute(), benchmark, tmp_path, MADE_WITH)["empty"] == 18
    assert "empty" not in runner.run_benchmark(Silent(), benchmark, tmp_path, {"checkpoint": "b"})


def test_an_image_that_goes_away_loses_nothing(dataset: Path, tmp_path: Path) -> None:
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    image = benchmark.cases[6].image
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(BadSample, match=f"refcoco:val: no image file {image}; the predictions so far are kept: put"):
        runner.run_benchmark(Colours(), benchmark, tmp_path, MADE_WITH)
    image.write_bytes(content)
    segmenter = Colours()
    # the manifest was written while the image was away
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert len(segmenter.calls) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_image_and_says_how_far_it_came(dataset: Path, tmp_path: Path, number: int) -> None:
    class Interrupted(Colours):
        def segment(self, image, expressions):
            answers = super().segment(image, expressions)
            if len(self.calls) == 2:
                os.kill(os.getpid(), number)
            return answers

    benchmark = runner.open_benchmark("refcoco:val", dataset)
    before = {n: signal.signal(n, on_signal) for n in SIGNALS}
    try:
        with pytest.raises(Stopped, match="stopped after 12 of 18 cases of refcoco:val; they are kept") as stopped:
            runner.run_benchmark(Interrupted(), benchmark, tmp_path, MADE_WITH)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert stopped.value.status == (130 if number == signal.SIGINT else 143)
    segmenter = Colours()
    runner.run_benchmark(segmenter, benchmark, tmp_path, MADE_WITH)
    assert len(segmenter.calls) == 1


# --- metrics.json ---------------------------------------------------------------------------------------------------


def _report(out: Path, hide: str | None, *names: str) -> Report:
    return Report(out, Path("a"), {"settings": {"hide": hide}}, names, out)


def _scored(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())["benchmarks"]


def test_scores_of_several_calls_stand_side_by_side(tmp_path: Path) -> None:
    _report(tmp_path, None, "refcoco:val").add("refcoco:val", {"ciou": 1.0})
    assert json.loads((tmp_path / "metrics.json").read_text())["checkpoint"] == "a"
    report = _report(tmp_path, None, *perbench.TASKS)
    for name, scores in zip(
        perbench.TASKS,
        ({"meteor": 3.0, "meteor_coco": 1.0}, {"accuracy": 6.0, "accuracy_option": 1.0},
         {"ciou": 3.0, "giou": 3.0, "ciou_union": 1.0, "giou_union": 1.0}),
        strict=True,
    ):  # fmt: skip
        assert perbench.KIND not in report.scores
        report.add(name, scores)
    assert list(_scored(tmp_path)) == ["refcoco:val", *perbench.TASKS, perbench.KIND]
    assert _scored(tmp_path)[perbench.KIND] == {"overall": 4.0, "overall_ours": 1.0}
    report.add("perbench:mcq", {"accuracy": 9.0, "accuracy_option": 1.0})
    assert _scored(tmp_path)[perbench.KIND]["overall"] == 5.0


def test_scores_on_drawn_images_say_so(tmp_path: Path) -> None:
    """They have the names of others, and are not theirs: "refcoco:val" alone would claim RefCOCO."""
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "scenes.json").write_text("{}")
    for root, data in ((drawn, "drawn scenes"), (tmp_path, None)):
        report = Report(tmp_path / f"out_{data}", Path("a"), {}, ["refcoco:val"], root)
        report.add("refcoco:val", {"ciou": 1.0, "small_below": 2.0})
        assert report.facts("refcoco:val").get("data") == data
        metrics = read_metrics(report.path)
        name = "refcoco:val of drawn scenes" if data else "refcoco:val"
        assert dataset_name("refcoco:val", metrics) == name
        front = front_matter("m", [], metrics, None, False)
        assert f"name: {name}\n" in front and "type: ciou" in front and "small_below" not in front
        card = _scores(metrics)
        assert f"| {name} | ciou 1, small_below 2 |" in card


def test_scores_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    report = _report(tmp_path, None, "refcoco:val", "grefcoco:val")
    report.add("refcoco:val", {"ciou": 1.0})
    report.add("grefcoco:val", {"ciou": 2.0})
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(
        UserError, match='scores of grefcoco:val, which .* settings.hide was null, is "image"; give anot'
    ):
        _report(tmp_path, "image", "refcoco:val")
    assert (tmp_path / "metrics.json").read_bytes() == before
    both = _report(tmp_path, "image", "refcoco:val", "grefcoco:val")
    both.add("refcoco:val", {"ciou": 3.0})
    assert _scored(tmp_path) == {"refcoco:val": {"ciou": 3.0}}, "a kill now leaves no score of the other settings"


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"benchmarks": [1]}', b'{"benchmarks": {"a": 1}}', b"\xff", b"[" * 10**5]
    + [b'{"benchmarks": {}, "runs": {"a": 1}}', b'{"benchmarks": {}, "definitions": []}']
    + [f'{{"benchmarks": {{"a": {{"images": {value}}}}}}}'.encode() for value in ('"inf"', "NaN", "Infinity", "true")],
)
def test_a_damaged_metrics_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json"):
        _report(tmp_path, None, "refcoco:val")


def _predictions(root: Path, name: str, path: Path) -> Path:
    cases = runner.open_benchmark(name, root).cases
    rows = [{"ref_id": case.ref_id, "sent_id": case.sent_id, "segmentation": case.mask} for case in cases]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_failure_in_the_second_benchmark_leaves_the_first(dataset: Path, tmp_path: Path) -> None:
    first, second = _predictions(dataset, "refcoco:val", tmp_path / "p.jsonl"), tmp_path / "q.jsonl"
    second.write_text("nonsense\n")
    out = tmp_path / "out"
    call = ["tools/test.py", "--data-root", dataset, "--out", out]
    files = ["--benchmark", "refcoco:val", "--predictions", first]
    status, printed = run_tool(*call, *files, "--benchmark", "grefcoco:val", "--predictions", second)
    assert status == 1 and "q.jsonl, line 1" in printed and "Traceback" not in printed
    assert _scored(out)["refcoco:val"]["ciou"] == 100 and sorted(os.listdir(out)) == ["metrics.json", "report"]
    _predictions(dataset, "grefcoco:val", second)
    status, printed = run_tool(*call, "--benchmark", "grefcoco:val", "--predictions", second)
    assert status == 0 and list(_scored(out)) == ["refcoco:val", "grefcoco:val"], printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-images", "0"], "argument --max-images: '0' is not a whole number of at least 1"),
        (["--max-images", "x"], "argument --max-images: 'x' is not a whole number of at least 1"),
        (["--min-pixels", "-1"], "argument --min-pixels: '-1' is not a whole number of at least 0"),
        (["--gallery", "-1"], "argument --gallery: '-1' is not a whole number of at least 0"),
        (["--benchmark", "refcoco:val"], "--benchmark refcoco:val is given more than once"),
    ],
)
def test_numbers_that_mean_nothing(monkeypatch, capsys, options: list[str], message: str) -> None:
    from in_process import load_tool

    monkeypatch.setattr("sys.argv", ["test.py", "nowhere", "--benchmark", "refcoco:val", "--out", "x", *options])
    with pytest.raises(SystemExit) as error:
        load_tool("test").main()
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_the_folder_is_looked_at_before_the_model(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "file").write_text("")
    status, printed = run_tool(
        "tools/test.py", tmp_path / "no_model", "--benchmark", "refcoco:val", "--data-root", dataset,
        "--out", tmp_path / "file/out",
    )  # fmt: skip
    assert status == 1 and "cannot write into" in printed and "is not a folder" in printed


def test_two_processes_on_one_folder(tmp_path: Path, dataset: Path) -> None:
    from pixel_sail.locks import locked

    file = _predictions(dataset, "refcoco:val", tmp_path / "p.jsonl")
    with locked(tmp_path / "out/.lock", "the folder"):
        status, printed = run_tool(
            "tools/test.py", "--benchmark", "refcoco:val", "--predictions", file, "--data-root", dataset,
            "--out", tmp_path / "out",
        )  # fmt: skip
    assert (
        status == 1
        and f"is in use by process {os.getpid()}" in printed
        and not (tmp_path / "out/metrics.json").exists()
    )


def test_numbers_that_are_not_finite_have_no_answer(dataset: Path, tmp_path: Path) -> None:
    from tiny_predictor import tiny_predictor

    predictor = tiny_predictor()
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    for parameter in predictor.model.language_model.get_output_embeddings().parameters():
        parameter.data[3] = float("nan")
    with pytest.raises(UserError, match=rf"refcoco:val, {benchmark.cases[0].image}: .* not finite"):
        runner.run_benchmark(predictor, benchmark, tmp_path, MADE_WITH)


class Failing(Colours):
    def segment(self, image, expressions):
        raise BadSample("this image is torn")


class Slow(Colours):
    def segment(self, image, expressions):
        time.sleep(0.3)  # so that the news of the other rank comes between two images
        return super().segment(image, expressions)


def _one_rank(rank: int, world: int, port: int, root: Path, out: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo")
    segmenter = Failing() if rank else Slow()
    try:
        runner.run_benchmark(segmenter, runner.open_benchmark("refcoco:val", root), out, MADE_WITH)
    except UserError as error:
        (out / f"error{rank}").write_text(f"{error.on_all_ranks} {error}")
    (out / f"calls{rank}").write_text(str(len(segmenter.calls)))
    dist.destroy_process_group()


def test_an_error_of_one_rank_ends_all(dataset: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_rank, args=(2, free_port(), dataset, tmp_path), nprocs=2)
    for rank in (0, 1):
        told = (tmp_path / f"error{rank}").read_text()
        assert told.startswith("True ") and "refcoco:val: this image is torn; the predictions so far are kept" in told
    assert "rank 1" in (tmp_path / "error0").read_text() and _files(tmp_path)[0] == "refcoco_val.manifest.json"
    assert not any(name.endswith(".stop") for name in _files(tmp_path))
