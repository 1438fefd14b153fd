"""Annotation files that hold a list of entries: what can be used of them, and a line for each entry that cannot."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.limits import MAX_ID_CHARACTERS, MAX_IMAGE_PIXELS
from pixel_sail.data.masks import from_coco
from pixel_sail.data.text import printable, refuse_text
from pixel_sail.tokens import SEG, prompt_names
from pixel_sail.types import RLE, BadSample

T = TypeVar("T")
Entry = TypeVar("Entry")


def read_entries(path: Path, name: str, parse: Callable[[Any, str], T], problems: list[str]) -> list[T]:
    """`parse(entry, key)` of every entry, key "<name>/<index>"; the BadSamples it raises are added to `problems`.

    Raises DatasetError for a missing file, one that is not a list, and one of which no entry can be used.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DatasetError(f"{path} holds a {type(entries).__name__}; expected a list of entries")
    parsed = parse_usable(numbered(entries, name), parse, problems)
    refuse_nothing(parsed, path, problems)
    return parsed


def parse_usable(
    entries: Iterable[tuple[Entry, str]], parse: Callable[[Entry, str], T], problems: list[str]
) -> list[T]:
    """`parse(entry, key)` of each (entry, key); the BadSamples it raises are added to `problems`."""
    parsed: list[T] = []
    for entry, key in entries:
        try:
            parsed.append(parse(entry, key))
        except BadSample as error:
            problems.append(printable(str(error)))
    return parsed


def numbered(entries: Iterable[Entry], key: str, first: int = 0) -> Iterable[tuple[Entry, str]]:
    """(entry, "<key>/<index>") of each, the indices from `first` on."""
    return ((entry, f"{key}/{number}") for number, entry in enumerate(entries, first))


def refuse_nothing(usable: Sequence[Any], path: Path, problems: list[str]) -> None:
    """Raises DatasetError, with the first of the problems, if nothing of a file is usable."""
    if not usable:
        raise DatasetError(
            f"nothing of {path} can be used" + (f"; first: {problems[0]}" if problems else ": it is empty")
        )


def repeated(ids: Iterable[Hashable]) -> frozenset[Any]:
    """The ids that occur more than once: nothing says which of their entries is meant."""
    return frozenset(value for value, times in Counter(ids).items() if times > 1)


def records(values: Any, name: str, ids: tuple[str, ...], path: Path, what: str) -> list[dict[str, Any]]:
    """The list `values[name]` of a COCO-like file: objects whose members `ids` are numbers or texts.

    Raises DatasetError for any other: `path` is no `what` then, and nothing says which entries belong together.
    """
    entries = values.get(name) if isinstance(values, dict) else None
    if not isinstance(entries, list):
        raise DatasetError(f"{path} is not {what}: no {name!r}" + (", which must be a list" if entries else ""))
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(f"{path} is not {what}: {name}[{number}] is {reprlib.repr(entry)}; expected an object")
        for key in ids:
            if not _is_id(entry.get(key)):
                problem = (
                    f"is {reprlib.repr(entry[key])}; expected a number or a text" if key in entry else "is missing"
                )
                raise DatasetError(f"{path} is not {what}: no {key!r} in {name}[{number}]: it {problem}")
    return entries


def category_names(values: Any, path: Path, what: str) -> dict[Any, str]:
    """Id -> name of the categories of a COCO-like file. Raises DatasetError as `records` does, and for an id twice."""
    listed = records(values, "categories", ("id",), path, what)
    for number, category in enumerate(listed):
        try:
            text_member(category, "name", f"categories[{number}]")
        except BadSample as error:
            raise DatasetError(f"{path} is not {what}: no 'name': {error}") from None
    names = {category["id"]: category["name"] for category in listed}
    if len(names) != len(listed):
        raise DatasetError(f"{path} has several categories with one id")
    return names


def member(entry: Any, name: str, kind: type[T], where: str) -> T:
    """`entry[name]`. Raises BadSample, beginning with `where`, if it is missing or of another type.

    True and False are no numbers. A text must be one that can be printed and tokenized (see `refuse_text`).
    """
    if not isinstance(entry, dict) or name not in entry:
        raise BadSample(f"{where}: it has no {name!r}")
    value = entry[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadSample(f"{where}: its {name!r} is {reprlib.repr(value)}; expected {kind.__name__}")
    if kind is str:
        refuse_text(value, f"{where}: its {name!r}")
    return value


def id_member(entry: Any, name: str, where: str) -> Any:
    """`entry[name]`, an id: a number or a text. Raises BadSample."""
    value = member(entry, name, object, where)
    if not _is_id(value):
        raise BadSample(f"{where}: its {name!r} is {reprlib.repr(value)}; expected a number or a text")
    return value


def _is_id(value: Any) -> bool:
    """Whether a value can be told from others and printed: a number, or a short text."""
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARACTERS and printable(value) == value
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def size_member(entry: Any, where: str) -> tuple[int, int]:
    """(height, width) in pixels of an entry. Raises BadSample unless both are positive whole numbers."""
    sides = member(entry, "height", int, where), member(entry, "width", int, where)
    for name, side in zip(("height", "width"), sides, strict=True):
        if side <= 0:
            raise BadSample(f"{where}: its {name!r} is {side}; expected a number of pixels")
    if sides[0] * sides[1] > MAX_IMAGE_PIXELS:
        raise BadSample(f"{where}: an image of {sides[0]} x {sides[1]} pixels; at most {MAX_IMAGE_PIXELS:,} are read")
    return sides


def text_member(entry: Any, name: str, where: str) -> str:
    """`entry[name]` as text that a model can be taught. Raises BadSample if it is empty or has special tokens."""
    text = member(entry, name, str, where).strip()
    if not text:
        raise BadSample(f"{where}: its {name!r} is empty")
    refuse_tokens(text, where)
    return text


def refuse_tokens(text: str, where: str) -> None:
    """Raises BadSample if a text from a file holds [SEG] or <PromptK>: no mask or region belongs to it."""
    refuse_text(text, where)
    if SEG in text:
        raise BadSample(f"{where}: the text contains {SEG}, but there is no mask for it")
    if "<Prompt" in text and prompt_names(text):
        raise BadSample(
            f"{where}: the text contains <Prompt{prompt_names(text)[0]}>, but no region of that name is drawn"
        )


def sized_mask(segmentation: Any, where: str) -> RLE:
    """The mask of an RLE that carries its own size, for files without a list of image sizes. Raises BadSample."""
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise BadSample(f"{where}: {reprlib.repr(segmentation)} is no RLE {{'size': [height, width], 'counts': text}}")
    return from_coco(segmentation, *size, where)
