"""All annotation files of a dataset, from the records of its images."""

from dataclasses import replace
from itertools import count
from pathlib import Path

from pixel_sail.scenes.formats import write_compact_json
from pixel_sail.scenes.knowledge import knowledge
from pixel_sail.scenes.types import ImageRecord, Request
from pixel_sail.scenes.write_benchmarks import write_benchmark_files
from pixel_sail.scenes.write_grounded import write_grounded_files
from pixel_sail.scenes.write_image_text import write_image_text_files
from pixel_sail.scenes.write_pairs import write_pair_files
from pixel_sail.scenes.write_pixmmvp import write_pixmmvp_files
from pixel_sail.scenes.write_places import write_place_file
from pixel_sail.scenes.write_references import write_reference_files
from pixel_sail.scenes.write_regions import write_region_files
from pixel_sail.scenes.write_requests import write_lesson_files, write_request_file


def write_annotations(out: Path, records: list[ImageRecord], request: Request) -> None:
    """Write all annotation files under `out`; `records` come from `draw_image` in the order of their index."""
    records = _with_annotation_ids(records)
    queries = write_reference_files(out, records, request)
    write_region_files(out, records, request)
    write_grounded_files(out, records, request)
    write_pixmmvp_files(out, records, request)
    write_benchmark_files(out, records, request)
    if request.get("image_text"):
        write_image_text_files(out, records)
    write_pair_files(out, records, request)
    write_place_file(out, records, request)
    write_request_file(out, records)
    if request.get("lessons"):
        write_lesson_files(out, records)
    write_compact_json(out / "scenes.json", knowledge(records, request, queries))


def _with_annotation_ids(records: list[ImageRecord]) -> list[ImageRecord]:
    ids = count(1)
    return [
        replace(record, objects=[replace(thing, ann_id=next(ids)) for thing in record.objects]) for record in records
    ]
