"""scenes.json: the nouns of types.py as JSON. Facts and queries; texts and masks are in the annotation files."""

from dataclasses import fields
from typing import Any

from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.types import Filter, ImageRecord, Query, Request, SceneObject

# fields that have another name in JSON
_JSON_NAMES = {"side": "from", "size_class": "class"}


def knowledge(records: list[ImageRecord], request: Request, queries: dict[str, list[Query]]) -> dict[str, Any]:
    """All that is known of a dataset. `queries`: for each dataset of references, by sent_id."""
    return {
        "request": request,
        "colours": list(COLOURS),
        "textures": list(TEXTURES),
        "held_out_pairs": sorted(HELD_OUT),
        "images": [
            {**record.image, "split": record.split, "objects": [_object_json(thing) for thing in record.objects]}
            for record in records
        ],
        "queries": {name: [query_json(query) for query in of_dataset] for name, of_dataset in queries.items()},
        "regions": [_regions_json(record) for record in records],  # in the order of images
    }


def query_json(query: Query) -> dict[str, Any]:
    """The type and the fields of a query, without those that are None."""
    values = {field.name: getattr(query, field.name) for field in fields(query)}
    present = {_JSON_NAMES.get(name, name): _value_json(value) for name, value in values.items() if value is not None}
    return {"type": query.type, **present}


def _value_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_value_json(item) for item in value]
    return _filter_json(value) if isinstance(value, Filter) else value


def _filter_json(wanted: Filter) -> dict[str, Any]:
    index = {} if wanted.index is None else {"is": wanted.index}
    return {**wanted.attributes, **index, **({"except": wanted.excluded} if wanted.excluded else {})}


def _object_json(thing: SceneObject) -> dict[str, Any]:
    return {field.name: getattr(thing, field.name) for field in fields(thing) if field.name != "segmentation"}


def _regions_json(record: ImageRecord) -> dict[str, Any]:
    regions = record.regions
    return {
        "facts": [{"size": facts.size, "where": facts.where, "relation": facts.relation} for facts in regions.facts],
        "mcqs": [
            {"object": item.object, "topic": item.topic, "right": item.right, "answer": item.answer}
            for item in regions.multiple_choice
        ],
        "vres": [
            {
                "topic": item.topic,
                "query": query_json(item.query),
                "prompts": item.prompts,
                "targets": item.targets,
            }
            for item in regions.requests
        ],
    }
