"""A page in the browser: paint regions on an image, write what to segment or ask a question, see masks and words.

    pip install -e '.[demo]'
    python tools/demo.py runs/quickstart/export --example data/scenes/images/train2014/scenes_000000000005.jpg

Strokes of one colour are one region; the page shows which colour is which <PromptK>.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from pixel_sail.command import tool
from pixel_sail.data.image import load_image
from pixel_sail.devices import choose_device
from pixel_sail.serve.demo import build_page
from pixel_sail.serve.predictor import Predictor


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
        raise SystemExit("error: the demo needs gradio: pip install -e '.[demo]'")
    choose_device(arguments.device)
    for example in arguments.example:
        load_image(example)
    predictor = Predictor.from_pretrained(arguments.checkpoint, arguments.device, arguments.precision)
    page = build_page(predictor, [str(example) for example in arguments.example])
    try:
        page.launch(server_name=arguments.host, server_port=arguments.port)
    except OSError as error:  # the port is taken
        raise SystemExit(f"error: {error}; choose another with --port") from None


if __name__ == "__main__":
    main()
