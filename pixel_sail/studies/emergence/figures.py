"""When grounding emerges, as figures: histograms of places and concepts (matplotlib), and examples of each concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask
from pixel_sail.evaluate.pixfoundation.failures import MIN_IOU
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.serve.visualize import Card, cards, paint
from pixel_sail.studies.emergence.best_phrase import BINS, BestPhrase, Results
from pixel_sail.studies.emergence.concepts import CONCEPTS, phrase_span
from pixel_sail.studies.plotting import new_panels, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTEXT_CHARACTERS = 160  # of the output, shown on each side of the phrase
_SERIES = {"best": ("0.75", "best phrase"), "right": ("tab:green", "of these, IoU > 0.5")}


def write_histograms(results: Results, out: Path) -> Path:
    """`emergence.png`: best phrases by place and by concept, the right ones among them, and chance as a line."""
    figure, (left, right) = new_panels(2, columns=2, panel_inches=(5.0, 3.6))
    _bars(left, [f"{100 // BINS * i}" for i in range(BINS)], results.places)
    left.set_xlabel("place in the output, % of its tokens, from")
    left.set_ylabel("images")
    _bars(right, CONCEPTS, {name: list(counts.values()) for name, counts in results.concepts.items()})
    left.legend(fontsize=8)
    figure.suptitle(f"{results.images} images, {results.right} with a mask of IoU > 0.5", fontsize=10)
    return save_figure(figure, out / "emergence.png")


def _bars(panel: Axes, names: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    for series, (colour, label) in _SERIES.items():
        panel.bar(names, values[series], color=colour, label=label)
    panel.plot(names, values["chance"], color="black", marker=".", linewidth=1, label="any phrase of the output")
    panel.tick_params(labelsize=8)
    panel.grid(axis="y", alpha=0.3)


def write_examples(results: Results, objects: Mapping[int, PixObject], out: Path, count: int) -> list[Path]:
    """`emergence_<concept>.png` for each concept: `count` of its images, right ones first, evenly spaced.

    A concept without images gets no file. Returns the paths.
    """
    written = []
    for concept in CONCEPTS:
        phrases = [phrase for phrase in results.best if phrase.concept == concept]
        right = [phrase for phrase in phrases if phrase.iou > MIN_IOU]
        chosen = _evenly_spaced(right, count)
        chosen += _evenly_spaced([phrase for phrase in phrases if phrase not in right], count - len(chosen))
        if chosen:
            path = out / f"emergence_{concept}.png"
            cards([_card(phrase, objects[phrase.index]) for phrase in chosen]).save(path)
            written.append(path)
    return written


def _evenly_spaced(phrases: Sequence[BestPhrase], count: int) -> list[BestPhrase]:
    """Up to `count` of the phrases."""
    if count <= 0:
        return []
    return list(phrases[:: max(1, -(-len(phrases) // count))][:count])


def _card(best: BestPhrase, target: PixObject) -> Card:
    """The object and, to its right, the mask of the phrase with the point that prompted it."""
    image = load_image(target.image)
    truth = paint(image, [decode_mask(target.mask_rle)])
    prediction = paint(image, [decode_mask(best.mask)], first_colour=1)
    (x, y), radius = best.point_xy, max(2, max(image.size) // 60)
    ImageDraw.Draw(prediction).ellipse((x - radius, y - radius, x + radius, y + radius), "white", "black")
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(truth, (0, 0))
    both.paste(prediction, (image.width, 0))
    summary = f"{best.concept}, at {100 * best.place:.0f} %, IoU {100 * best.iou:.0f}"
    return Card(both, (f"image {best.index}: {target.expression}", summary, best.prompt, f"model: {marked(best)}"))


def marked(best: BestPhrase) -> str:
    """The output around the phrase, with the phrase in »«."""
    span = phrase_span(best.phrase, best.output, best.place)
    if span is None:
        return f"»{best.phrase}« in: {best.output[: 2 * CONTEXT_CHARACTERS]}"
    start, end = span
    before, after = best.output[:start], best.output[end:]
    if len(before) > CONTEXT_CHARACTERS:
        before = f"... {before[-CONTEXT_CHARACTERS:]}"
    if len(after) > CONTEXT_CHARACTERS:
        after = f"{after[:CONTEXT_CHARACTERS]} ..."
    return f"{before}»{best.output[start:end]}«{after}"
