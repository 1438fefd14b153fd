"""Many requests about the regions of an image in one conversation, where PerBench's own files have at most four.

Beside the image's own tokens a request costs little, so that a model learns more from an image in the same time.
"""

import re
from pathlib import Path
from typing import Any

from pixel_sail.scenes.formats import training, write_json_lines
from pixel_sail.scenes.lessons import LESSONS
from pixel_sail.scenes.types import ImageRecord, RegionRequest

_TAG = re.compile(r"<obj(\d+)>")


def write_request_file(out: Path, records: list[ImageRecord]) -> None:
    """requests_train.jsonl, in the format of docs/jsonl.md: a line for each training image that has a request."""
    lines = (_line(record, record.many_requests) for record in training(records) if record.many_requests)
    write_json_lines(out / "requests_train.jsonl", lines)


def write_lesson_files(out: Path, records: list[ImageRecord]) -> None:
    """<lesson>_train.jsonl for each of LESSONS, in the same format."""
    for lesson in LESSONS:
        lines = (_line(record, record.lessons[lesson]) for record in training(records) if record.lessons[lesson])
        write_json_lines(out / f"{lesson}_train.jsonl", lines)


def _line(record: ImageRecord, requests: list[RegionRequest]) -> dict[str, Any]:
    masks = [thing.segmentation for thing in record.objects]
    prompted = sorted({i for request in requests for i in request.prompts})
    numbers = {i: k for k, i in enumerate(prompted)}  # object -> K of <PromptK>
    return {
        "image": f"train2014/{record.image['file_name']}",
        "conversations": [_turn(request, numbers) for request in requests],
        "regions": {str(k): masks[i] for i, k in numbers.items()},
        "masks": [masks[i] for request in requests for i in request.targets],
    }


def _turn(request: RegionRequest, numbers: dict[int, int]) -> dict[str, str]:
    question = _TAG.sub(lambda tag: f"<Prompt{numbers[request.prompts[int(tag[1])]]}>", request.question)
    return {"question": question, "answer": _TAG.sub("[SEG]", request.answer)}
