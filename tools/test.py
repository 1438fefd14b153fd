"""Scores a checkpoint, or a file of predictions, on benchmarks.

    python tools/test.py runs/quickstart/export --benchmark refcoco:val --benchmark grefcoco:val --out outputs/scores
    python tools/test.py runs/quickstart/export --benchmark perbench --benchmark region_caption:refcocog --out out
    deepspeed --num_accelerators 2 tools/test.py runs/quickstart/export --benchmark refcoco:val --out outputs/scores
    python tools/test.py --predictions refcoco_val.jsonl --benchmark refcoco:val --data-root data/coco

Benchmarks: <dataset>:<split> for refcoco, refcoco+, refcocog and grefcoco; perbench (all three tasks and the overall
score) or perbench:caption, perbench:mcq, perbench:vtres; region_caption:<dataset>[:<split>]; reasonseg[:<split>];
gcg[:<dataset>[:<split>]] for grand_f (the default), open_psg, refcocog_gcg, flickr_gcg; pixmmvp and pixcvbench
(docs/pixfoundation.md), where a judge may read free answers. Caption scores need Java: where it is missing, that is
said and the rest is scored. An interrupted call goes on where it stopped when repeated.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from pixel_sail.config import ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate import captions, perbench, runner
from pixel_sail.evaluate.benchmark import Benchmark
from pixel_sail.evaluate.gallery import write_page
from pixel_sail.evaluate.pixfoundation.judge import Judge, JudgeError, Reply, endpoint, local_model
from pixel_sail.metrics import MIN_PIXELS
from pixel_sail.types import BadSample


def main() -> None:
    arguments = _parse()
    try:
        if arguments.predictions:
            results: dict[str, dict[str, Any]] | None = {
                name: runner.score_file(
                    file,
                    name,
                    arguments.data_root,
                    arguments.max_images,
                    arguments.min_pixels,
                    _judge(arguments, file),
                )
                for file, name in zip(arguments.predictions, arguments.benchmark, strict=True)
            }
        else:
            results = _score_checkpoint(arguments)
    except (BadSample, DatasetError, ConfigError, FileNotFoundError, JudgeError) as error:
        raise SystemExit(f"error: {error}") from None
    if results is None:  # not rank 0
        return
    if any(scores.get("meteor", 0) is None for scores in results.values()) and captions.why_not():
        print(captions.why_not())
    together = perbench.overall(results)
    if together is not None:
        results[perbench.FOLDER] = {"overall": together}
    print(runner.table(results))
    for name, scores in results.items():
        if scores.get("undecided"):
            where = "listed in metrics.json" if arguments.out else "listed with --out"
            print(f"{name}: {scores['undecided']} answers choose no option; they count as wrong and are {where}")
    if arguments.out is not None:
        print(f"written: {runner.write_metrics(arguments.out, arguments.checkpoint, results)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="an export folder; left out with --predictions")
    parser.add_argument("--benchmark", action="append", required=True, help="see above; may be repeated")
    parser.add_argument("--predictions", type=Path, action="append", help="score this file; one for each --benchmark")
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--out", type=Path, help="folder of metrics.json and predictions/")
    parser.add_argument("--max-images", type=int, help="only the first N images of each benchmark")
    parser.add_argument("--min-pixels", type=int, default=MIN_PIXELS, help="gRefCOCO: fewer count as empty; 0: off")
    parser.add_argument("--gallery", type=int, default=0, metavar="N", help="also a page of N cases of each benchmark")
    parser.add_argument("--judge-model", help="reads free answers: a folder, or with --judge-url a name there")
    parser.add_argument("--judge-url", help="an endpoint of OpenAI's protocol, for example https://host/v1")
    parser.add_argument("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with its key")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # given by launchers; LOCAL_RANK says the same
    parser.add_argument(
        "--hide", choices=("none", "image", "prompts"), help="blind the model: zero pixels, or prompts only in the text"
    )
    arguments = parser.parse_args()
    tasks = {perbench.FOLDER: perbench.TASKS}
    arguments.benchmark = [name for given in arguments.benchmark for name in tasks.get(given, (given,))]
    if (arguments.checkpoint is None) == (arguments.predictions is None):
        parser.error("give either a CHECKPOINT or --predictions FILE")
    if arguments.predictions and len(arguments.predictions) != len(arguments.benchmark):
        parser.error(f"{len(arguments.predictions)} --predictions for {len(arguments.benchmark)} --benchmark")
    if arguments.judge_url and not arguments.judge_model:
        parser.error("--judge-url needs --judge-model, the name of a model there")
    if arguments.checkpoint and arguments.out is None:
        parser.error("--out is needed with a CHECKPOINT")
    return arguments


def _score_checkpoint(arguments: argparse.Namespace) -> dict[str, dict[str, Any]] | None:
    from pixel_sail.serve.predictor import Predictor
    from pixel_sail.train import distributed  # here and not above: --predictions needs no process group

    benchmarks = [_open(name, arguments) for name in arguments.benchmark]
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        distributed.start()
    device = str(distributed.device()) if several and arguments.device == "auto" else arguments.device
    try:
        predictor = Predictor.from_pretrained(arguments.checkpoint, device=device, precision=arguments.precision)
    except ValueError as error:  # weights that do not fit
        raise SystemExit(f"error: {error}") from None
    if arguments.hide is not None:
        predictor.encoder.hide = arguments.hide
    model = predictor.model
    made_with = runner.fingerprint(
        arguments.checkpoint, device=model.device.type, dtype=str(model.dtype), hide=predictor.encoder.hide
    )
    results = {
        benchmark.name: runner.run_benchmark(predictor, benchmark, arguments.out, made_with) for benchmark in benchmarks
    }
    if arguments.gallery and None not in results.values():
        for benchmark in benchmarks:
            print(f"images: {write_page(benchmark, arguments.out, arguments.gallery)}")
    distributed.stop()
    return None if None in results.values() else results


def _judge(arguments: argparse.Namespace, predictions: Path) -> Judge | None:
    """The judge, whose verdicts lie beside a file of predictions."""
    model, url = arguments.judge_model, arguments.judge_url
    if model is None:
        return None
    reply = endpoint(url, model, os.environ.get(arguments.judge_key_env)) if url else _local_judge(model, arguments)
    return Judge(f"{model} at {url}" if url else model, reply, predictions.with_suffix(".verdicts.jsonl"))


def _local_judge(folder: str, arguments: argparse.Namespace) -> Reply:
    import torch

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return local_model(Path(folder), automatic if arguments.device == "auto" else arguments.device)


def _open(name: str, arguments: argparse.Namespace) -> Benchmark:
    judge = _judge(arguments, arguments.out / "predictions" / f"{name}.jsonl")
    benchmark = runner.open_benchmark(name, arguments.data_root, arguments.max_images, arguments.min_pixels, judge)
    if os.environ.get("RANK", "0") == "0" and (problems := runner.list_problems(benchmark, arguments.out)):
        print(problems)
    return benchmark


if __name__ == "__main__":
    main()
