"""The files of RefCOCO, RefCOCOg (pickle) and gRefCOCO (JSON), each with its instances.json."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixel_sail.scenes.formats import coco_instances, info, write_compact_json
from pixel_sail.scenes.panoptic import CATEGORY
from pixel_sail.scenes.types import ImageRecord, Query, Reference, Request

_REFCOCOG_SPLITS = {"train": "train", "val": "val", "testA": "test", "testB": "test"}


def write_reference_files(out: Path, records: list[ImageRecord], request: Request) -> dict[str, list[Query]]:
    """Write the three folders; return the queries of each dataset in the order of sent_id."""
    instances = {"info": info(request), "licenses": [], **coco_instances(records, polygons=False)}
    refs, queries = _numbered(records, lambda record: record.refs, _single)
    grefs, gref_queries = _numbered(records, lambda record: record.grefs, _any_number)
    long_refs, long_queries = _numbered(records, lambda record: record.long_refs, _single)
    for ref in long_refs:
        ref["split"] = _REFCOCOG_SPLITS[ref["split"]]
    for name in ("refcoco", "refcocog", "grefcoco"):
        write_compact_json(out / name / "instances.json", instances)
    write_compact_json(out / "grefcoco" / "grefs(unc).json", grefs)
    _write_pickle(out / "refcoco" / "refs(unc).p", refs)
    _write_pickle(out / "refcocog" / "refs(umd).p", long_refs)
    return {"refcoco": queries, "grefcoco": gref_queries, "refcocog": long_queries}


def _write_pickle(path: Path, refs: list[dict[str, Any]]) -> None:
    # through JSON: the bytes must not depend on which strings the workers share in memory
    path.write_bytes(pickle.dumps(json.loads(json.dumps(refs)), protocol=2))


def _numbered(
    records: list[ImageRecord],
    references_of: Callable[[ImageRecord], list[Reference]],
    targets_of: Callable[[ImageRecord, list[int]], dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[Query]]:
    """The references of all images with ids, and the queries of their sentences in the order of sent_id."""
    refs: list[dict[str, Any]] = []
    queries: list[Query] = []
    for record in records:
        for reference in references_of(record):
            sentences = [
                {"sent_id": sent_id, "sent": text, "raw": text, "tokens": text.split()}
                for sent_id, (text, _) in enumerate(reference.sentences, start=len(queries))
            ]
            queries += [query for _, query in reference.sentences]
            ref = {"ref_id": len(refs), "image_id": record.image["id"], "split": record.split}
            ref |= targets_of(record, reference.targets)
            refs.append(ref | {"sentences": sentences, "sent_ids": [sentence["sent_id"] for sentence in sentences]})
    return refs, queries


def _single(record: ImageRecord, targets: list[int]) -> dict[str, Any]:
    thing, stem = record.objects[targets[0]], Path(record.image["file_name"]).stem
    name = f"{stem}_{thing.ann_id}.jpg"  # as in RefCOCO: not the name of the image, which is in instances.json
    return {"ann_id": thing.ann_id, "category_id": CATEGORY[thing.kind], "file_name": name}


def _any_number(record: ImageRecord, targets: list[int]) -> dict[str, Any]:
    chosen = [record.objects[i] for i in targets]
    return {
        "ann_id": [thing.ann_id for thing in chosen] or [-1],
        "category_id": sorted({CATEGORY[thing.kind] for thing in chosen}) or [-1],
        "no_target": not targets,
        "file_name": record.image["file_name"],
    }
