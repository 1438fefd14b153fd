"""What the page shows of masks: an image at a chosen opacity, a legend in words, files to download."""

from __future__ import annotations

import html
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail.data.masks import area_px, decode_mask, unite
from pixel_sail.serve.demo.regions import COLOURS, NAMES, page_words
from pixel_sail.serve.visualize import OPACITY, colour, mark_regions, paint
from pixel_sail.tokens import SEG
from pixel_sail.types import RLE

SHOWN_PX = 1024  # longer side at most of the image on the page
LEAST_PX = 512  # a smaller image is enlarged a whole number of times, to about this


@dataclass(frozen=True)
class Finding:
    """What the model found for a phrase: masks (RLE in the size of the image), none where it found nothing."""

    phrase: str
    masks: tuple[RLE, ...]
    words: str = ""  # of the model
    scores: tuple[float, ...] = ()  # of the masks, 0..1; none of a model without a score head
    asked: str = ""  # the phrase in the words of the model; empty for what a conversation found

    @property
    def area_px(self) -> int:
        """Pixels of all masks together."""
        return area_px(unite(self.masks, self.masks[0]["size"])) if self.masks else 0


def shown_size(size_wh: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in which the page shows an image of this size."""
    longer = max(size_wh)
    scale = SHOWN_PX / longer if longer > SHOWN_PX else max(1, round(LEAST_PX / longer))
    return max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))


def shown_image(image: Image.Image) -> Image.Image:
    size = shown_size(image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def shown_mask(rle: RLE, least_share: float = 0.5) -> np.ndarray:
    """The mask in the size of the shown image, bool: true where at least this share of the area is."""
    mask = decode_mask(rle)
    size = shown_size((mask.shape[1], mask.shape[0]))
    if size == (mask.shape[1], mask.shape[0]):
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return np.asarray(grey) >= max(1, 255 * least_share)


def picture(
    shown: Image.Image, findings: Sequence[Finding], regions: Mapping[int, RLE], opacity: float = OPACITY
) -> Image.Image:
    """The shown image with the masks of each finding in its colour, and the regions outlined."""
    empty = np.zeros((shown.height, shown.width), dtype=bool)
    masks = [np.logical_or.reduce([empty, *map(shown_mask, finding.masks)]) for finding in findings]
    outlined = {k: shown_mask(region, least_share=0) for k, region in regions.items()}
    return mark_regions(paint(shown, masks, opacity=opacity), outlined, NAMES, COLOURS)


def mark(index: int, text: str, found: bool = True) -> str:
    """HTML: a square in the colour of the index-th finding (empty: nothing found), and a text that is not HTML yet."""
    red, green, blue = colour(index)
    fill = f' style="background:rgb({red},{green},{blue})"' if found else ""
    swatch = f'<span class="ps-swatch"{fill}></span>'
    return f'<span class="ps-mark">{swatch}{html.escape(text)}</span>'


def legend(findings: Sequence[Finding], size_wh: tuple[int, int], seconds: float) -> str:
    """HTML: colour, phrase and area of each finding, or that nothing was found; and how long it took."""
    if not findings:
        return ""
    rows = [
        f"<tr><td>{mark(i, finding.phrase, finding.area_px > 0)}</td><td>{_found(finding, size_wh)}</td></tr>"
        for i, finding in enumerate(findings)
    ]
    return f'<table class="ps-legend">{"".join(rows)}</table><p class="ps-note">answered in {seconds:.1f} s</p>'


def _found(finding: Finding, size_wh: tuple[int, int]) -> str:
    area = finding.area_px
    if area:
        share = 100 * area / (size_wh[0] * size_wh[1])
        several = f", {len(finding.masks)} masks" if len(finding.masks) > 1 else ""
        scored = ", score " + " and ".join(f"{score:.2f}" for score in finding.scores) if finding.scores else ""
        return (f"{share:.1f} % of the image" if share >= 0.05 else f"{area} pixels") + several + scored
    said = "" if SEG in finding.words else page_words(finding.words).strip()  # a mask may be empty
    return "nothing found" + (f": “{html.escape(said)}”" if said else "")


def coco_json(findings: Sequence[Finding], name: str, size_wh: tuple[int, int]) -> bytes:
    """COCO's instances: phrases are categories; masks are RLE, areas in pixels, boxes x, y, width, height.

    With a score head each has its `score`, as in COCO's format of results.
    """
    phrases = list(dict.fromkeys(finding.phrase for finding in findings))
    found = [
        (finding.phrase, rle, {"score": score} if finding.scores else {})
        for finding in findings
        for rle, score in zip_longest(finding.masks, finding.scores)
        if area_px(rle)
    ]
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": phrases.index(phrase) + 1,
            "segmentation": rle,
            "area": area_px(rle),
            "bbox": coco_mask.toBbox({**rle, "counts": rle["counts"].encode()}).tolist(),
            "iscrowd": 0,
            **score,
        }
        for number, (phrase, rle, score) in enumerate(found, 1)
    ]
    image = {"id": 1, "file_name": name, "width": size_wh[0], "height": size_wh[1]}
    categories = [{"id": number, "name": phrase} for number, phrase in enumerate(phrases, 1)]
    return json.dumps({"images": [image], "categories": categories, "annotations": annotations}, indent=1).encode()


def masks_zip(findings: Sequence[Finding]) -> bytes:
    """A zip with a PNG for each mask, 0 and 255, in the size of the image; the phrase is in its name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # PNGs are compressed already
        for i, finding in enumerate(findings, 1):
            for j, rle in enumerate(finding.masks, 1):
                png = io.BytesIO()
                Image.fromarray(decode_mask(rle).astype(np.uint8) * 255).save(png, "PNG")
                words = re.sub("[^a-z0-9]+", "_", finding.phrase.lower())[:40].strip("_")
                archive.writestr(f"{i:02}_{words or 'phrase'}_{j}.png", png.getvalue())
    return file.getvalue()
