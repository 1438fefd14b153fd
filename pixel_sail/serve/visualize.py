"""Images of a model's answers: an overlay for one image, a contact sheet or cards for many."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from pixel_sail.durable import replaced_file

_SHOWN_LONG_PX = 640  # smaller images are enlarged to about this size, so that captions are readable
MAX_CHARACTERS = 2_000  # of a text that is drawn; the rest is left out
MAX_LINES = 40
MAX_WORD = 100  # characters of a word without a break
MAX_TALL = 4  # times its width: a taller image is shown smaller
OPACITY = 0.45  # of a mask
_PAPER, _INK, _PALE, _MARK = (255, 255, 255), (34, 34, 34), (120, 120, 120), (235, 0, 90)
_GOLDEN = 0.61803398875  # step of the hue by which neighbouring colours differ most


def colour(index: int) -> tuple[int, int, int]:
    """RGB of the index-th mask: strong, and far from its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb((0.03 + index * _GOLDEN) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def paint(
    image: Image.Image, masks: Sequence[np.ndarray], first_colour: int = 0, opacity: float = OPACITY
) -> Image.Image:
    """The image with each mask (H, W) bool in its translucent colour, with a contour; same size, RGB."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).copy()
    width_px = max(1, round(max(image.size) / 320))
    for i, mask in enumerate(masks):
        if mask.shape != pixels.shape[:2]:
            raise ValueError(f"mask {i} is {mask.shape}, the image {pixels.shape[:2]} (height, width)")
        tint = np.array(colour(first_colour + i), dtype=np.float32)
        pixels[mask] = (1 - opacity) * pixels[mask] + opacity * tint
        inside = _erode(mask, width_px)
        pixels[mask & ~inside] = tint
        white_line = inside & ~_erode(inside, max(1, width_px // 2))  # keeps the contour visible on its own hue
        pixels[white_line] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def overlay(image: Image.Image, masks: Sequence[np.ndarray], labels: Sequence[str]) -> Image.Image:
    """The painted image above a strip of captions; label i has a dot in the colour of mask i.

    There may be more labels than masks, for answers without a mask: their dots are grey.
    """
    shown, (large,) = _enlarged(image, [np.asarray(masks, dtype=bool).reshape(-1, image.height, image.width)])
    painted = paint(shown, list(large))
    font = ImageFont.load_default(max(14, painted.width // 36))
    captions = [_wrapped(label, font, painted.width - 3 * _line_px(font)) for label in labels]
    strip_px = sum(len(lines) for lines in captions) * _line_px(font) + _line_px(font) if captions else 0
    page = Image.new("RGB", (painted.width, painted.height + strip_px), _PAPER)
    page.paste(painted, (0, 0))
    draw, y, line = ImageDraw.Draw(page), painted.height + _line_px(font) // 2, _line_px(font)
    for i, lines in enumerate(captions):
        dot = colour(i) if i < len(masks) else _PALE
        draw.ellipse((line // 2, y + line // 5, line // 2 + line // 2, y + line // 5 + line // 2), fill=dot)
        for text in lines:
            draw.text((line * 3 // 2, y), text, fill=_INK, font=font)
            y += line
    return page


def mark_regions(
    image: Image.Image, regions: Mapping[int, np.ndarray], names: str = "", colours: Sequence[str] = ()
) -> Image.Image:
    """The image with the outline of each prompted region (H, W) bool and its number; same size, RGB.

    `names` and `colours`: a letter, at the region's upper left corner, and a colour for each number instead. A region
    of a few pixels, such as a point, gets a ring around it, so that it is visible.
    """
    marked = image.convert("RGB")
    draw, line_px = ImageDraw.Draw(marked), max(1, round(max(image.size) / 200))
    font = ImageFont.load_default(max(9, max(image.size) // 22))
    for k, region in sorted(regions.items()):
        if region.shape != (image.height, image.width):
            raise ValueError(f"region {k} is {region.shape}, the image {(image.height, image.width)}")
        name, mark = names[k] if names else str(k), ImageColor.getrgb(colours[k]) if colours else _MARK
        edge = region & ~_erode(region, line_px)
        marked.paste(mark, mask=Image.fromarray(edge.astype(np.uint8) * 255))
        ys, xs = np.nonzero(region)
        x, y = (int(xs.min()), int(ys.min())) if names else (int(xs.mean()), int(ys.mean()))
        if region.sum() <= (3 * line_px) ** 2:
            ring = 4 * line_px
            draw.ellipse((x - ring, y - ring, x + ring, y + ring), outline=mark, width=line_px)
            x, y = x + ring, y - ring
        left, top, right, bottom = draw.textbbox((x, y), name, font=font, anchor="mm")
        draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=mark)
        draw.text((x, y), name, fill=_PAPER, font=font, anchor="mm")
    return marked


def draw_answers(
    image: Image.Image,
    regions: Mapping[int, np.ndarray],
    captions: Sequence[str],
    masks: Sequence[Sequence[np.ndarray]],
) -> Image.Image:
    """The overlay of answers about an image, with outlined regions. Caption i belongs to the union of `masks[i]`."""
    empty = np.zeros((image.height, image.width), dtype=bool)
    united = [np.logical_or.reduce([empty, *answer_masks]) for answer_masks in masks]
    return overlay(mark_regions(image, regions), united, captions)


@dataclass(frozen=True)
class Card:
    """An image and the texts beside it."""

    image: Image.Image
    texts: tuple[str, ...]


def cards(rows: Sequence[Card], across: int = 2, cell_px: int = 240, text_px: int = 360) -> Image.Image:
    """A page of images with their texts to the right, `across` cards side by side."""
    font, gap = ImageFont.load_default(14), 8
    tiles = []
    for row in rows:
        size = _cell_size(row.image, cell_px)
        parts = [part for text in row.texts for part in text.split("\n", MAX_LINES)]
        lines = [line for part in parts for line in _wrapped(part, font, text_px)][: len(row.texts) * MAX_LINES]
        height = max(size[1], len(lines) * _line_px(font))
        tile = Image.new("RGB", (cell_px + gap + text_px, height), _PAPER)
        tile.paste(row.image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (0, 0))
        draw = ImageDraw.Draw(tile)
        for i, text in enumerate(lines):
            draw.text((cell_px + gap, i * _line_px(font)), text, fill=_INK, font=font)
        tiles.append(tile)
    return _page(tiles, across, gap)


@dataclass(frozen=True)
class SheetRow:
    """One expression of a contact sheet. Masks are (H, W) bool; None: no mask."""

    image: Image.Image
    title: str
    truth: np.ndarray | None
    prediction: np.ndarray | None


def contact_sheet(rows: Sequence[SheetRow], across: int = 2, cell_px: int = 240) -> Image.Image:
    """A page of rows image | ground truth | prediction under their titles, `across` rows side by side."""
    font = ImageFont.load_default(15)
    return _page([_sheet_tile(row, cell_px, font) for row in rows], across, gap=8)


def panels(row: SheetRow, cell_px: int) -> list[tuple[str, Image.Image]]:
    """(what it shows, image `cell_px` wide) of a row: the image, the ground truth, the prediction."""
    size = _cell_size(row.image, cell_px)
    small = row.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    cells = [small]
    for tint, mask in enumerate((row.truth, row.prediction)):
        cells.append(small if mask is None else paint(small, [_resized(mask, size)], first_colour=1 + tint))
    notes = ("image", "ground truth" + (": none" if row.truth is None else ""), _prediction_note(row))
    return list(zip(notes, cells, strict=True))


def save_png(image: Image.Image, path: Path) -> None:
    """Replaces the file at once."""
    with replaced_file(path, "wb") as file:
        image.save(file, "PNG")


def _page(tiles: Sequence[Image.Image], across: int, gap: int) -> Image.Image:
    """Tiles of one width, `across` of them side by side."""
    if not tiles:
        raise ValueError("a page needs at least one image; there are no images")
    lines = [tiles[i : i + across] for i in range(0, len(tiles), across)]
    width = min(across, len(tiles)) * (tiles[0].width + 2 * gap)
    page = Image.new("RGB", (width, sum(max(t.height for t in line) + 2 * gap for line in lines)), _PAPER)
    y = gap
    for line in lines:
        for i, tile in enumerate(line):
            page.paste(tile, (gap + i * (tile.width + 2 * gap), y))
        y += max(tile.height for tile in line) + 2 * gap
    return page


def _sheet_tile(row: SheetRow, cell_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    shown = panels(row, cell_px)
    line, gap = _line_px(font), 4
    tile = Image.new("RGB", (3 * cell_px + 2 * gap, 2 * line + shown[0][1].height), _PAPER)
    draw = ImageDraw.Draw(tile)
    titles = _wrapped(row.title, font, tile.width)
    draw.text((0, 0), titles[0] + (" ..." if len(titles) > 1 else ""), fill=_INK, font=font)
    for i, (note, cell) in enumerate(shown):
        draw.text((i * (cell_px + gap), line), note, fill=_PALE, font=font)
        tile.paste(cell, (i * (cell_px + gap), 2 * line))
    return tile


def _prediction_note(row: SheetRow) -> str:
    if row.prediction is None:
        return "prediction: none"
    if row.truth is None:
        return "prediction, nothing there"
    union = (row.truth | row.prediction).sum()
    return f"prediction, IoU {100 * (row.truth & row.prediction).sum() / union if union else 100:.0f}"


def _enlarged(image: Image.Image, stacks: Sequence[np.ndarray]) -> tuple[Image.Image, list[np.ndarray]]:
    """The image and masks (K, H, W), a whole number of times larger when the image is small."""
    times = max(1, round(_SHOWN_LONG_PX / max(image.size)))
    larger = image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.LANCZOS)
    return larger, [stack.repeat(times, axis=1).repeat(times, axis=2) for stack in stacks]


def _resized(mask: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """True where at least half of the area is: thin parts do not crumble as they do with the nearest pixel."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size_wh, Image.Resampling.BOX)
    return np.asarray(grey) >= 128


def _erode(mask: np.ndarray, by_px: int) -> np.ndarray:
    """The mask without its outermost `by_px` pixels; the edge of the image is no contour."""
    return binary_erosion(mask, iterations=by_px, border_value=1)


def _line_px(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return round(1.4 * (font.getbbox("Ag")[3]))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """Lines of at most `width_px`; what is too long for a page ends in an ellipsis."""
    shown = text[:MAX_CHARACTERS].encode(errors="replace").decode()
    words = [word[i : i + MAX_WORD] for word in shown.split() for i in range(0, len(word), MAX_WORD)]
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(text) > MAX_CHARACTERS or len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], "..."]
    return lines


def _cell_size(image: Image.Image, cell_px: int) -> tuple[int, int]:
    """(width, height) in pixels of an image in a cell of this width."""
    height = max(1, round(image.height * cell_px / image.width))
    if height <= MAX_TALL * cell_px:
        return cell_px, height
    return max(1, round(MAX_TALL * cell_px * image.width / image.height)), MAX_TALL * cell_px
