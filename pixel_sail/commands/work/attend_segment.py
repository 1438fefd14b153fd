"""What `pixel-sail attend-segment` does: opens its parts, collects and scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixel_sail.devices import choose_device
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.pixfoundation.benchmark import PixBenchmark
from pixel_sail.locks import locked
from pixel_sail.studies.attend_segment import baseline, phrases, segmenters, select
from pixel_sail.studies.attend_segment.adapters import open_adapter
from pixel_sail.writable import check_writable, writing_into


def run(arguments: argparse.Namespace) -> None:
    choose_device(arguments.device)
    chunker = phrases.open_chunker()  # first: without spaCy nothing else needs to be loaded
    benchmark = runner.open_benchmark(arguments.benchmark, arguments.data_root, arguments.max_images)
    if benchmark.problems:
        print(f"{len(benchmark.problems)} rows of {benchmark.name} are left out, the first: {benchmark.problems[0]}")
    check_writable(arguments.out)
    with locked(arguments.out / ".lock", f"the folder {arguments.out}"), writing_into(arguments.out):
        _write(_run(arguments, chunker, benchmark), arguments)


def _write(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    print(runner.table(results))
    print(f"definitions (docs/benchmarks.md):\n{runner.definitions_text({arguments.benchmark: results['oracle']})}")
    defined = {name: runner.definitions({arguments.benchmark: scores}) for name, scores in results.items()}
    definitions = {name: texts.get(arguments.benchmark, {}) for name, texts in defined.items()}
    print(f"written: {runner.write_metrics(arguments.out, Path(arguments.model), results, definitions)}")


def _run(arguments: argparse.Namespace, chunker: phrases.Chunker, benchmark: PixBenchmark) -> dict[str, dict[str, Any]]:
    adapter = open_adapter(arguments.model, arguments.family, arguments.device, arguments.precision)
    parts = baseline.Baseline(
        adapter,
        segmenters.open_segmenter(arguments.segmenter, arguments.device, arguments.precision),
        chunker,
        select.AskModel(adapter) if arguments.select == "model" else select.by_words,
        benchmark.wordings.questions,
        arguments.prompt,
        arguments.max_new_tokens,
    )
    _, _, segmenter_path = arguments.segmenter.partition(":")
    made_with = {
        "model": runner.fingerprint(Path(arguments.model), family=adapter.family, precision=arguments.precision),
        "segmenter": runner.fingerprint(Path(segmenter_path), spec=arguments.segmenter),
        "phrases": phrases.spacy_model(),
        "settings": [arguments.benchmark, arguments.prompt, arguments.max_new_tokens, arguments.select],
        "wordings": list(benchmark.wordings.questions),
    }
    records = baseline.collect(benchmark.cases, parts, arguments.out, made_with)
    return baseline.score(benchmark, records, arguments.out)
