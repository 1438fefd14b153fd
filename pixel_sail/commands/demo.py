"""A page in the browser: segment what phrases name, draw regions and ask about them, in a conversation.

    pip install -e '.[demo]'
    python tools/demo.py                                  # the small model of a clone
    python tools/demo.py runs/scratch --example photo.jpg
    python tools/demo.py MODEL --examples FOLDER --share

Without --example and --examples the page offers those of MODEL/examples, or else drawn scenes. FOLDER/examples.json is
a list of {"image": "a.jpg", "segment": ["the red mug", "all chairs"]} and
{"image": "b.jpg", "ask": "What colour is this?", "box": [x0, y0, x1, y1]} (pixels; "box" may be absent).
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pixel_sail.command import importing, tool
from pixel_sail.errors import UserError
from pixel_sail.released import add_model_argument, model_or_released

if TYPE_CHECKING:
    from pixel_sail.serve.demo.examples import Example


@tool
def main() -> None:
    arguments = _parse()
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install -e '.[demo]'")
    with importing():
        from pixel_sail.devices import choose_device
        from pixel_sail.folders.find import find_export
        from pixel_sail.serve.predictor import Predictor
    choose_device(arguments.device)
    given = _given_examples(arguments)
    folder = find_export(arguments.checkpoint)
    predictor = Predictor.from_pretrained(folder, arguments.device, arguments.precision)
    examples = given or _other_examples(folder)
    with importing():
        from pixel_sail.serve.demo.page import build_page, serve
    page = build_page(predictor, _name(arguments.checkpoint), str(arguments.checkpoint), examples)
    try:
        serve(page, arguments.host, arguments.port, arguments.share)
    except OSError as error:  # the port is taken
        raise UserError(f"{error}; choose another with --port") from None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument(
        "--example", action="append", default=[], type=Path, help="an image that the page offers; may be repeated"
    )
    parser.add_argument("--examples", type=Path, metavar="FOLDER", help="images with phrases and questions")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: everybody who can reach this machine can use the page"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--share", action="store_true", help="also at a public address of gradio's: everybody who knows it can use it"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    arguments = parser.parse_args()
    arguments.checkpoint = model_or_released(parser, arguments.checkpoint)
    return arguments


def _given_examples(arguments: argparse.Namespace) -> list[Example]:
    with importing():
        from pixel_sail.serve.demo.examples import image_example, read_examples
    listed = read_examples(arguments.examples) if arguments.examples else []
    return [*map(image_example, arguments.example), *listed]


def _other_examples(model: Path) -> list[Example]:
    with importing():
        from pixel_sail.scenes.demo_examples import drawn_examples
        from pixel_sail.serve.demo.examples import FILE, read_examples
    beside = model / "examples"
    return read_examples(beside) if (beside / FILE).exists() else drawn_examples()


def _name(folder: Path) -> str:
    """What the page calls the model: a run by its own name."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name
