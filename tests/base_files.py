"""Tars of captioned images, and JSON lines of text, as others write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

TARS, PAIRS = 3, 7


def picture(number: int, kind: str = "JPEG", size_wh: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size_wh, (12 * number % 256, 0, 0)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_pairs(folder: Path, tars: int = TARS, pairs: int = PAIRS) -> list[str]:
    """Tars as img2dataset writes them. Returns all captions."""
    captions = []
    for tar in range(tars):
        members = []
        for number in range(tar * pairs, (tar + 1) * pairs):
            name, caption = f"{number:09d}", f"a caption of number {number}"
            kind = ("JPEG", "PNG", "WEBP")[number % 3]
            members.append((f"{name}.{ {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp'}[kind] }", picture(number, kind)))
            members.append((f"{name}.txt", f" {caption}\n".encode()))
            members.append(
                (f"{name}.json", json.dumps({"caption": "another", "re_caption": f"long {number}"}).encode())
            )
            captions.append(caption)
        write_tar(folder / f"{tar:05d}.tar", members)
    return captions


def lines(*texts: object) -> bytes:
    return "".join(json.dumps({"text": text, "meta": {"set": "x"}}) + "\n" for text in texts).encode()
