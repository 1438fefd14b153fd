"""Masks from the attention of any multimodal model, trained to segment or not: PixFoundation's attend-and-segment.

    python tools/attend_segment.py /models/llava-1.5-7b-hf --segmenter sam:/models/sam-vit-huge \\
        --benchmark pixmmvp --data-root data --out outputs/attend
    python tools/attend_segment.py runs/quickstart/export --segmenter pixel_sail:runs/quickstart/export \\
        --benchmark pixmmvp --data-root data/scenes --out outputs/attend
    python tools/test.py --predictions outputs/attend/predictions/oracle.jsonl --benchmark pixmmvp --data-root data

Needs spaCy and an English model of it (pip install 'pixel_sail[phrases]'; python -m spacy download en_core_web_sm).

Families: our own models, llava (1.5), qwen_vl (Qwen2-VL, Qwen2.5-VL), internvl (the -hf checkpoints), gemma3. The
model also answers the benchmark's questions. A model that was trained to answer with masks may say nothing but [SEG],
which contains no noun phrase: then give a --prompt that it answers in words. Written: phrases.jsonl, predictions/ of
the oracle and of the automatic choice, metrics.json. Repeat an interrupted call to continue it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixel_sail.command import tool
from pixel_sail.arguments import whole
from pixel_sail.devices import choose_device
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.pixfoundation.benchmark import KINDS, PixBenchmark
from pixel_sail.locks import locked
from pixel_sail.studies.attend_segment import baseline, phrases, segmenters, select
from pixel_sail.studies.attend_segment.adapters import FAMILIES, open_adapter
from pixel_sail.writable import check_writable, writing_into

MAX_NEW_TOKENS = 2**16


@tool
def main() -> None:
    arguments = _parse()
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder (or hub name): an export of ours, or a Hugging Face model")
    parser.add_argument("--family", default="auto", choices=("auto", *FAMILIES))
    parser.add_argument("--segmenter", required=True, metavar="KIND:PATH", help=f"KIND: {', '.join(segmenters.KINDS)}")
    parser.add_argument("--benchmark", default=KINDS[0], choices=KINDS)
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-images", type=whole(1), help="only the first N images")
    parser.add_argument("--prompt", default=baseline.PROMPT, help=f"may contain {', '.join(baseline.FIELDS)}")
    parser.add_argument("--max-new-tokens", type=whole(1, MAX_NEW_TOKENS), default=256)
    parser.add_argument(
        "--select", default="words", choices=("words", "model"), help="automatic choice: by words, or ask the model"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
