"""What `pixel-sail grounding-emergence` does: attend-and-segment where needed, summary and figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pixel_sail.evaluate.pixfoundation import pixcvbench, pixmmvp
from pixel_sail.studies.attend_segment.phrases import require_spacy_model
from pixel_sail.studies.emergence.best_phrase import read_answers, summarize, table, write_results
from pixel_sail.studies.emergence.figures import write_examples, write_histograms
from pixel_sail.studies.plotting import why_no_plots
from pixel_sail.studies.tool_process import run_tool
from pixel_sail.writable import check_writable

READERS = {pixmmvp.KIND: pixmmvp.read_objects, pixcvbench.KIND: pixcvbench.read_objects}


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    objects = {target.index: target for target in READERS[arguments.benchmark](arguments.data_root)}
    answers = read_answers(arguments.phrases or _attend(arguments), objects)
    results = summarize(answers, objects)
    written = [write_results(results, arguments.out)]
    if not why_no_plots():
        written.append(write_histograms(results, arguments.out))
    written += write_examples(results, objects, arguments.out, arguments.examples)
    print("\n".join([table(results), *filter(None, [why_no_plots()]), f"written: {', '.join(map(str, written))}"]))


def _attend(arguments: argparse.Namespace) -> Path:
    """Run attend-and-segment on the model and return the path of its phrases. SystemExit if it fails.

    Its process prints why. Raises ConfigError without spaCy.
    """
    require_spacy_model()
    out = arguments.out / "attend"
    command = [sys.executable, "-m", "pixel_sail", "attend-segment", arguments.model]
    command += ["--family", arguments.family, "--segmenter", arguments.segmenter or f"pixel_sail:{arguments.model}"]
    command += ["--benchmark", arguments.benchmark, "--data-root", str(arguments.data_root), "--out", str(out)]
    for option in ("max_images", "prompt"):
        value = getattr(arguments, option)
        if value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    status = run_tool(command)
    if status:
        raise SystemExit(status)
    return out / "phrases.jsonl"
