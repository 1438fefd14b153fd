"""The files about regions: COCO panoptic, Pix2Cap, Osprey, SAM object captions, LLaVA and PerBench."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.scenes.panoptic import annotation, categories, panoptic_split

Record = dict[str, Any]
Taken = list[tuple[Record, list[Any]]]  # some items of each image

BENCHMARK_ITEMS = 500  # captions, questions and requests each
OSPREY = ("short_form", "conversation", "detail_description", "part_level", "lvis_positive_negative")


def write_json(path: Path, value: Any) -> None:
    """Compact JSON; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")


def write_region_files(out: Path, records: list[Record], request: dict[str, Any]) -> None:
    """``records`` come from ``make_image`` in the order of their index."""
    for split in ("train", "val"):
        chosen = [record for record in records if panoptic_split(record["split"]) == split]
        _write_panoptic(out, split, chosen, request)
        write_json(
            out / f"sam_captions/{split}.json", [_captions(record, record["regions"]["sam"]) for record in chosen]
        )
    train = [record for record in records if record["split"] == "train"]
    held_out = [record for record in records if record["split"] != "train"]
    for name in OSPREY:
        entries = [_osprey(record, name) for record in train if name in record["regions"]["osprey"]]
        write_json(out / f"osprey/osprey_{name}.json", entries)
    write_json(out / "llava/train.json", [entry for record in train for entry in _llava(record)])
    rng = np.random.default_rng([request["seed"], 2])
    for folder, pictures, limit in (("perbench_train", train, None), ("perbench", held_out, BENCHMARK_ITEMS)):
        _write_perbench(out / folder, [pictures[i] for i in rng.permutation(len(pictures))], limit)


def _write_panoptic(out: Path, split: str, records: list[Record], request: dict[str, Any]) -> None:
    head = {
        "info": {"description": "pixel_sail scenes: drawn pictures with exact masks", **request},
        "licenses": [],
        "images": [record["image"] for record in records],
    }
    plain = [annotation(record) for record in records]
    described = [annotation(record, record["regions"]["captions"]["pix2cap"]) for record in records]
    tail = {"categories": categories()}
    write_json(out / f"annotations/panoptic_{split}2017.json", {**head, "annotations": plain, **tail})
    write_json(out / f"pix2cap/pix2cap_coco_{split}.json", {**head, "annotations": described, **tail})


def _mask(record: Record, region: Any) -> dict[str, Any]:
    """The RLE of an object given by its index; an RLE is its own."""
    return record["objects"][region]["segmentation"] if isinstance(region, int) else region


def _captions(record: Record, captions: list[tuple[int, str]]) -> dict[str, Any]:
    objects = [{"segmentation": _mask(record, i), "caption": text} for i, text in captions]
    return {"image_name": record["image"]["file_name"], "object_annotations": objects}


def _conversation(turns: list[tuple[str, str]], start: str = "") -> list[dict[str, str]]:
    said = [message for turn in turns for message in zip(("human", "gpt"), turn, strict=True)]
    messages = [{"from": who, "value": text} for who, text in said]
    messages[0]["value"] = start + messages[0]["value"]
    return messages


def _osprey(record: Record, name: str) -> dict[str, Any]:
    entry, image = record["regions"]["osprey"][name], record["image"]
    return {
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "annotation": [{"segmentation": _mask(record, region)} for region in entry["regions"]],
        "conversations": _conversation(entry["turns"]),
    }


def _llava(record: Record) -> list[dict[str, Any]]:
    entries = []
    for entry in record["regions"]["llava"]:
        stem = Path(record["image"]["file_name"]).stem
        if entry["picture"]:
            image = {"id": stem, "image": f"train2014/{record['image']['file_name']}"}
            entries.append({**image, "conversations": _conversation(entry["turns"], "<image>\n")})
        else:
            entries.append({"id": f"{stem}_text", "conversations": _conversation(entry["turns"])})
    return entries


def _write_perbench(folder: Path, records: list[Record], limit: int | None) -> None:
    """Up to ``limit`` items of each kind (None: all), spread over the images."""
    captions = _take(records, lambda record: list(enumerate(record["regions"]["captions"]["perbench"])), limit)
    write_json(folder / "STBench_Detailed_Caption.json", [_captions(record, items) for record, items in captions])
    mcqs = _take(records, lambda record: record["regions"]["mcqs"], limit)
    write_json(folder / "STBench_MCQ.json", [_mcqs(record, items) for record, items in mcqs])
    vres = _take(records, lambda record: record["regions"]["vres"], limit)
    write_json(folder / "STBench_VRES.json", [_vres(record, item) for record, items in vres for item in items])


def _take(records: list[Record], items_of: Callable[[Record], list[Any]], limit: int | None) -> Taken:
    """The first item of every image, then every second one and so on up to ``limit``; images by their id."""
    items = [items_of(record) for record in records]
    rounds = range(max(map(len, items), default=0))
    order = [(r, k) for r in rounds for k in range(len(items)) if r < len(items[k])][:limit]
    counts = np.bincount([k for _, k in order], minlength=len(records))
    taken = [(record, own[:count]) for record, own, count in zip(records, items, counts, strict=True) if count]
    return sorted(taken, key=lambda pair: pair[0]["image"]["id"])


def _mcqs(record: Record, items: list[dict[str, Any]]) -> dict[str, Any]:
    mcqs = [{"object": _mask(record, m["object"]), "question": m["question"], "answer": m["answer"]} for m in items]
    return {"image_name": record["image"]["file_name"], "mcqs": mcqs}


def _vres(record: Record, item: dict[str, Any]) -> dict[str, Any]:
    objects = [*item["prompts"], *item["targets"]]
    return {
        "image_name": record["image"]["file_name"],
        "question": item["question"],
        "answer": item["answer"],
        "segmentations": {f"<obj{k}>": _mask(record, i) for k, i in enumerate(objects)},
    }


def known_regions(record: Record) -> dict[str, Any]:
    """What scenes.json keeps of the items of an image: facts and queries, no texts and no masks."""
    regions = record["regions"]
    return {
        "facts": [{key: facts[key] for key in ("size", "where", "relation")} for facts in regions["facts"]],
        "mcqs": [{key: m[key] for key in ("object", "topic", "right", "answer")} for m in regions["mcqs"]],
        "vres": [{key: v[key] for key in ("topic", "query", "prompts", "targets")} for v in regions["vres"]],
    }
