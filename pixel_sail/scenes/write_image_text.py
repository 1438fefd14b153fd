"""Captioned images in tars, as img2dataset writes them, and plain text: what a base is made of (docs/base.md).

A `.txt` has the short caption of an image; its `.json` has the same as "caption", and as "re_caption" descriptions of
all objects. The plain text describes images too, in other words, and does not show them.
"""

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pixel_sail.scenes.formats import IMAGES, held_out, training
from pixel_sail.scenes.types import ImageRecord

PAIRS_PER_TAR = 500  # few, so that also small sets have several


def write_image_text_files(out: Path, records: list[ImageRecord]) -> None:
    """image_text/{train,val}/*.tar and text/{train,val}/00000.jsonl under `out`, which has the images already."""
    for split, chosen in (("train", training(records)), ("val", held_out(records))):
        (out / "image_text" / split).mkdir(parents=True)
        for number, first in enumerate(range(0, len(chosen), PAIRS_PER_TAR)):
            _write_tar(out, out / f"image_text/{split}/{number:05d}.tar", chosen[first : first + PAIRS_PER_TAR])
        (out / "text" / split).mkdir(parents=True)
        lines = [json.dumps({"text": _text(record)}) + "\n" for record in chosen]
        (out / f"text/{split}/00000.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_tar(out: Path, path: Path, records: list[ImageRecord]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            for suffix, content in _members(out, record):
                member = tarfile.TarInfo(f"{record.image['id']:09d}.{suffix}")  # owner 0, time 0
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, BytesIO(content))


def _members(out: Path, record: ImageRecord) -> Iterator[tuple[str, bytes]]:
    caption = record.grounded.caption.text
    values = {"caption": caption, "re_caption": " ".join(record.regions.pix2cap), "key": f"{record.image['id']:09d}"}
    yield "jpg", (out / IMAGES / record.image["file_name"]).read_bytes()
    yield "txt", caption.encode()
    yield "json", json.dumps(values).encode()


def _text(record: ImageRecord) -> str:
    return " ".join([record.grounded.referring.text, *record.regions.perbench]).strip()
