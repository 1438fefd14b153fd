"""What `pixel-sail test` does: scores a checkpoint on all ranks, or a file."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixel_sail.devices import choose_device
from pixel_sail.evaluate import perbench, runner
from pixel_sail.evaluate.benchmark import Benchmark, Options
from pixel_sail.evaluate.file_names import file_name
from pixel_sail.evaluate.gallery import write_gallery
from pixel_sail.evaluate.page.report import write_report, write_section
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.evaluate.pixfoundation.judge import Judge, Reply, endpoint, local_model
from pixel_sail.evaluate.predictions import PredictionFiles, read_lines, rename_earlier
from pixel_sail.evaluate.report import Report
from pixel_sail.folders.find import find_export
from pixel_sail.locks import locked
from pixel_sail.model.generation import Sampling
from pixel_sail.ranks import together
from pixel_sail.weights.lineage import note_untrained_zoom
from pixel_sail.writable import check_writable


def run(arguments: argparse.Namespace) -> None:
    choose_device(arguments.device)
    report = _score_files(arguments) if arguments.predictions else _score_checkpoint(arguments)
    if report is None:  # not rank 0
        return
    names = [*arguments.benchmark, *({perbench.KIND} & set(report.scores))]
    results = {name: report.scores[name] for name in dict.fromkeys(names)}
    print(runner.table(results))
    print(f"definitions (docs/benchmarks.md):\n{runner.definitions_text(results)}")
    for message in dict.fromkeys(text for scores in results.values() for text in scores.get("problems", {}).values()):
        print(message)
    for name, scores in results.items():
        if scores.get("undecided"):
            where = "listed in metrics.json" if arguments.out else "listed with --out"
            print(f"{name}: {scores['undecided']} answers choose no option; they count as wrong and are {where}")
        if scores.get("empty"):
            print(f"{name}: all {scores['empty']} answers are empty: the model says nothing; are these its weights?")
    if arguments.out is not None:
        print(f"written: {report.path}\nto look at: {write_report(arguments.out)}")


def _score_files(arguments: argparse.Namespace) -> Report:
    made_with = {"max_images": arguments.max_images}
    with _held(arguments.out):
        report = Report(arguments.out, None, made_with, arguments.benchmark, arguments.data_root)
        for file, name in zip(arguments.predictions, arguments.benchmark, strict=True):
            options = _options(arguments, file)
            benchmark = runner.open_benchmark(name, arguments.data_root, arguments.max_images, options)
            lines = runner.checked_lines(file, benchmark)
            report.add(name, runner.score_lines(benchmark, lines))
            if arguments.out is not None:
                write_section(benchmark, lines, arguments.out, report.facts(name))
    return report


def _score_checkpoint(arguments: argparse.Namespace) -> Report | None:
    """The report on rank 0, None on the others."""
    from pixel_sail.serve.predictor import Predictor
    from pixel_sail.train import distributed  # here and not above: --predictions needs no process group

    arguments.checkpoint = find_export(arguments.checkpoint)
    with distributed.joined(), contextlib.ExitStack() as stack:
        is_first = distributed.rank() == 0

        def on_rank_0(function: Callable[..., Any], *values: Any) -> Any:
            """Its result on rank 0, None on the others; its error on all."""
            return together(lambda: function(*values) if is_first else None)

        several = distributed.world_size() > 1
        device = str(distributed.device()) if several and arguments.device == "auto" else arguments.device
        on_rank_0(stack.enter_context, _held(arguments.out, arguments.gallery))
        benchmarks = together(lambda: [_open(name, arguments, is_first) for name in arguments.benchmark])

        def open_model() -> Predictor:
            predictor = Predictor.from_pretrained(arguments.checkpoint, device, arguments.precision)
            predictor.set_min_presence(arguments.min_presence)
            # scores are of greedy answers, however generation_config.json samples
            predictor.sampling = Sampling(min_presence=predictor.sampling.min_presence)
            return predictor

        predictor = together(open_model)
        if arguments.zoom:
            on_rank_0(note_untrained_zoom, arguments.checkpoint)
        if arguments.hide is not None:
            predictor.encoder.hide = arguments.hide
        predictor.zoom, model = arguments.zoom, predictor.model
        made_with = runner.fingerprint(
            arguments.checkpoint,
            device=model.device.type,
            dtype=str(model.dtype),
            hide=predictor.encoder.hide,
            **_other_than_usual(arguments.zoom, predictor.sampling.min_presence),
        )
        settings = made_with | {"max_images": arguments.max_images}
        arguments.benchmark = [benchmark.name for benchmark in benchmarks]  # "gcg" is gcg:grand_f:val
        of_report = (arguments.out, arguments.checkpoint, settings, arguments.benchmark, arguments.data_root)
        report = on_rank_0(Report, *of_report)
        for benchmark in benchmarks:
            scores = runner.run_benchmark(predictor, benchmark, arguments.out, made_with | _asked(benchmark))
            on_rank_0(_add, report, benchmark, scores, arguments.out)
        for benchmark in benchmarks if arguments.gallery and is_first else ():
            print(f"gallery: {write_gallery(benchmark, arguments.out, arguments.gallery)}")
    return report


def _other_than_usual(zoom: bool, min_presence: float) -> dict[str, Any]:
    """What answers also depend on, as settings: left out as long as they are off, as in the files of earlier runs."""
    return {name: value for name, value in (("zoom", zoom), ("min_presence", min_presence)) if value}


def _add(report: Report, benchmark: Benchmark, scores: dict[str, Any], out: Path) -> None:
    report.add(benchmark.name, scores)
    lines = read_lines(PredictionFiles(out, benchmark).final, benchmark)
    write_section(benchmark, lines, out, report.facts(benchmark.name))


@contextlib.contextmanager
def _held(out: Path | None, gallery: int = 0) -> Iterator[None]:
    """The folder of results can be written, and is ours alone. Raises FileError, Busy."""
    if out is None:
        yield
        return
    for folder in (out, out / "predictions", out / "report", *([out / "gallery"] if gallery else [])):
        check_writable(folder)
    with locked(out / ".lock", f"the folder {out}"):
        yield


def _asked(benchmark: Benchmark) -> dict[str, Any]:
    """The wordings of a benchmark that has several: predictions in other wordings are not continued."""
    if not isinstance(benchmark, PixBenchmark):
        return {}
    return {"wordings": [list(benchmark.wordings.questions), list(benchmark.wordings.requests)]}


def _open(name: str, arguments: argparse.Namespace, is_first: bool) -> Benchmark:
    if is_first:
        rename_earlier(arguments.out, name)
    options = _options(arguments, arguments.out / "predictions" / f"{file_name(name)}.jsonl")
    benchmark = runner.open_benchmark(name, arguments.data_root, arguments.max_images, options)
    if is_first and (problems := PredictionFiles(arguments.out, benchmark).list_problems()):
        print(problems)
    return benchmark


def _options(arguments: argparse.Namespace, predictions: Path) -> Options:
    judge = _judge(arguments, predictions.with_suffix(".verdicts.jsonl"))
    requests = predictions.with_suffix(".requests.jsonl")
    return Options(arguments.min_pixels, judge, requests, tuple(arguments.judge_replies))


def _judge(arguments: argparse.Namespace, verdicts: Path) -> Judge | None:
    model, url = arguments.judge_model, arguments.judge_url
    if model is None:
        return None
    if url:
        return Judge(f"{model} at {url}", endpoint(url, model, os.environ.get(arguments.judge_key_env)), verdicts)
    return Judge(model, _local_judge(Path(model), arguments.device), verdicts)


def _local_judge(folder: Path, device: str) -> Reply:
    return local_model(folder, str(choose_device(device)))
