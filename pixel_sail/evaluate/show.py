"""How a case and its prediction are shown in a gallery: masks side by side, or texts beside the image."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask
from pixel_sail.evaluate.benchmark import Line, RegionQuestion
from pixel_sail.serve.visualize import Card, SheetRow, mark_regions, paint
from pixel_sail.types import RLE


def mask_row(image: Image.Image, title: str, truth: RLE | None, prediction: RLE | None) -> SheetRow:
    """Image, ground truth and prediction side by side; None: no mask."""
    truth_mask, predicted_mask = (None if rle is None else decode_mask(rle) for rle in (truth, prediction))
    return SheetRow(image, title, truth_mask, predicted_mask)


def answer_card(case: RegionQuestion, line: Line) -> Card:
    """The image with its prompted regions and the predicted masks, beside the question and both answers."""
    image = with_prompts(load_image(case.image), case.prompts)
    image = paint(image, [decode_mask(rle) for rle in line.get("segmentations", ())])
    return Card(image, (case.question, f"model: {line['text']}", f"right: {case.reply}"))


def with_prompts(image: Image.Image, prompts: Mapping[int, RLE]) -> Image.Image:
    """The image with the outlines of its prompted regions."""
    return mark_regions(image, {k: decode_mask(rle) for k, rle in prompts.items()})
