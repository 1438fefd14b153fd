"""The files about regions: COCO panoptic, Pix2Cap, Osprey, SAM object captions, LLaVA and PerBench."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pixel_sail.scenes.formats import conversation, held_out, info, training, write_compact_json
from pixel_sail.scenes.panoptic import annotation, categories
from pixel_sail.scenes.types import ImageConversation, ImageRecord, MultipleChoice, RegionRequest, Request
from pixel_sail.types import RLE

T = TypeVar("T")

BENCHMARK_ITEMS = 500  # captions, questions and requests each
OSPREY = ("short_form", "conversation", "detail_description", "part_level", "lvis_positive_negative")


def write_region_files(out: Path, records: list[ImageRecord], request: Request) -> None:
    train, other = training(records), held_out(records)
    for split, chosen in (("train", train), ("val", other)):
        _write_panoptic(out, split, chosen, request)
        write_compact_json(
            out / f"sam_captions/{split}.json", [_captions(record, record.regions.sam) for record in chosen]
        )
    for name in OSPREY:
        entries = [_osprey(record, name) for record in train if name in record.regions.osprey]
        write_compact_json(out / f"osprey/osprey_{name}.json", entries)
    write_compact_json(
        out / "llava/train.json", [_llava(record, entry) for record in train for entry in record.regions.llava]
    )
    rng = np.random.default_rng([request["seed"], 2])
    for folder, chosen, limit in (("perbench_train", train, None), ("perbench", other, BENCHMARK_ITEMS)):
        _write_perbench(out / folder, [chosen[i] for i in rng.permutation(len(chosen))], limit)


def _write_panoptic(out: Path, split: str, records: list[ImageRecord], request: Request) -> None:
    head = {"info": info(request), "licenses": [], "images": [record.image for record in records]}
    plain = [annotation(record) for record in records]
    described = [annotation(record, record.regions.pix2cap) for record in records]
    tail = {"categories": categories()}
    write_compact_json(out / f"annotations/panoptic_{split}2017.json", {**head, "annotations": plain, **tail})
    write_compact_json(out / f"pix2cap/pix2cap_coco_{split}.json", {**head, "annotations": described, **tail})


def _mask(record: ImageRecord, region: int | RLE) -> RLE:
    """The mask of an object; the mask of a part is given as it is."""
    return record.objects[region].segmentation if isinstance(region, int) else region


def _captions(record: ImageRecord, captions: list[tuple[int, str]]) -> dict[str, Any]:
    objects = [{"segmentation": _mask(record, i), "caption": text} for i, text in captions]
    return {"image_name": record.image["file_name"], "object_annotations": objects}


def _osprey(record: ImageRecord, name: str) -> dict[str, Any]:
    entry, image = record.regions.osprey[name], record.image
    return {
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "annotation": [{"segmentation": _mask(record, region)} for region in entry.regions],
        "conversations": conversation(entry.turns),
    }


def _llava(record: ImageRecord, entry: ImageConversation) -> dict[str, Any]:
    name = record.image["file_name"]
    if not entry.shows_image:
        return {"id": f"{Path(name).stem}_text", "conversations": conversation(entry.turns)}
    image = {"id": Path(name).stem, "image": f"train2014/{name}"}
    turns = [("Describe this image.", record.grounded.caption.text), *entry.turns]
    return {**image, "conversations": conversation(turns, "<image>\n")}


def _write_perbench(folder: Path, records: list[ImageRecord], limit: int | None) -> None:
    """Up to `limit` items of each task (None: all), spread over the images."""
    captions = _taken(records, [list(enumerate(record.regions.perbench)) for record in records], limit)
    write_compact_json(folder / "STBench_Detailed_Caption.json", [_captions(*items) for items in captions])
    questions = _taken(records, [record.regions.multiple_choice for record in records], limit)
    write_compact_json(folder / "STBench_MCQ.json", [_questions(*items) for items in questions])
    requests = _taken(records, [record.regions.requests for record in records], limit)
    write_compact_json(
        folder / "STBench_VRES.json", [_request(record, item) for record, items in requests for item in items]
    )


def _taken(records: list[ImageRecord], items: list[list[T]], limit: int | None) -> list[tuple[ImageRecord, list[T]]]:
    """Up to `limit` items: the first of every image, then every second one and so on. Images are sorted by id."""
    rounds = range(max(map(len, items), default=0))
    order = [(r, k) for r in rounds for k in range(len(items)) if r < len(items[k])][:limit]
    counts = np.bincount([k for _, k in order], minlength=len(records))
    taken = [(record, own[:count]) for record, own, count in zip(records, items, counts, strict=True) if count]
    return sorted(taken, key=lambda pair: pair[0].image["id"])


def _questions(record: ImageRecord, items: list[MultipleChoice]) -> dict[str, Any]:
    questions = [
        {"object": _mask(record, item.object), "question": item.question, "answer": item.answer} for item in items
    ]
    return {"image_name": record.image["file_name"], "mcqs": questions}


def _request(record: ImageRecord, item: RegionRequest) -> dict[str, Any]:
    objects = [*item.prompts, *item.targets]
    return {
        "image_name": record.image["file_name"],
        "question": item.question,
        "answer": item.answer,
        "segmentations": {f"<obj{k}>": _mask(record, i) for k, i in enumerate(objects)},
    }
