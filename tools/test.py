"""Scores a checkpoint, or a file of predictions, on benchmarks.

    python tools/test.py runs/quickstart/export --benchmark refcoco:val --benchmark grefcoco:val --out outputs/scores
    python tools/test.py runs/quickstart/export --benchmark perbench --benchmark region_caption:refcocog --out out
    deepspeed --num_accelerators 2 tools/test.py runs/quickstart/export --benchmark refcoco:val --out outputs/scores
    python tools/test.py --predictions refcoco_val.jsonl --benchmark refcoco:val --data-root data/coco

Repeat an interrupted command to continue it where it stopped. Caption scores need Java, PerBench's METEOR needs
WordNet; without them, the tool says so and gives the other scores. metrics.json and the lines below the table say by
whose definition each score is computed (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixel_sail.command import tool
from pixel_sail.arguments import whole
from pixel_sail.devices import choose_device
from pixel_sail.evaluate import perbench, runner
from pixel_sail.evaluate.benchmark import Benchmark, Options
from pixel_sail.evaluate.file_names import file_name
from pixel_sail.evaluate.gallery import MAX_SHOWN, write_gallery
from pixel_sail.evaluate.page.report import write_report, write_section
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.evaluate.pixfoundation.judge import Judge, Reply, endpoint, local_model
from pixel_sail.evaluate.predictions import PredictionFiles, read_lines, rename_earlier
from pixel_sail.evaluate.report import Report
from pixel_sail.locks import locked
from pixel_sail.ranks import together
from pixel_sail.weights.start import find_export
from pixel_sail.writable import check_writable


@tool
def main() -> None:
    arguments = _parse()
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


def _parse() -> argparse.Namespace:
    description = f"{__doc__}\nbenchmarks:\n{runner.benchmark_help()}"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="an export folder; left out with --predictions")
    parser.add_argument("--benchmark", action="append", required=True, help="a name as above; may be repeated")
    parser.add_argument("--predictions", type=Path, action="append", help="score this file; one for each --benchmark")
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--out", type=Path, help="folder for metrics.json, report.html and predictions/")
    parser.add_argument("--max-images", type=whole(1), metavar="N", help="only the first N images of each benchmark")
    parser.add_argument(
        "--min-pixels",
        type=whole(0),
        default=0,
        metavar="N",
        help="gRefCOCO: a prediction below N pixels counts as empty (default 0, as in the paper; later code takes 50)",
    )
    parser.add_argument(
        "--gallery", type=whole(0), default=0, metavar="N", help="also write a page of N cases a benchmark"
    )
    parser.add_argument("--judge-model", help="reads free answers: a folder, or with --judge-url a name there")
    parser.add_argument("--judge-url", help="an endpoint of OpenAI's protocol, for example https://host/v1")
    parser.add_argument("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with its key")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from launchers; LOCAL_RANK says the same
    parser.add_argument(
        "--hide", choices=("none", "image", "prompts"), help="blind the model: zero pixels, or prompts only in the text"
    )
    arguments = parser.parse_args()
    arguments.benchmark = [task for name in arguments.benchmark for task in runner.tasks_of(name)]
    if arguments.gallery > MAX_SHOWN:
        parser.error(f"--gallery {arguments.gallery}: a page has at most {MAX_SHOWN} cases")
    repeated = [name for name in arguments.benchmark if arguments.benchmark.count(name) > 1]
    if repeated:
        parser.error(f"--benchmark {repeated[0]} is given more than once")
    if (arguments.checkpoint is None) == (arguments.predictions is None):
        parser.error("give either a CHECKPOINT or --predictions FILE")
    if arguments.predictions and len(arguments.predictions) != len(arguments.benchmark):
        parser.error(f"{len(arguments.predictions)} --predictions for {len(arguments.benchmark)} --benchmark")
    if arguments.judge_url and not arguments.judge_model:
        parser.error("--judge-url needs --judge-model, the name of a model there")
    if arguments.checkpoint and arguments.out is None:
        parser.error("--out is needed with a CHECKPOINT")
    return arguments


def _score_files(arguments: argparse.Namespace) -> Report:
    made_with = {"max_images": arguments.max_images}
    with _held(arguments.out):
        report = Report(arguments.out, None, made_with, arguments.benchmark)
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
        predictor = together(lambda: Predictor.from_pretrained(arguments.checkpoint, device, arguments.precision))
        if arguments.hide is not None:
            predictor.encoder.hide = arguments.hide
        model = predictor.model
        made_with = runner.fingerprint(
            arguments.checkpoint, device=model.device.type, dtype=str(model.dtype), hide=predictor.encoder.hide
        )
        settings = made_with | {"max_images": arguments.max_images}
        arguments.benchmark = [benchmark.name for benchmark in benchmarks]  # "gcg" is gcg:grand_f:val
        report = on_rank_0(Report, arguments.out, arguments.checkpoint, settings, arguments.benchmark)
        for benchmark in benchmarks:
            scores = runner.run_benchmark(predictor, benchmark, arguments.out, made_with | _asked(benchmark))
            on_rank_0(_add, report, benchmark, scores, arguments.out)
        for benchmark in benchmarks if arguments.gallery and is_first else ():
            print(f"gallery: {write_gallery(benchmark, arguments.out, arguments.gallery)}")
    return report


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
    return Options(arguments.min_pixels, judge)


def _judge(arguments: argparse.Namespace, verdicts: Path) -> Judge | None:
    model, url = arguments.judge_model, arguments.judge_url
    if model is None:
        return None
    if url:
        return Judge(f"{model} at {url}", endpoint(url, model, os.environ.get(arguments.judge_key_env)), verdicts)
    return Judge(model, _local_judge(Path(model), arguments.device), verdicts)


def _local_judge(folder: Path, device: str) -> Reply:
    return local_model(folder, str(choose_device(device)))


if __name__ == "__main__":
    main()
