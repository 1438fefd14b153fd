"""What an expression or a question is about: as the embedded dataset says, else by its words."""

from __future__ import annotations

import re
from pathlib import Path

from pixel_sail.data.files import read_json

SCENES = "scenes.json"  # what the embedded dataset knows of its expressions; no other dataset has it

# In this order: "the second red mug from the left" is about an order, not about a place or a colour.
_TOPICS = tuple(
    (name, re.compile(rf"(?i)\b({words})\b"))
    for name, words in (
        ("count", "how many|number of"),
        ("order", "first|second|third|fourth|fifth|last|[2-9](nd|rd|th)"),
        ("comparison", r"\w+est|larger|smaller|bigger|taller|shorter|more|most|less|least|than|but"),
        (
            "relation",
            "beside|behind|between|next to|near|nearest|closest|above|below|under|over|with|holding|wearing|around",
        ),
        ("place", "where|left|right|top|bottom|middle|cent(er|re)|upper|lower|corner|front|back|side|part"),
        ("colour", "colou?rs?|red|orange|yellow|green|blue|purple|pink|brown|white|black|gr[ae]y"),
        ("pattern", "pattern|texture|striped?s?|dotted|dots|checkered|plain|material"),
        ("size", "size|large|small|big|tiny|tall|long|huge"),
    )
)
OTHER = "other"


def is_drawn(root: Path) -> bool:
    """Whether the data at `root` is the embedded dataset."""
    return (root / SCENES).is_file()


def topic(text: str) -> str:
    """What a text is about, by its words; only the first line counts, because options follow it."""
    first = text.split("\n", 1)[0]
    return next((name for name, words in _TOPICS if words.search(first)), OTHER)


def expression_kinds(root: Path, dataset: str) -> list[str]:
    """The kind of each expression ("size", "position"), indexed by sent_id. Empty but for the embedded dataset."""
    path = root / SCENES
    queries = read_json(path)["queries"] if path.is_file() else {}
    return [query["type"] for query in queries.get(dataset, ())]
