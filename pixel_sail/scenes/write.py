"""The on-disk formats: RefCOCO(g) (pickle), gRefCOCO (JSON), COCO instances and the full knowledge in scenes.json."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail.scenes.choose import choose_grefs, choose_refs
from pixel_sail.scenes.choose_long import choose_long_refs
from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.facts import Picture
from pixel_sail.scenes.ground import choose_grounded
from pixel_sail.scenes.layout import Scene, draw_scene
from pixel_sail.scenes.panoptic import CATEGORY, folder, write_png
from pixel_sail.scenes.regions import choose_regions
from pixel_sail.scenes.render import render
from pixel_sail.scenes.write_grounded import polygons_of, write_grounded_files
from pixel_sail.scenes.write_pixmmvp import write_pixmmvp_files
from pixel_sail.scenes.write_regions import known_regions, write_json, write_region_files

IMAGES = Path("images/train2014")
FOLDERS = (IMAGES, folder("train"), folder("val"))  # what make_image writes to
_REFCOCOG_SPLITS = {"train": "train", "val": "val", "testA": "test", "testB": "test"}


def make_image(out: Path, index: int, seed: int, long_side_px: int, style: str = "day") -> dict[str, Any]:
    """Draws image ``index``, writes JPEG and panoptic PNG under ``out`` and returns its annotations as JSON-able data.

    All randomness comes from (seed, index), so the result is the same in any process and for any number of images.
    """
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(index, long_side_px, rng)
    name = f"scenes_{index + 1:012d}.jpg"
    Image.fromarray(render(scene, rng, style)).save(out / IMAGES / name, quality=92, subsampling=0)
    objects = [_facts(scene, i) for i in range(len(scene.things))]
    size = (scene.width, scene.height)
    # of its own, so that images and expressions stay what they were before there were regions
    region_rng = np.random.default_rng([seed, index, 1])
    picture = Picture(objects, *size, scene.split)
    grounded = choose_grounded(picture, np.random.default_rng([seed, index, 3]))  # of its own as well
    return {
        "image": {"id": index + 1, "width": scene.width, "height": scene.height, "file_name": name},
        "split": scene.split,
        "objects": objects,
        "refs": choose_refs(objects, *size, scene.split, rng),
        "grefs": choose_grefs(objects, *size, scene.split, rng),
        "long_refs": choose_long_refs(picture, region_rng),
        "regions": choose_regions(picture, scene.owner, index, region_rng),
        "grounded": grounded,
        "polygons": polygons_of(scene.owner, objects, grounded["reason"]),
        "background": write_png(
            out / folder(scene.split) / name.replace(".jpg", ".png"),
            scene.owner,
            [thing.kind for thing in scene.things],
        ),
    }


def _facts(scene: Scene, i: int) -> dict[str, Any]:
    """What is known about one object; areas in pixels, bbox as (x, y, width, height), centroid as (x, y) in pixels."""
    thing, mask = scene.things[i], scene.owner == i
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    ys, xs = np.nonzero(mask)
    left, top = int(xs.min()), int(ys.min())
    return {
        "kind": thing.kind,
        "colour": thing.colour,
        "texture": thing.texture,
        "size_class": thing.size_class,
        "size_px": round(float(thing.size_px), 2),
        "depth": i,
        "bbox": [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1],
        "area": int(mask.sum()),
        "visible_share": round(float(mask.sum() / thing.sprite.cover.sum()), 4),
        "centroid": [round(float(xs.mean()) + 0.5, 3), round(float(ys.mean()) + 0.5, 3)],
        "segmentation": {"size": [scene.height, scene.width], "counts": rle["counts"].decode("ascii")},
    }


def write_annotations(out: Path, records: list[dict[str, Any]], request: dict[str, Any]) -> None:
    """Writes all annotation files under ``out``; ``records`` come from ``make_image`` in the order of their index."""
    annotations, knowledge = [], []
    for record in records:
        for facts in record["objects"]:
            facts["ann_id"] = len(annotations) + 1
            annotations.append(_annotation(facts, record["image"]["id"]))
        objects = [{k: v for k, v in facts.items() if k != "segmentation"} for facts in record["objects"]]
        knowledge.append({**record["image"], "split": record["split"], "objects": objects})
    instances = {
        "info": {"description": "pixel_sail scenes: drawn pictures with exact masks", **request},
        "licenses": [],
        "images": [record["image"] for record in records],
        "annotations": annotations,
        "categories": [{"supercategory": "object", "id": i, "name": kind} for kind, i in CATEGORY.items()],
    }
    refs, ref_queries = _number(records, "refs", _ref)
    grefs, gref_queries = _number(records, "grefs", _gref)
    long_refs, long_queries = _number(records, "long_refs", _ref)
    for ref in long_refs:
        ref["split"] = _REFCOCOG_SPLITS[ref["split"]]
    for name in ("refcoco", "refcocog", "grefcoco"):
        write_json(out / name / "instances.json", instances)
    write_json(out / "grefcoco" / "grefs(unc).json", grefs)
    _write_pickle(out / "refcoco" / "refs(unc).p", refs)
    _write_pickle(out / "refcocog" / "refs(umd).p", long_refs)
    write_region_files(out, records, request)
    write_grounded_files(out, records, request)
    write_pixmmvp_files(out, records, request)
    write_json(
        out / "scenes.json",
        {
            "request": request,
            "colours": list(COLOURS),
            "textures": list(TEXTURES),
            "held_out_pairs": sorted(HELD_OUT),
            "images": knowledge,
            # indexed by sent_id
            "queries": {"refcoco": ref_queries, "grefcoco": gref_queries, "refcocog": long_queries},
            "regions": [known_regions(record) for record in records],  # in the order of images
        },
    )


def _write_pickle(path: Path, refs: list[dict[str, Any]]) -> None:
    # through JSON, so that which strings are one object in memory (and thus the bytes) does not depend on the workers
    path.write_bytes(pickle.dumps(json.loads(json.dumps(refs)), protocol=2))


def _annotation(facts: dict[str, Any], image_id: int) -> dict[str, Any]:
    return {
        "id": facts["ann_id"],
        "image_id": image_id,
        "category_id": CATEGORY[facts["kind"]],
        "segmentation": facts["segmentation"],
        "area": facts["area"],
        "bbox": facts["bbox"],
        "iscrowd": 0,
    }


def _number(records: list[dict[str, Any]], key: str, make: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Gives ids to the references and sentences of all images; the queries come back in the order of sent_id."""
    refs: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    for record in records:
        for target, sentences in record[key]:
            numbered = []
            for text, query in sentences:
                numbered.append({"sent_id": len(queries), "sent": text, "raw": text, "tokens": text.split()})
                queries.append(query)
            ref = {"ref_id": len(refs), "image_id": record["image"]["id"], "split": record["split"]}
            ref |= make(record, target)
            refs.append(ref | {"sentences": numbered, "sent_ids": [one["sent_id"] for one in numbered]})
    return refs, queries


def _ref(record: dict[str, Any], target: int) -> dict[str, Any]:
    facts, stem = record["objects"][target], Path(record["image"]["file_name"]).stem
    name = f"{stem}_{facts['ann_id']}.jpg"  # as in RefCOCO: not the name of the image, which is in instances.json
    return {"ann_id": facts["ann_id"], "category_id": CATEGORY[facts["kind"]], "file_name": name}


def _gref(record: dict[str, Any], targets: list[int]) -> dict[str, Any]:
    chosen = [record["objects"][i] for i in targets]
    return {
        "ann_id": [facts["ann_id"] for facts in chosen] or [-1],
        "category_id": sorted({CATEGORY[facts["kind"]] for facts in chosen}) or [-1],
        "no_target": not targets,
        "file_name": record["image"]["file_name"],
    }
