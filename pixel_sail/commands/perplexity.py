"""The perplexity of a model on plain text: what training on images has cost its language.

    python tools/perplexity.py runs/base_scenes --root data/scenes_base
    python tools/perplexity.py MODEL --files 'slimpajama/test/*.jsonl' --key text --max-texts 2000 --out perplexity.json

Compare models of one tokenizer, on the same texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an export folder, or a run")
    parser.add_argument(
        "--root", type=Path, default=Path("data/scenes_base"), help="has text/val/, or what --files names"
    )
    parser.add_argument("--split", default="val", help="without --files: the folder text/SPLIT of the root")
    parser.add_argument("--files", help="as `files` of source text in data.mixture: docs/base.md")
    parser.add_argument("--key", help="of the text in a line, or its column (default: text)")
    parser.add_argument("--max-texts", type=whole(1), metavar="N", help="only the first N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    with importing():
        from pixel_sail.config import DataConfig, MixtureEntry
        from pixel_sail.data.sources import open_source
        from pixel_sail.durable import write_json
        from pixel_sail.evaluate.perplexity import perplexity
        from pixel_sail.serve.predictor import Predictor
        from pixel_sail.writable import check_writable
    if arguments.out is not None:
        check_writable(arguments.out.absolute().parent)
    entry = MixtureEntry(source="text", split=arguments.split, files=arguments.files, key=arguments.key)
    source = open_source(entry, DataConfig(root=arguments.root, mixture=[entry]))
    predictor = Predictor.from_pretrained(arguments.model, arguments.device, arguments.precision)
    values = perplexity(predictor, source, arguments.max_texts)
    unusable = f", {values['unusable']} of them unusable" if values["unusable"] else ""
    print(
        f"perplexity {values['perplexity']:.3f} of {values['tokens']:,} tokens in {values['texts']:,} texts{unusable}"
    )
    if arguments.out is not None:
        write_json(arguments.out, {"model": str(arguments.model), **values}, indent=2)
