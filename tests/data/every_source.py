"""One small root that has the files of every source, each with an entry or two in the published format."""

import json
import pickle
from pathlib import Path

import numpy as np
from conftest import write_refer_dataset
from PIL import Image
from source_fixtures import SIZE, box_polygon, box_rle, box_runs, messages, write_images, write_json

HEIGHT, WIDTH = SIZE
SIDES = {"height": HEIGHT, "width": WIDTH}
COCO = "000000000009.jpg"
GCG = "GranDf/annotations"


def write_every_source(root: Path) -> dict[str, tuple[str, str]]:
    """Writes the root. Returns, for each source, its split and its annotation file (JSON, JSON lines or pickle)."""
    for name in ("refcoco", "refcoco+", "refcocog"):
        part = write_refer_dataset(root / "parts" / name, train=1, val=1, size_wh=(WIDTH, HEIGHT))
        (root / name).mkdir(parents=True)
        for file in ("instances.json", "refs(unc).p"):
            (part / "refcoco" / file).rename(root / name / file)
    (part / "grefcoco").rename(root / "grefcoco")
    (root / "images").mkdir()
    (part / "images/train2014").rename(root / "images/train2014")
    write_images(root / "images/train2017", COCO, "9.jpg")
    write_images(root / "reason_seg/ReasonSeg/train", "a.jpg")
    write_images(root / "mapillary/training/images", "a.jpg")
    write_images(root / "ade20k/images/training", "a.jpg")
    write_images(root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages", "9.jpg")
    write_images(root / "images", "mine.png")
    _label_maps(root)
    _panoptic_png(root)
    for file, values in _json_files().items():
        write_json(root / file, values)
    lines = [json.dumps(values) for values in _jsonl()]
    (root / "train.jsonl").write_text("\n".join(lines))
    return _files()


def load(path: Path):
    """The values of an annotation file."""
    if path.suffix == ".p":
        return pickle.loads(path.read_bytes())
    if path.suffix == ".jsonl":
        return list(map(json.loads, path.read_text().splitlines()))
    return json.loads(path.read_text())


def dump(path: Path, values) -> None:
    """The inverse of `load`."""
    if path.suffix == ".p":
        path.write_bytes(pickle.dumps(values))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, values)))
    else:
        path.write_text(json.dumps(values))


def _files() -> dict[str, tuple[str, str]]:
    osprey = ("short_form", "conversation", "detail_description", "part_level", "lvis_positive_negative")
    files = {
        **{name: f"{name}/refs(unc).p" for name in ("refcoco", "refcoco+", "refcocog")},
        **{f"{name}_captions": f"{name}/instances.json" for name in ("refcoco", "refcoco+", "refcocog")},
        "grefcoco": "grefcoco/grefs(unc).json",
        "reason_seg": "reason_seg/ReasonSeg/train/a.json",
        "reason_seg_explained": "reason_seg/ReasonSeg/explanatory/train.json",
        **dict.fromkeys(("coco_instance", "concepts"), "annotations/instances_train2017.json"),
        **{
            name: "annotations/panoptic_train2017.json"
            for name in ("coco_panoptic_segments", "panoptic_category", "coco_semantic")
        },
        "grand_f": f"{GCG}/train/GranDf_HA_GCG_train.json",
        "open_psg": f"{GCG}/train/OpenPsgGCG_train.json",
        "refcocog_gcg": f"{GCG}/train/RefCOCOg_GCG_train.json",
        "flickr_gcg": f"{GCG}/train/flickr_mergedGT_GCG_train.json",
        "muse": "muse/MUSE_train.json",
        "pix2cap_caption": "pix2cap/pix2cap_coco_train.json",
        "pix2cap_segment": "pix2cap/pix2cap_coco_train.json",
        **{f"osprey_{kind}": f"osprey/osprey_{kind}.json" for kind in osprey},
        "sam_captions": "sam_captions/train.json",
        "perbench_caption": "perbench_train/STBench_Detailed_Caption.json",
        "perbench_mcq": "perbench_train/STBench_MCQ.json",
        "perbench_vtres": "perbench_train/STBench_VRES.json",
        "llava": "llava/train.json",
        "choices": "llava/choices.json",
        "llava_mix665k": "llava/llava_v1_5_mix665k.json",
        "refcocog_mdetr_captions": "RefCoco_Reg/mdetr_annotations/finetune_refcocog_train_with_mask.json",
        "mapillary": "mapillary/config_v2.0.json",
        "paco_lvis": "vlpart/paco/annotations/paco_lvis_v1_train.json",
        "pascal_part": "vlpart/pascal_part/train.json",
        "jsonl": "train.jsonl",
    }
    return {name: ("train", file) for name, file in files.items()} | {
        "grand_f, captions": ("val", f"{GCG}/val_test/val_gcg_coco_caption_gt.json"),
        "grand_f, masks": ("val", f"{GCG}/val_test/val_gcg_coco_mask_gt.json"),
    }


def _json_files() -> dict[str, object]:
    talk = [{"id": "1", "image": COCO, "conversations": messages("<image>\nWhat is it?", "A cup.")}]
    grounded = [
        {"file_name": COCO, "image_id": "9", **SIDES, "caption": "A cat sits."}
        | {"groundings": {"A cat": {"token_positives": [0, 5], "rle_masks": [box_rle(0, 0)]}}}
    ]
    ref = {"sentence": "a cat", "bbox": [0, 0, 5, 5], "segmentation": box_polygon(0, 0)}
    image = {"id": 9, "file_name": COCO, **SIDES}
    flickr = {
        "images": [image | {"caption": "A cat sits."}],
        "annotations": [{"image_id": 9, "tokens_positive": [[0, 5]], "sam_mask": box_rle(0, 0)}],
    }
    captions = [{"image_name": COCO, "object_annotations": [{"segmentation": box_rle(0, 0), "caption": "A red cup."}]}]
    question = {
        "image_name": COCO,
        "mcqs": [{"question": "What?\nA. cup\nB. pot", "answer": "A", "object": box_rle(0, 0)}],
    }
    vtres = {"image_name": COCO, "question": "What is near <a>?", "answer": "That is <b>."}
    vtres["segmentations"] = {"<a>": box_rle(0, 0), "<b>": box_rle(10, 10)}
    osprey = {
        "id": 1,
        "file_name": COCO,
        **SIDES,
        "annotation": [{"bbox": [0, 0, 5, 5], "segmentation": box_polygon(0, 0)}],
    }
    osprey["conversations"] = messages("What is <region1>?", "A cup.")
    kinds = ("short_form", "conversation", "part_level", "lvis_positive_negative")
    described = {key: value for key, value in osprey.items() if key != "conversations"} | {
        "description": ["<region1>: A cup."]
    }
    muse = {"file_name": COCO, **SIDES, "questions": ["What is hot?"], "text_answers": ["It is {seg}."]}
    muse["answers"] = [[{"segmentation": box_polygon(0, 0), "category_name": "cup"}]]
    parts = {
        "images": [image | {"file_name": "9.jpg"}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cup:rim"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 1, "segmentation": box_polygon(0, 0), "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 2, "segmentation": box_runs(10, 0), "iscrowd": 0},
        ],
    }
    mdetr = {
        "images": [{"id": 0, "original_id": 9, "file_name": COCO, **SIDES, "caption": "the cup"}],
        "annotations": [{"id": 0, "image_id": 0, "segmentation": box_polygon(0, 0)}],
    }
    reason = {
        "text": ["What is hot?"],
        "is_sentence": True,
        "shapes": [{"label": "target", "points": [[1, 1], [9, 1], [9, 9]]}],
    }
    gt = {"images": [image], "annotations": [{"id": 1, "image_id": 9, "caption": "A cat sits.", "labels": ["A cat"]}]}
    gt_masks = {"images": [image], "annotations": [{"id": 1, "image_id": 9, "segmentation": box_rle(0, 0)}]}
    segments = [
        {"id": 1, "category_id": 1, "area": 25, "iscrowd": 0},
        {"id": 2, "category_id": 2, "area": 25, "iscrowd": 0},
    ]
    panoptic = {
        "images": [image],
        "categories": [{"id": 1, "name": "cup", "isthing": 1}, {"id": 2, "name": "grass", "isthing": 0}],
        "annotations": [{"image_id": 9, "file_name": "9.png", "segments_info": segments}],
    }
    pix2cap = {"images": [image], "annotations": [{"image_id": 9, "file_name": "9.png"}]}
    pix2cap["annotations"][0]["segments_info"] = [segment | {"description": "A red cup."} for segment in segments]
    instances = parts | {"images": [image]}
    return {
        "reason_seg/ReasonSeg/train/a.json": reason,
        "reason_seg/ReasonSeg/explanatory/train.json": [
            {"image": "a.jpg", "query": "What is hot?", "outputs": "Steam."}
        ],
        "annotations/instances_train2017.json": instances,
        "annotations/panoptic_train2017.json": panoptic,
        f"{GCG}/train/GranDf_HA_GCG_train.json": grounded,
        f"{GCG}/train/OpenPsgGCG_train.json": grounded,
        f"{GCG}/train/RefCOCOg_GCG_train.json": [
            {"77": {"img_file_name": COCO, "caption": "A cat sits.", "refs": [ref]}}
        ],
        f"{GCG}/train/flickr_mergedGT_GCG_train.json": flickr,
        f"{GCG}/val_test/val_gcg_coco_caption_gt.json": gt,
        f"{GCG}/val_test/val_gcg_coco_mask_gt.json": gt_masks,
        "muse/MUSE_train.json": [muse],
        "pix2cap/pix2cap_coco_train.json": pix2cap,
        **{f"osprey/osprey_{kind}.json": [osprey] for kind in kinds},
        "osprey/osprey_detail_description.json": [described],
        "sam_captions/train.json": captions,
        "perbench_train/STBench_Detailed_Caption.json": captions,
        "perbench_train/STBench_MCQ.json": [question],
        "perbench_train/STBench_VRES.json": [vtres],
        "llava/train.json": talk,
        "llava/choices.json": talk,
        "llava/llava_v1_5_mix665k.json": talk,
        "RefCoco_Reg/mdetr_annotations/finetune_refcocog_train_with_mask.json": mdetr,
        "mapillary/config_v2.0.json": {"labels": [{"readable": "Bird", "evaluate": True}, {"readable": "Car"}]},
        "vlpart/paco/annotations/paco_lvis_v1_train.json": parts,
        "vlpart/pascal_part/train.json": parts,
    }


def _jsonl() -> list[dict]:
    talk = [{"question": "Where is <Prompt0>?", "answer": "It is [SEG]."}]
    boxed = {"image": "mine.png", "conversations": talk, "masks": [box_polygon(0, 0)], "regions": {"0": [5, 5, 9, 9]}}
    return [boxed, boxed | {"masks": [box_rle(0, 0)], "regions": {"0": [3, 3]}}]


def _label_maps(root: Path) -> None:
    for folder in (
        "mapillary/training/v2.0/labels",
        "ade20k/annotations/training",
        "stuffthingmaps_trainval2017/train2017",
    ):
        (root / folder).mkdir(parents=True)
        labels = np.zeros(SIZE, dtype=np.uint8)
        labels[:5, :5] = 1
        name = COCO if folder.startswith("stuff") else "a.jpg"
        Image.fromarray(labels).save(root / folder / name.replace(".jpg", ".png"))


def _panoptic_png(root: Path) -> None:
    (root / "annotations/panoptic_train2017").mkdir(parents=True)
    colours = np.zeros((*SIZE, 3), dtype=np.uint8)
    colours[:5, :5, 0], colours[:5, 10:15, 0] = 1, 2
    Image.fromarray(colours).save(root / "annotations/panoptic_train2017/9.png")
