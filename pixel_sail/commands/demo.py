"""A page in the browser: paint regions on an image, write what to segment or ask a question, see masks and words.

    pip install -e '.[demo]'
    python tools/demo.py runs/quickstart/export --example data/scenes/images/train2014/scenes_000000000005.jpg

Strokes of one colour are one region; the page shows which colour is which <PromptK>.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.errors import UserError


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="an export folder")
    parser.add_argument(
        "--example", action="append", default=[], type=Path, help="an image that the page offers; may be repeated"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: everybody who can reach this machine can use the page"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    arguments = parser.parse_args()
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install -e '.[demo]'")
    with importing():
        from pixel_sail.devices import choose_device
        from pixel_sail.serve.demo import build_page, check_upload, serve
        from pixel_sail.serve.predictor import Predictor
    choose_device(arguments.device)
    for example in arguments.example:
        try:
            check_upload(example)
        except UserError as error:
            raise UserError(f"--example {example}: {error}") from None
    predictor = Predictor.from_pretrained(arguments.checkpoint, arguments.device, arguments.precision)
    page = build_page(predictor, [str(example) for example in arguments.example])
    try:
        serve(page, arguments.host, arguments.port)
    except OSError as error:  # the port is taken
        raise UserError(f"{error}; choose another with --port") from None
