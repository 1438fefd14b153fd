"""LLaVA conversations about a whole image, or about none; also the embedded dataset's two-option questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.conversations import Conversation, ConversationSource, read_turns
from pixel_sail.data.sources.entries import member, read_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.types import BadSample, Turn

NAME = "llava"
FILE = ExpectedFile("llava/{split}.json")
FOLDERS = (*ImageFinder.FOLDERS, "")  # the path of an image may start at the data root
CHOICES = "choices"  # the name of a source and, of its file, that of the split
_MARKER = "<image>"


def open_llava(root: Path, split: str, data: DataConfig) -> ConversationSource:
    """One Sample per entry. Raises DatasetError; entries that cannot be used are listed in `.problems`."""
    finder, problems = ImageFinder(root, FOLDERS), list[str]()

    def parse(entry: Any, key: str) -> Conversation:
        turns = [Turn(_without_marker(turn.question), turn.answer) for turn in read_turns(entry, key, problems)]
        markers = sum(message["value"].count(_MARKER) for message in entry["conversations"])
        if markers > 1:
            raise BadSample(f"{key}: its conversation has {markers} {_MARKER} markers; expected at most one")
        if not all(turn.question for turn in turns):
            raise BadSample(f"{key}: a question is empty but for its {_MARKER} marker")
        if entry.get("image") is None:
            if markers:
                raise BadSample(f"{key}: it has the marker {_MARKER}, but no image")
            return Conversation(key, None, tuple(turns))
        return Conversation(key, finder.find(member(entry, "image", str, key), key), tuple(turns))

    conversations = read_entries(FILE.find(root, split), f"{NAME}/{split}", parse, problems)
    return ConversationSource(conversations, problems)


def open_choices(root: Path, split: str, data: DataConfig) -> ConversationSource:
    """Questions with two options about a whole image, in LLaVA's format: one Sample per image. Raises DatasetError."""
    return open_llava(root, CHOICES, data)


def _without_marker(question: str) -> str:
    return question.replace(f"{_MARKER}\n", "").replace(_MARKER, "").strip()


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE,),
        sample="an entry",
        turn="a question and its answer, with or without an image",
        open=open_llava,
        image_folders=FOLDERS,
    ),
    SourceRecord(
        name=CHOICES,
        splits=("train",),
        files=(ExpectedFile(f"llava/{CHOICES}.json"),),
        sample="an entry",
        turn='a question with the options "(a) red (b) blue", and the right option',
        open=open_choices,
        train_only=True,
        image_folders=FOLDERS,
    ),
)
