"""Benchmarks of others at small scale, about held-out images: GroundingSuite-Eval, Ref-L4, DLC-Bench and GAR-Bench."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.masks import area_px, box_px, decode_mask, encode_mask, unite
from pixel_sail.scenes.conversations import HALVES
from pixel_sail.scenes.descriptions import DIRECTION_PHRASES, with_article
from pixel_sail.scenes.formats import coco_instances, held_out, info, write_compact_json
from pixel_sail.scenes.panoptic import CATEGORY
from pixel_sail.scenes.region_items import MIN_PART_PX, half_of
from pixel_sail.scenes.types import ImageRecord, MultipleChoice, Request, Rng, SceneObject
from pixel_sail.types import RLE

IMAGES = 100  # of each benchmark, at most
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_GAR_TYPES = {"colour": "color", "texture": "texture/pattern", "kind": "shape"}  # topic -> as GAR-Bench calls it


def write_benchmark_files(out: Path, records: list[ImageRecord], request: Request) -> None:
    rng = np.random.default_rng([request["seed"], 8])
    other = held_out(records)
    chosen = [other[i] for i in sorted(rng.permutation(len(other))[:IMAGES].tolist())]
    _write_gseval(out / "gseval", chosen)
    for split, splits in (("val", ("val",)), ("test", ("testA", "testB"))):
        rows = _ref_l4([record for record in chosen if record.split in splits], split)
        _write_lines(out / f"ref_l4/ref-l4-{split}.jsonl", rows)
    _write_dlc(out / "dlc_bench", chosen, request, rng)
    _write_gar(out / "gar_bench", chosen, rng)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _image(record: ImageRecord) -> str:
    """The image, relative to the dataset."""
    return f"images/train2014/{record.image['file_name']}"


def _write_gseval(folder: Path, records: list[ImageRecord]) -> None:
    """Sorted by class_id, as the published file: 1 stuff, 2 part, 3 several objects, 4 one object."""
    entries = [entry for record in records for entry in _groundings(record)]
    entries.sort(key=lambda entry: entry["class_id"])
    _write_lines(folder / "GroundingSuite-Eval.jsonl", [{"idx": idx, **entry} for idx, entry in enumerate(entries)])


def _groundings(record: ImageRecord) -> Iterator[dict[str, Any]]:
    size = (record.image["height"], record.image["width"])
    things = decode_mask(unite([thing.segmentation for thing in record.objects], size))
    yield _grounding(record, 1, "background", "The background behind all things.", encode_mask(~things))
    names = [(thing.colour, thing.kind) for thing in record.objects]
    for i, thing in enumerate(record.objects):
        half = HALVES[(record.image["id"] + i) % len(HALVES)]
        mask = encode_mask(half_of(decode_mask(thing.segmentation), thing.bbox, half))
        if names.count(names[i]) == 1 and thing.visible_share > 0.95 and area_px(mask) >= MIN_PART_PX:
            part = f"{half} half of the {_name(thing)}"
            yield _grounding(record, 2, part, f"The {part}.", mask)
            break
    for class_id, wanted in ((3, [gref for gref in record.grefs if len(gref.targets) > 1]), (4, record.refs)):
        for reference in wanted[:1]:
            mask = unite([record.objects[i].segmentation for i in reference.targets], size)
            label = " and ".join(_name(record.objects[i]) for i in reference.targets)
            yield _grounding(record, class_id, label, reference.sentences[0][0], mask)


def _grounding(record: ImageRecord, class_id: int, label: str, caption: str, mask: RLE) -> dict[str, Any]:
    image = _image(record).removeprefix("images/")
    entry = {"image_path": image, "class_id": class_id, "label": label, "caption": caption}
    return {**entry, "box": box_px(mask), "segmentation": mask}


def _ref_l4(records: list[ImageRecord], split: str) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        for reference in record.long_refs:
            thing, image = record.objects[reference.targets[0]], record.image
            rows.append(
                {
                    "id": thing.ann_id,
                    "caption": reference.sentences[0][0],
                    "bbox": [float(side) for side in thing.bbox],
                    "bbox_area": float(thing.bbox[2] * thing.bbox[3]),
                    "bbox_id": f"scenes_{thing.ann_id}",
                    "ori_category_id": f"scenes_{CATEGORY[thing.kind]}",
                    "image_id": f"scenes_{image['id']}",
                    "height": image["height"],
                    "width": image["width"],
                    "file_name": image["file_name"],
                    "is_rewrite": False,
                    "split": split,
                }
            )
    return rows


def _write_dlc(folder: Path, records: list[ImageRecord], request: Request, rng: Rng) -> None:
    """One object an image. Points as in the published file: right 1, not said 0, wrong -1."""
    picked = [int(rng.integers(len(record.objects))) for record in records]
    ids = {record.objects[i].ann_id for record, i in zip(records, picked, strict=True)}
    coco = coco_instances(records, polygons=True)
    coco["annotations"] = [annotation for annotation in coco["annotations"] if annotation["id"] in ids]
    write_compact_json(folder / "annotations.json", {"info": info(request), "licenses": [], **coco})
    pairs = [(record, i, record.objects[i]) for record, i in zip(records, picked, strict=True)]
    write_compact_json(folder / "class_names.json", {str(thing.ann_id): thing.kind for _, _, thing in pairs})
    write_compact_json(folder / "qa.json", {str(thing.ann_id): _qa(record, i, rng) for record, i, thing in pairs})


def _qa(record: ImageRecord, i: int, rng: Rng) -> list[dict[str, Any]]:
    facts = record.regions.facts[i]
    questions = [
        _said("colour", facts.colour),
        _said("texture", facts.texture),
        _said("place in the picture", facts.where),
    ]
    others = {thing.kind for thing in record.objects} - {facts.kind}
    kind = sorted(others or set(CATEGORY) - {facts.kind})[int(rng.integers(len(others) or len(CATEGORY) - 1))]
    choices = [["Yes", -1], ["No", 1]]
    question = f"Does the description say that it is {with_article(kind)}?"
    return [*questions, {"question": question, "choices": choices, "type": "negative"}]


def _said(what: str, value: str) -> dict[str, Any]:
    choices = [[value, 1], [f"another {what}", -1], [f"no {what} is said", 0]]
    return {"question": f"Which {what} does the description give it?", "choices": choices, "type": "positive"}


def _write_gar(folder: Path, records: list[ImageRecord], rng: Rng) -> None:
    vqa: list[dict[str, Any]] = []
    simple: list[dict[str, Any]] = []
    detailed: list[dict[str, Any]] = []
    for record in records:
        vqa += [_question(record, item) for item in record.regions.multiple_choice if item.topic in _GAR_TYPES][:2]
        related = [(i, facts.relation) for i, facts in enumerate(record.regions.facts) if facts.relation]
        if not related:
            continue
        i, (direction, j) = related[int(rng.integers(len(related)))]
        subject, other = record.objects[i], record.objects[j]
        both = {"image": _image(record), "mask_rles": [subject.segmentation, other.segmentation]}
        vqa.append(both | _relation_question(direction, bool(rng.random() < 0.5)))
        how = DIRECTION_PHRASES[direction]
        answer = f"The {_name(subject)} is {how} the {_name(other)}."
        simple.append(both | {"question": "How does <Prompt0> lie relative to <Prompt1>?", "answer": answer})
        names = {"subject_name": _name(subject), "object_name": _name(other), "predicate_name": how}
        detailed.append(both | names)
    for name, entries in (("VQA", vqa), ("Caption-Simple", simple), ("Caption-Detailed", detailed)):
        write_compact_json(folder / f"GAR-Bench-{name}.json", entries)


def _question(record: ImageRecord, item: MultipleChoice) -> dict[str, Any]:
    question, *choices = item.question.splitlines()
    return {
        "image": _image(record),
        "mask_rles": [record.objects[item.object].segmentation],
        "question": question,
        "choices": choices,
        "answer": item.answer,
        "type": _GAR_TYPES[item.topic],
    }


def _relation_question(direction: str, right_first: bool) -> dict[str, Any]:
    options = [direction, _OPPOSITE[direction]] if right_first else [_OPPOSITE[direction], direction]
    choices = [f"{letter}. {DIRECTION_PHRASES[option]} it" for letter, option in zip("AB", options, strict=True)]
    question, answer = "Where is <Prompt0>, seen from <Prompt1>?", "A" if right_first else "B"
    return {"question": question, "choices": choices, "answer": answer, "type": "relation"}


def _name(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.kind}"
