"""Annotation files with as many entries as the published ones, in their formats and of about their size.

Contents are drawn, and images are empty files: opening reads no image. For measuring start-up and memory only.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import MixtureEntry
from pixel_sail.files import read_json

COCO_IMAGES, COCO_INSTANCES = 118_287, 860_001
REFERRING = {  # name: images, refs, annotations of its instances.json (the published numbers)
    "refcoco": (19_994, 50_000, 196_771),
    "refcoco+": (19_992, 49_856, 196_737),
    "refcocog": (25_799, 49_822, 208_960),
}
OSPREY = {  # 724 thousand entries; how the published files share them is assumed
    "osprey_short_form": 99_000,
    "osprey_conversation": 127_000,
    "osprey_detail_description": 70_000,
    "osprey_part_level": 307_000,
    "osprey_lvis_positive_negative": 121_000,
}
MIX665K, MIX665K_TEXTS = 665_298, 40_688  # entries; those without an image
DRAWN = 500  # polygons and texts to choose from
WIDTH, HEIGHT = 640, 480
PARTS = "generated.json"  # says at which scale the folder was made


def write_annotations(root: Path, scale: float) -> list[MixtureEntry]:
    """Writes the files at `scale` times the published counts, unless they are there. Returns the sources to open."""
    sources = ["coco_instance", *REFERRING, "refcoco_captions", *OSPREY, "llava_mix665k"]
    made = {"scale": scale}
    if not (root / PARTS).exists() or read_json(root / PARTS) != made:
        draw = _Drawn(np.random.default_rng(0))
        images = _share(COCO_IMAGES, scale)
        for folder, name in (("images/train2017", "{:012d}.jpg"), ("images/train2014", "COCO_train2014_{:012d}.jpg")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(1, images + 1):
                (root / folder / name.format(number)).touch()
        _write_instances(root / "annotations/instances_train2017.json", images, _share(COCO_INSTANCES, scale), draw)
        for name, (of_dataset, refs, annotations) in REFERRING.items():
            _write_referring(root / name, *(_share(n, scale) for n in (of_dataset, refs, annotations)), draw)
        for name, entries in OSPREY.items():
            _write(root / f"osprey/{name}.json", (draw.osprey(n, images, name) for n in range(_share(entries, scale))))
        entries, texts = _share(MIX665K, scale), _share(MIX665K_TEXTS, scale)
        _write(root / "llava/llava_v1_5_mix665k.json", (draw.talk(n, images, n >= texts) for n in range(entries)))
        (root / PARTS).write_text(json.dumps(made))
    return [MixtureEntry(source=name) for name in sources]


def _share(count: int, scale: float) -> int:
    return max(4, round(count * scale))


class _Drawn:
    """Entries made of a few hundred polygons and texts."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.polygons = [self._polygon() for _ in range(DRAWN)]
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
        self.texts = ["A " + "".join(rng.choice(letters, size)) + " b" for size in rng.integers(20, 300, DRAWN)]

    def _polygon(self) -> list[list[float]]:
        """One or two pieces of 23 points on average."""
        pieces = []
        for _ in range(1 + (self.rng.random() < 0.1)):
            angles = np.sort(self.rng.random(self.rng.integers(8, 38))) * 2 * np.pi
            radii = self.rng.uniform(30, 60) * self.rng.uniform(0.8, 1.2, len(angles))
            center = self.rng.uniform(80, 400, 2)
            points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None] + center
            pieces.append(np.round(points.ravel(), 2).tolist())
        return pieces

    def one(self, values: list[Any]) -> Any:
        return values[self.rng.integers(len(values))]

    def annotation(self, number: int, image: int) -> dict[str, Any]:
        values = {"segmentation": self.one(self.polygons), "area": 5000.5, "iscrowd": 0, "image_id": image}
        return values | {"bbox": [80.5, 90.25, 100.0, 90.75], "category_id": 1 + number % 80, "id": number + 1}

    def osprey(self, number: int, images: int, name: str) -> dict[str, Any]:
        regions = 1 + number % 3
        entry: dict[str, Any] = {
            "id": str(number),
            "file_name": f"{1 + number % images:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "annotation": [
                {"bbox": [80.5, 90.25, 100.0, 90.75], "segmentation": self.one(self.polygons), "category_name": "cup"}
                for _ in range(regions)
            ],
        }
        if name == "osprey_detail_description":
            return entry | {"description": [f"<region{k}>: {self.one(self.texts)}" for k in range(1, regions + 1)]}
        turns = [(f"What is <region{k}>?", self.one(self.texts)[:60]) for k in range(1, regions + 1)]
        return entry | {"conversations": _messages(turns)}

    def talk(self, number: int, images: int, with_image: bool) -> dict[str, Any]:
        turns = [(self.one(self.texts)[:80], self.one(self.texts)) for _ in range(1 + number % 8)]
        if not with_image:
            return {"id": str(number), "conversations": _messages(turns)}
        name = f"coco/train2017/{1 + number % images:012d}.jpg"
        turns[0] = (f"<image>\n{turns[0][0]}", turns[0][1])
        return {"id": str(number), "image": name, "conversations": _messages(turns)}


def _messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]


def _write_instances(path: Path, images: int, annotations: int, draw: _Drawn, name: str = "{:012d}.jpg") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"images": [_image(number, name) for number in range(1, images + 1)]}
    head["categories"] = [{"id": number, "name": f"thing {number}"} for number in range(1, 81)]
    with path.open("w") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": ')
        file.writelines(_listed(draw.annotation(n, 1 + n % images) for n in range(annotations)))
        file.write("}")


def _image(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "file_name": name.format(number), "height": HEIGHT, "width": WIDTH}


def _write_referring(folder: Path, images: int, refs: int, annotations: int, draw: _Drawn) -> None:
    name = "COCO_train2014_{:012d}.jpg"
    _write_instances(folder / "instances.json", images, annotations, draw, name)
    entries = []
    for number in range(refs):
        texts = [draw.one(draw.texts)[:25] for _ in range(3)]
        sentences = [{"sent_id": 3 * number + k, "sent": text, "raw": text} for k, text in enumerate(texts)]
        ids = {"ref_id": number, "image_id": 1 + number % annotations % images, "ann_id": 1 + number % annotations}
        entries.append(ids | {"split": "train", "sentences": sentences, "category_id": 1})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(entries))


def _write(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(_listed(entries))


def _listed(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The text of a JSON list, entry by entry."""
    for number, entry in enumerate(entries):
        yield ("[" if number == 0 else ", ") + json.dumps(entry)
    yield "]"
