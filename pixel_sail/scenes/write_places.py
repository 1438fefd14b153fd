"""Questions about places and nothing else: where an object is, and the masks of what is somewhere.

A small model that begins with them learns to use positions; one that begins with colours and kinds, which are easier
to see, does not (docs/results/scenes.md, "Places").
"""

from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.masks import unite
from pixel_sail.data.sources.osprey import SHORT_ANSWER
from pixel_sail.scenes.expressions import SIDES
from pixel_sail.scenes.facts import WHERES, ImageFacts
from pixel_sail.scenes.formats import training, write_json_lines
from pixel_sail.scenes.language import RANKS, phrase, pick, shuffled
from pixel_sail.scenes.multiple_choice import WHERE_QUESTIONS
from pixel_sail.scenes.types import ANY, AllQuery, ImageRecord, OrdinalQuery, PositionQuery, Query, Request, Rng
from pixel_sail.types import RLE

MAX_REGIONS, MAX_MASKS = 4, 8  # an image
MAX_TRIES = 24  # queries looked at for the masks of an image
_QUERIES: tuple[Query, ...] = (
    *(PositionQuery(ANY, where=where) for where in WHERES),
    *(PositionQuery(ANY, extreme=side) for side in SIDES),
    *(OrdinalQuery(ANY, rank, side) for rank in RANKS for side in SIDES),
    *(AllQuery(ANY, where=side) for side in SIDES),
)


def write_place_file(out: Path, records: list[ImageRecord], request: Request) -> None:
    """places_train.jsonl, in the format of docs/jsonl.md: a line for each training image."""
    rng = np.random.default_rng([request["seed"], 7])
    write_json_lines(out / "places_train.jsonl", (_line(record, rng) for record in training(records)))


def _line(record: ImageRecord, rng: Rng) -> dict[str, Any]:
    image = ImageFacts(record.objects, record.image["width"], record.image["height"], record.split)
    regions = shuffled(rng, image.indices)[:MAX_REGIONS]
    turns: list[tuple[str, str, RLE | None]] = [
        (pick(rng, WHERE_QUESTIONS).format(f"<Prompt{k}>") + pick(rng, (f" {SHORT_ANSWER}", "")), image.where(i), None)
        for k, i in enumerate(regions)
    ]
    turns = shuffled(rng, turns + [(text, "[SEG]", mask) for text, mask in _masks(image, rng)])
    return {
        "image": f"train2014/{record.image['file_name']}",
        "conversations": [{"question": question, "answer": answer} for question, answer, _ in turns],
        "regions": {str(k): record.objects[i].segmentation for k, i in enumerate(regions)},
        "masks": [mask for _, _, mask in turns if mask is not None],
    }


def _masks(image: ImageFacts, rng: Rng) -> list[tuple[str, RLE]]:
    """Phrases that say only a place, each with the mask of what is there: one object, or all of those in one half."""
    masks: list[tuple[str, RLE]] = []
    for query in shuffled(rng, _QUERIES)[:MAX_TRIES]:
        if len(masks) == MAX_MASKS:
            break
        targets = image.targets(query) or []
        if 1 < len(targets) < len(image.objects) if isinstance(query, AllQuery) else len(targets) == 1:
            mask = unite([image.objects[i].segmentation for i in targets], (image.height, image.width))
            masks.append((phrase(query, rng, len(targets)), mask))
    return masks
