"""The files about several masks an answer: COCO instances, GranD-f's four formats, MUSE and ReasonSeg."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.masks import unite
from pixel_sail.scenes.outline import coco_polygons, labelme_polygons
from pixel_sail.scenes.panoptic import CATEGORY, panoptic_split
from pixel_sail.scenes.write_regions import write_json

Record = dict[str, Any]
Polygons = dict[str, Any]

IMAGES = "images/train2014"
REASON_IMAGES = {"train": 200, "val": 100, "test": 100}  # its images lie beside their JSONs, a second time
_TRAIN, _VAL_TEST = "GranDf/annotations/train", "GranDf/annotations/val_test"


def polygons_of(owner: np.ndarray, objects: list[dict[str, Any]], reason: dict[str, Any] | None) -> list[Polygons]:
    """Of each object its polygons, None where there are none (see outline.py).

    As COCO has them, and as labelme has them where the reasoning is about the object.
    """
    reasoned = {*reason["targets"], *reason["doubtful"]} if reason else set()
    found = []
    for i, facts in enumerate(objects):
        left, top, width, height = facts["bbox"]
        mask = owner[top : top + height, left : left + width] == i
        coco, labelme = coco_polygons(mask), labelme_polygons(mask) if i in reasoned else None
        shifted = {
            label: [[[x + left, y + top] for x, y in polygon] for polygon in polygons]
            for label, polygons in (labelme or {}).items()
        }
        moved = [[n + (left, top)[k % 2] for k, n in enumerate(polygon)] for polygon in coco or []]
        found.append({"coco": moved or None, "labelme": shifted or None})
    return found


def write_grounded_files(out: Path, records: list[Record], request: dict[str, Any]) -> None:
    """``records`` come from ``make_image`` in the order of their index, with ``ann_id`` on the objects."""
    train = [record for record in records if record["split"] == "train"]
    held_out = [record for record in records if record["split"] != "train"]
    info = {"info": {"description": "pixel_sail scenes: drawn pictures with exact masks", **request}, "licenses": []}
    for split, chosen in (("train", train), ("val", held_out)):
        write_json(out / f"annotations/instances_{split}2017.json", info | _instances(chosen))
    # every training image is in one of the four, every held-out one in all
    own = [train[k::4] for k in range(4)]
    write_json(out / _TRAIN / "GranDf_HA_GCG_train.json", [_grounded(record) for record in own[0]])
    for split, psg, referred, flickr in (("train", *own[1:]), ("val", held_out, held_out, held_out)):
        write_json(out / _TRAIN / f"OpenPsgGCG_{split}.json", [_grounded(record) for record in psg])
        found = [one for one in map(_referred, referred) if one is not None]
        write_json(out / _TRAIN / f"RefCOCOg_GCG_{split}.json", found)
        write_json(out / _TRAIN / f"flickr_mergedGT_GCG_{split}.json", _flickr(flickr))
    for split in ("val", "test"):
        captions, masks = _captions_and_masks([one for one in held_out if (one["split"] == "val") == (split == "val")])
        write_json(out / _VAL_TEST / f"{split}_gcg_coco_caption_gt.json", captions)
        write_json(out / _VAL_TEST / f"{split}_gcg_coco_mask_gt.json", masks)
    _write_muse(out / "muse", train, held_out)
    for split in REASON_IMAGES:
        _write_reasons(out, split, [record for record in records if _reason_split(record["split"]) == split])


def _instances(records: list[Record]) -> dict[str, Any]:
    annotations = [
        {
            "id": facts["ann_id"],
            "image_id": record["image"]["id"],
            "category_id": CATEGORY[facts["kind"]],
            "segmentation": _segmentation(record, i),
            "area": facts["area"],
            "bbox": facts["bbox"],
            "iscrowd": 0,
        }
        for record in records
        for i, facts in enumerate(record["objects"])
    ]
    categories = [{"supercategory": "object", "id": i, "name": kind} for kind, i in CATEGORY.items()]
    return {"images": [record["image"] for record in records], "annotations": annotations, "categories": categories}


def _segmentation(record: Record, i: int) -> Any:
    """Polygons as in COCO; the RLE of an object that no polygons mean exactly, as those with holes."""
    return record["polygons"][i]["coco"] or _rle(record, i)


def _rle(record: Record, i: int) -> dict[str, Any]:
    return record["objects"][i]["segmentation"]


def _grounded(record: Record) -> dict[str, Any]:
    image, caption = record["image"], record["grounded"]["caption"]
    text = caption["text"]
    return {
        "file_name": image["file_name"],
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "caption": f'"{text}"' if image["id"] % 3 == 0 else text,  # the real ones are partly in quotation marks
        "groundings": {
            text[slice(*phrase["span"])]: {
                "token_positives": phrase["span"],
                "rle_masks": [_rle(record, i) for i in phrase["objects"]],
            }
            for phrase in caption["phrases"]
        },
    }


def _referred(record: Record) -> dict[str, Any] | None:
    """None where no object has a phrase of its own."""
    image, referred = record["image"], record["grounded"]["referred"]
    refs = [
        {"sentence": phrase, "bbox": record["objects"][i]["bbox"], "segmentation": _segmentation(record, i)}
        for phrase, i in referred["refs"]
    ]
    named = {"img_file_name": image["file_name"], "caption": referred["text"], "refs": refs}
    return {str(image["id"]): named} if refs else None


def _flickr(records: list[Record]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for record in records:
        for phrase in record["grounded"]["caption"]["phrases"]:
            for i in phrase["objects"]:  # two red mugs are two annotations of one phrase
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record["image"]["id"],
                        "category_id": 1,
                        "bbox": record["objects"][i]["bbox"],
                        "area": record["objects"][i]["area"],
                        "iscrowd": 0,
                        "tokens_positive": [phrase["span"]],
                        "sam_mask": _rle(record, i),
                    }
                )
    images = [{**record["image"], "caption": record["grounded"]["caption"]["text"]} for record in records]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _captions_and_masks(records: list[Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    captions, masks = [], []
    for record in records:
        caption, image_id = record["grounded"]["caption"], record["image"]["id"]
        labels = [caption["text"][slice(*phrase["span"])] for phrase in caption["phrases"]]
        captions.append({"id": len(captions), "image_id": image_id, "caption": caption["text"], "labels": labels})
        for phrase in caption["phrases"]:
            mask = _united(record, phrase["objects"])
            masks.append({"id": len(masks) + 1, "image_id": image_id, "category_id": 1, "segmentation": mask})
    images = [record["image"] for record in records]
    known = {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "object"}]}
    return {"images": [{"id": image["id"]} for image in images], "annotations": captions}, known


def _united(record: Record, objects: list[int]) -> dict[str, Any]:
    rles = [_rle(record, i) for i in objects]
    return dict(unite(rles, tuple(rles[0]["size"]))) if len(rles) > 1 else rles[0]


def _write_muse(folder: Path, train: list[Record], held_out: list[Record]) -> None:
    def write(split: str, records: list[Record], sizes: range) -> None:
        asked = {
            record["image"]["id"]: [one for one in record["grounded"]["questions"] if len(one["objects"]) in sizes]
            for record in records
        }
        entries = [_muse(record, asked[record["image"]["id"]]) for record in records if asked[record["image"]["id"]]]
        write_json(folder / f"MUSE_{split}.json", entries)

    write("train", train, range(1, 100))
    write("val", held_out, range(1, 100))
    write("test_less", held_out, range(1, 4))
    write("test_many", held_out, range(4, 100))


def _muse(record: Record, questions: list[dict[str, Any]]) -> dict[str, Any]:
    image = record["image"]
    objects = [
        {
            "category_name": facts["kind"],
            "rephrased_name": f"{facts['colour']} {facts['kind']}",
            "bbox": facts["bbox"],
            "segmentation": _segmentation(record, i),
        }
        for i, facts in enumerate(record["objects"])
    ]
    split = f"{panoptic_split(record['split'])}2017"
    by_url = {"coco_url": f"http://images.cocodataset.org/{split}/{image['file_name']}"}
    return {
        **({"file_name": image["file_name"]} if image["id"] % 2 else by_url),
        "height": image["height"],
        "width": image["width"],
        "ann_list": objects,
        "questions": [question["question"] for question in questions],
        "answers": [[objects[i] for i in question["objects"]] for question in questions],
        "text_answers": [question["text"] for question in questions],
    }


def _reason_split(split: str) -> str:
    return {"testA": "test", "testB": "test"}.get(split, split)


def _write_reasons(out: Path, split: str, records: list[Record]) -> None:
    folder, written = out / "reason_seg" / "ReasonSeg" / split, 0
    folder.mkdir(parents=True)
    for record in records:
        shapes = _shapes(record)
        if not shapes or written == REASON_IMAGES[split]:
            continue
        reason, name = record["grounded"]["reason"], record["image"]["file_name"]
        is_sentence = written % 3 > 0  # the real ones have phrases as well
        values = {
            "text": [reason["question"] if is_sentence else reason["phrase"]],
            "is_sentence": is_sentence,
            "shapes": shapes,
        }
        (folder / name).with_suffix(".json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        shutil.copyfile(out / IMAGES / name, folder / name)
        written += 1


def _shapes(record: Record) -> list[dict[str, Any]]:
    """labelme shapes; none where an object that matters cannot be given by polygons."""
    reason, name = record["grounded"]["reason"], record["image"]["file_name"]
    marked = [(i, "target") for i in reason["targets"]] + [(i, "ignore") for i in reason["doubtful"]] if reason else []
    outlines = [(label, record["polygons"][i]["labelme"]) for i, label in marked]
    if not all(polygons for _, polygons in outlines):
        return []
    labelled = [(label, points) for label, polygons in outlines for points in polygons["target"]]
    # within a target holes are neither: there is no polygon with a hole
    labelled += [("ignore", points) for _, polygons in outlines for points in polygons["ignore"]]
    return [
        {"label": label, "labels": [label], "shape_type": "polygon", "image_name": name, "points": points, "flags": {}}
        for label, points in labelled
    ]
