"""The files about several masks an answer: COCO instances, GranD-f's four formats, MUSE and ReasonSeg."""

import json
import shutil
from pathlib import Path
from typing import Any

from pixel_sail.data.masks import unite
from pixel_sail.scenes.formats import (
    IMAGES,
    coco_instances,
    held_out,
    info,
    segmentation,
    training,
    write_compact_json,
)
from pixel_sail.scenes.panoptic import panoptic_split
from pixel_sail.scenes.types import GroundedQuestion, ImageRecord, ReasoningQuestion, Request
from pixel_sail.types import RLE

REASON_IMAGES = {"train": 200, "val": 100, "test": 100}  # at most; their images lie beside their JSONs, a second time
_TRAIN, _VAL_TEST = "GranDf/annotations/train", "GranDf/annotations/val_test"
_OBJECT_CATEGORY = [{"id": 1, "name": "object"}]


def write_grounded_files(out: Path, records: list[ImageRecord], request: Request) -> None:
    train, other = training(records), held_out(records)
    for split, chosen in (("train", train), ("val", other)):
        head = {"info": info(request), "licenses": []}
        instances = head | coco_instances(chosen, polygons=True)
        write_compact_json(out / f"annotations/instances_{split}2017.json", instances)
    _write_grandf(out, train, other)
    _write_muse(out / "muse", train, other)
    for split in REASON_IMAGES:
        _write_reasons(out, split, [record for record in records if _reason_split(record.split) == split])


def _write_grandf(out: Path, train: list[ImageRecord], other: list[ImageRecord]) -> None:
    """Every training image is in one of the four formats, every held-out image in all."""
    own = [train[k::4] for k in range(4)]
    write_compact_json(out / _TRAIN / "GranDf_HA_GCG_train.json", [_grounded(record) for record in own[0]])
    for split, psg, referring, flickr in (("train", *own[1:]), ("val", other, other, other)):
        write_compact_json(out / _TRAIN / f"OpenPsgGCG_{split}.json", [_grounded(record) for record in psg])
        captions = [_referring(record) for record in referring if record.grounded.referring.phrases]
        write_compact_json(out / _TRAIN / f"RefCOCOg_GCG_{split}.json", captions)
        write_compact_json(out / _TRAIN / f"flickr_mergedGT_GCG_{split}.json", _flickr(flickr))
    for split in ("val", "test"):
        chosen = [record for record in other if _reason_split(record.split) == split]
        captions, masks = _captions_and_masks(chosen)
        write_compact_json(out / _VAL_TEST / f"{split}_gcg_coco_caption_gt.json", captions)
        write_compact_json(out / _VAL_TEST / f"{split}_gcg_coco_mask_gt.json", masks)


def _rle(record: ImageRecord, i: int) -> RLE:
    return record.objects[i].segmentation


def _grounded(record: ImageRecord) -> dict[str, Any]:
    image, caption = record.image, record.grounded.caption
    return {
        "file_name": image["file_name"],
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        # the real ones are partly in quotation marks
        "caption": f'"{caption.text}"' if image["id"] % 3 == 0 else caption.text,
        "groundings": {
            caption.text[slice(*phrase.span)]: {
                "token_positives": phrase.span,
                "rle_masks": [_rle(record, i) for i in phrase.objects],
            }
            for phrase in caption.phrases
        },
    }


def _referring(record: ImageRecord) -> dict[str, Any]:
    image, caption = record.image, record.grounded.referring
    refs = [
        {"sentence": phrase, "bbox": record.objects[i].bbox, "segmentation": segmentation(record, i)}
        for phrase, i in caption.phrases
    ]
    return {str(image["id"]): {"img_file_name": image["file_name"], "caption": caption.text, "refs": refs}}


def _flickr(records: list[ImageRecord]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for record in records:
        for phrase in record.grounded.caption.phrases:
            for i in phrase.objects:  # two red mugs are two annotations of one phrase
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.image["id"],
                        "category_id": 1,
                        "bbox": record.objects[i].bbox,
                        "area": record.objects[i].area,
                        "iscrowd": 0,
                        "tokens_positive": [phrase.span],
                        "sam_mask": _rle(record, i),
                    }
                )
    images = [{**record.image, "caption": record.grounded.caption.text} for record in records]
    return {"images": images, "annotations": annotations, "categories": _OBJECT_CATEGORY}


def _captions_and_masks(records: list[ImageRecord]) -> tuple[dict[str, Any], dict[str, Any]]:
    captions, masks = [], []
    for record in records:
        caption, image_id = record.grounded.caption, record.image["id"]
        labels = [caption.text[slice(*phrase.span)] for phrase in caption.phrases]
        captions.append({"id": len(captions), "image_id": image_id, "caption": caption.text, "labels": labels})
        for phrase in caption.phrases:
            mask = _united(record, phrase.objects)
            masks.append({"id": len(masks) + 1, "image_id": image_id, "category_id": 1, "segmentation": mask})
    images = [record.image for record in records]
    return (
        {"images": [{"id": image["id"]} for image in images], "annotations": captions},
        {"images": images, "annotations": masks, "categories": _OBJECT_CATEGORY},
    )


def _united(record: ImageRecord, objects: list[int]) -> RLE:
    rles = [_rle(record, i) for i in objects]
    return unite(rles, tuple(rles[0]["size"])) if len(rles) > 1 else rles[0]


def _write_muse(folder: Path, train: list[ImageRecord], other: list[ImageRecord]) -> None:
    """The test sets hold the questions with few and with many answers."""
    for split, records, counts in (
        ("train", train, range(1, 100)),
        ("val", other, range(1, 100)),
        ("test_less", other, range(1, 4)),
        ("test_many", other, range(4, 100)),
    ):
        chosen = [[q for q in record.grounded.questions if len(q.objects) in counts] for record in records]
        entries = [_muse(record, questions) for record, questions in zip(records, chosen, strict=True) if questions]
        write_compact_json(folder / f"MUSE_{split}.json", entries)


def _muse(record: ImageRecord, questions: list[GroundedQuestion]) -> dict[str, Any]:
    image = record.image
    objects = [
        {
            "category_name": thing.kind,
            "rephrased_name": f"{thing.colour} {thing.kind}",
            "bbox": thing.bbox,
            "segmentation": segmentation(record, i),
        }
        for i, thing in enumerate(record.objects)
    ]
    split = f"{panoptic_split(record.split)}2017"
    by_url = {"coco_url": f"http://images.cocodataset.org/{split}/{image['file_name']}"}
    return {
        **({"file_name": image["file_name"]} if image["id"] % 2 else by_url),
        "height": image["height"],
        "width": image["width"],
        "ann_list": objects,
        "questions": [question.question for question in questions],
        "answers": [[objects[i] for i in question.objects] for question in questions],
        "text_answers": [question.answer for question in questions],
    }


def _reason_split(split: str) -> str:
    return {"testA": "test", "testB": "test"}.get(split, split)


def _write_reasons(out: Path, split: str, records: list[ImageRecord]) -> None:
    folder, written = out / "reason_seg" / "ReasonSeg" / split, 0
    folder.mkdir(parents=True)
    for record in records:
        reasoning, name = record.grounded.reasoning, record.image["file_name"]
        shapes = _shapes(record, reasoning) if reasoning else []
        if not reasoning or not shapes or written == REASON_IMAGES[split]:
            continue
        is_sentence = written % 3 > 0  # the real ones have phrases as well
        values = {
            "text": [reasoning.question if is_sentence else reasoning.phrase],
            "is_sentence": is_sentence,
            "shapes": shapes,
        }
        (folder / name).with_suffix(".json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        shutil.copyfile(out / IMAGES / name, folder / name)
        written += 1


def _shapes(record: ImageRecord, reasoning: ReasoningQuestion) -> list[dict[str, Any]]:
    """labelme shapes; empty where polygons cannot describe an object that matters."""
    marked = [*((i, "target") for i in reasoning.targets), *((i, "ignore") for i in reasoning.doubtful)]
    outlines = [(label, record.polygons[i].labelme) for i, label in marked]
    if not all(polygons for _, polygons in outlines):
        return []
    labelled = [(label, points) for label, polygons in outlines for points in polygons["target"]]
    # pixels in the holes of a target are ignored: labelme has no polygons with holes
    labelled += [("ignore", points) for _, polygons in outlines for points in polygons["ignore"]]
    name = record.image["file_name"]
    return [
        {"label": label, "labels": [label], "shape_type": "polygon", "image_name": name, "points": points, "flags": {}}
        for label, points in labelled
    ]
