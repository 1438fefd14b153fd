"""Drawn scenes as examples of the demo, for a model that has none beside it: one for each task."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from pixel_sail.data.templates import DESCRIBE, about
from pixel_sail.scenes.draw import FOLDERS, draw_image
from pixel_sail.scenes.formats import IMAGES
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.layout import split_of
from pixel_sail.scenes.types import ImageRecord, SceneObject
from pixel_sail.serve.demo.examples import Example, box

SEED = 2020  # of no dataset that a recipe draws
LONG_SIDE_PX = 192


def drawn_examples() -> list[Example]:
    """Six examples on images like those of the validation split. The same at each call; takes about a second."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FOLDERS:
            (Path(folder) / name).mkdir(parents=True)
        drawn = _drawn(Path(folder))
        first, second, third, fourth, fifth = islice(drawn, 5)
        sixth, absent = next((one, absent) for one in drawn if (absent := _absent(one[1])))
    return [
        _segment(first, [first[1].refs[0].sentences[0][0]]),
        _segment(second, list(dict.fromkeys(f"the {thing.colour} {thing.kind}" for thing in second[1].objects))[:4]),
        _ask(third, "What colour is this?", _largest(third[1])),
        _ask(fourth, about("this region", DESCRIBE[0]), _largest(fourth[1])),
        _ask(fifth, "How many things are there in the picture?", None),
        _segment(sixth, [absent]),
    ]


def _drawn(folder: Path) -> Iterator[tuple[bytes, ImageRecord]]:
    """The bytes of images like those of the validation split, and what is on them."""
    for index in (i for i in count() if split_of(i) == "val"):
        record = draw_image(folder, index, SEED, LONG_SIDE_PX)
        yield (folder / IMAGES / record.image["file_name"]).read_bytes(), record


def _segment(drawn: tuple[bytes, ImageRecord], phrases: list[str]) -> Example:
    return Example(drawn[0], drawn[1].image["file_name"], "segment", "\n".join(phrases))


def _ask(drawn: tuple[bytes, ImageRecord], question: str, thing: SceneObject | None) -> Example:
    shapes = []
    if thing:
        left, top, width, height = thing.bbox
        shapes = [box((left, top, left + width, top + height))]
    return Example(drawn[0], drawn[1].image["file_name"], "ask", question, shapes)


def _largest(record: ImageRecord) -> SceneObject:
    return max(record.objects, key=lambda thing: thing.area)


def _absent(record: ImageRecord) -> str | None:
    """An expression for a kind of thing that is not in the image; None if the image has no such expression."""
    kinds = {thing.kind for thing in record.objects}
    named = {wanted for kind in kinds for wanted in (kind, KINDS[kind].synonym) if wanted}
    nowhere = (ref.sentences[0][0] for ref in record.grefs if not ref.targets)
    return next((text for text in nowhere if not named & set(text.split()) and _names_a_kind(text)), None)


def _names_a_kind(text: str) -> bool:
    return any(word in KINDS for word in text.split())
