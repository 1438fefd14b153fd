"""LLaVA conversations about a whole image, or about none. `<root>/llava/{split}.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.conversations import Conversation, ConversationSource, read_turns
from pixel_sail.data.sources.entries import member, read_entries
from pixel_sail.types import BadSample, Turn

NAME = "llava"
_MARKER = "<image>"


def open_llava(root: Path, split: str) -> ConversationSource:
    """One Sample an entry. Raises DatasetError; entries that cannot be used are listed in `.problems`."""
    finder = ImageFinder(root, (*ImageFinder.FOLDERS, ""))  # an entry's path may start at the data root
    problems: list[str] = []

    def parse(entry: Any, key: str) -> Conversation:
        turns = [Turn(_without_marker(turn.question), turn.answer) for turn in read_turns(entry, key)]
        markers = sum(message["value"].count(_MARKER) for message in entry["conversations"])
        if markers > 1:
            raise BadSample(f"{key}: its conversation has {markers} {_MARKER} markers; one image is what we read")
        if not all(turn.question for turn in turns):
            raise BadSample(f"{key}: a question is empty but for its {_MARKER} marker")
        if entry.get("image") is None:
            if markers:
                raise BadSample(f"{key}: it has the marker {_MARKER}, but no image")
            return Conversation(key, None, tuple(turns))
        return Conversation(key, finder.find(member(entry, "image", str, key), key), tuple(turns))

    conversations = read_entries(root / NAME / f"{split}.json", f"{NAME}/{split}", parse, problems)
    return ConversationSource(conversations, problems)


def _without_marker(question: str) -> str:
    return question.replace(f"{_MARKER}\n", "").replace(_MARKER, "").strip()
