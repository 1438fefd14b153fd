"""Scores a checkpoint, or a file of predictions, on benchmarks.

    python tools/test.py data/models/tiny --benchmark refcoco:val --benchmark grefcoco:val --out outputs/scores
    python tools/test.py data/models/tiny --benchmark perbench --benchmark region_caption:refcocog --out out
    deepspeed --num_accelerators 2 tools/test.py data/models/tiny --benchmark refcoco:val --out outputs/scores
    python tools/test.py --predictions refcoco_val.jsonl --benchmark refcoco:val --data-root data/coco

Repeat an interrupted command to continue it where it stopped. Caption scores need Java, PerBench's METEOR needs
WordNet; without them, the tool says so and gives the other scores. metrics.json and the lines below the table say by
whose definition each score is computed (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import add_min_presence, whole
from pixel_sail.evaluate.kinds import benchmark_help, tasks_of

MAX_SHOWN = 400  # cases of a page, which is an image in memory


@tool
def main() -> None:
    arguments = _parse()
    with importing():
        from pixel_sail.commands.work import test as work
    work.run(arguments)


def _parse() -> argparse.Namespace:
    description = f"{__doc__}\nbenchmarks:\n{benchmark_help()}"
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
    parser.add_argument(
        "--zoom",
        action="store_true",
        help="referring segmentation and ReasonSeg: look again at what is small, in a crop",
    )
    add_min_presence(parser)
    parser.add_argument("--judge-model", help="reads free answers: a folder, or with --judge-url a name there")
    parser.add_argument("--judge-url", help="an endpoint of OpenAI's protocol, for example https://host/v1")
    parser.add_argument("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with its key")
    parser.add_argument(
        "--judge-replies",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a judge's replies to the requests that this tool wrote (docs/benchmarks.md); may be repeated",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from launchers; LOCAL_RANK says the same
    parser.add_argument(
        "--hide", choices=("none", "image", "prompts"), help="blind the model: zero pixels, or prompts only in the text"
    )
    arguments = parser.parse_args()
    arguments.benchmark = [task for name in arguments.benchmark for task in tasks_of(name)]
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
