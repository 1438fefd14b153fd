"""How a scored case is shown in a gallery: masks side by side, or texts beside the image."""

from __future__ import annotations

from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, unite
from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.serve.visualize import Card, SheetRow, mark_regions, paint
from pixel_sail.types import BadSample


def shown(result: CaseResult) -> SheetRow | Card:
    """A row for a case whose mask is scored, a card for one that is answered in words alone or in both."""
    if result.overlap is None:
        painted = paint(with_prompts(result), [decode_mask(rle) for rle in result.masks])
        return Card(painted, (result.question, f"model: {result.answer}", f"right: {result.right_answer}"))
    words = f" {result.answer}" if result.right_answer else ""
    return mask_row(result, f"{result.question}{words}")


def mask_row(result: CaseResult, title: str) -> SheetRow:
    """Image, target and the united masks of the answer side by side."""
    image = with_prompts(result)
    predicted = unite(result.masks, (image.height, image.width)) if result.masks else None
    target, mask = (None if rle is None else decode_mask(rle) for rle in (result.target, predicted))
    return SheetRow(image, title, target, mask)


def with_prompts(result: CaseResult) -> Image.Image:
    """The image with the outlines of its prompted regions. Raises BadSample where its masks are of another size."""
    image = load_image(result.image, result.oriented)
    masks = [rle for rle in (*result.prompts.values(), result.target, *result.masks) if rle is not None]
    if any(tuple(rle["size"]) != (image.height, image.width) for rle in masks):
        raise BadSample(f"{result.image} is {image.size}, its masks have another size (width, height)")
    return mark_regions(image, {k: decode_mask(rle) for k, rle in result.prompts.items()}) if result.prompts else image
