"""When grounding emerges, in images: histograms of places and concepts (matplotlib), examples of every concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.serve.visualize import Card, cards, paint
from pixel_sail.studies.emergence.best_phrase import BINS, Emerged, Results
from pixel_sail.studies.emergence.concepts import CONCEPTS, find_phrase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_CHARACTERS = 160  # of the output, on each side of the phrase
_SERIES = {"best": ("0.75", "best phrase"), "right": ("tab:green", "of these, IoU > 0.5")}


def write_histograms(results: Results, out: Path) -> Path:
    """`when.png`: best phrases by place and by concept, the right ones among them, and chance as a line."""
    from matplotlib.figure import Figure  # not pyplot: no window system, nothing global

    figure = Figure((10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, [f"{100 // BINS * i}" for i in range(BINS)], results.places)
    left.set_xlabel("place in the output, % of its tokens, from")
    left.set_ylabel("images")
    shown = {name: None if by is None else [by[one] for one in CONCEPTS] for name, by in results.concepts.items()}
    _bars(right, CONCEPTS, shown)
    left.legend(fontsize=8)
    figure.suptitle(f"{results.images} images, {results.right} with a mask of IoU > 0.5", fontsize=10)
    path = out / "when.png"
    figure.savefig(path, dpi=110)
    return path


def _bars(panel: Axes, names: Sequence[str], values: Mapping[str, Sequence[float] | None]) -> None:
    for series, (colour, label) in _SERIES.items():
        panel.bar(names, values[series], color=colour, label=label)
    if values["chance"] is not None:
        panel.plot(names, values["chance"], color="black", marker=".", linewidth=1, label="any phrase of the output")
    panel.tick_params(labelsize=8)
    panel.grid(axis="y", alpha=0.3)


def write_examples(results: Results, objects: Mapping[int, PixObject], out: Path, count: int) -> list[Path]:
    """`when_<concept>.png` for each concept that occurs: `count` of its images, right ones first, evenly spread."""
    written = []
    for concept in CONCEPTS:
        found = [one for one in results.best if one.concept == concept]
        right = [one for one in found if one.iou > 0.5]
        chosen = _spread(right, count)
        chosen += _spread([one for one in found if one not in right], count - len(chosen))
        if chosen:
            path = out / f"when_{concept}.png"
            cards([_card(one, objects[one.index]) for one in chosen]).save(path)
            written.append(path)
    return written


def _spread(found: Sequence[Emerged], count: int) -> list[Emerged]:
    """Up to `count` of them, evenly spaced."""
    if count <= 0:
        return []
    return list(found[:: max(1, -(-len(found) // count))][:count])


def _card(one: Emerged, target: PixObject) -> Card:
    """The object and, to its right, the mask of the phrase with the point that it was asked with."""
    image = load_image(target.image)
    truth = paint(image, [decode_mask(target.mask_rle)])
    found = paint(image, [decode_mask(one.mask)], first_colour=1)
    (x, y), radius = one.point_xy, max(2, max(image.size) // 60)
    ImageDraw.Draw(found).ellipse((x - radius, y - radius, x + radius, y + radius), "white", "black")
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(truth, (0, 0))
    both.paste(found, (image.width, 0))
    where = f"{one.concept}{' (judge)' if one.judged else ''}, at {100 * one.place:.0f} %, IoU {100 * one.iou:.0f}"
    return Card(both, (f"image {one.index}: {target.expression}", where, one.prompt, f"model: {marked(one)}"))


def marked(one: Emerged) -> str:
    """What the output says around the phrase, and the phrase in »«."""
    start = find_phrase(one.phrase, one.output, one.place)
    if start is None:
        return f"»{one.phrase}« in: {one.output[: 2 * SHOWN_CHARACTERS]}"
    end = start + len(one.phrase.strip())
    before, after = one.output[:start], one.output[end:]
    if len(before) > SHOWN_CHARACTERS:
        before = f"... {before[-SHOWN_CHARACTERS:]}"
    if len(after) > SHOWN_CHARACTERS:
        after = f"{after[:SHOWN_CHARACTERS]} ..."
    return f"{before}»{one.output[start:end]}«{after}"
