"""Segments what a text names in images, or answers questions about them and about regions drawn on an image.

    pixel-sail predict --image photo.jpg --text "red cup" --out out           # with the small model of a clone
    python tools/predict.py MODEL --image photo.jpg --text "red cup" --text chairs --out out
    python tools/predict.py MODEL --image photo.jpg --box 10,20,80,90 --ask "What is it?" --out out
    python tools/predict.py MODEL --image photo.jpg --point 40,60 --mask cup.png \\
        --ask "Is <Prompt0> larger than <Prompt1>?" --text "the object nearest to <Prompt0>" --out outputs/photo

    python tools/predict.py MODEL --image photos/ --text "red cup" --out out  # all images of a folder
    python tools/predict.py MODEL --image photo.jpg --text cup --instances --out out  # each cup with a mask of its own

Regions (--box, --point, --scribble, --mask) are <Prompt0>, <Prompt1>, ... in the order of the command line. For each
image the tool writes an overlay with masks and regions, one PNG per mask, and a JSON file, which also has the scores of
the masks if the model gives any. An image that cannot be read is named; the others are answered, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixel_sail.command import importing, tool
from pixel_sail.arguments import add_min_presence
from pixel_sail.released import add_model_argument, model_or_released
from pixel_sail.tokens import MAX_PROMPTS


@tool
def main() -> None:
    arguments = _parse()
    with importing():
        from pixel_sail.commands.work import predict as work
    work.run(arguments)


class _InOrder(argparse.Action):
    """Collects regions of all kinds in one list, in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.regions = [*namespace.regions, (self.dest, values)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument(
        "--image", type=Path, action="append", required=True, help="a file, or a folder of images; may be repeated"
    )
    parser.add_argument("--text", action="append", default=[], help="what to segment; may be repeated")
    parser.add_argument(
        "--instances", action="store_true", help="a mask of its own for every object that a --text names"
    )
    parser.add_argument(
        "--ask", action="append", default=[], help="a question; each <region> in it stands for the next region"
    )
    parser.add_argument("--box", action=_InOrder, metavar="X0,Y0,X1,Y1", help="pixels; may be repeated, as the others")
    parser.add_argument("--point", action=_InOrder, metavar="X,Y[,X,Y...]", help="one region of one or more points")
    parser.add_argument("--scribble", action=_InOrder, metavar="X,Y,X,Y[,...]", help="a line through the points")
    parser.add_argument(
        "--mask",
        action=_InOrder,
        metavar="FILE",
        help="an image: its pixels that are neither black nor transparent",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--soft", action="store_true", help="also a gray PNG of the probabilities of each mask")
    parser.add_argument(
        "--zoom", action="store_true", help="look again at what is small, in a crop (a model trained with data.zoom)"
    )
    add_min_presence(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.set_defaults(regions=[])
    arguments = parser.parse_args()
    arguments.checkpoint = model_or_released(parser, arguments.checkpoint)
    if not arguments.text and not arguments.ask:
        parser.error("say what to segment with --text, or ask something with --ask")
    if arguments.instances and not arguments.text:
        parser.error("--instances needs --text: say of what")
    if len(arguments.regions) > MAX_PROMPTS:
        parser.error(f"{len(arguments.regions)} regions; there can be at most {MAX_PROMPTS}")
    return arguments
