"""LLaVA conversations about a whole image, or about none; also the embedded dataset's two-option questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.conversations import Conversation, ConversationSource, read_turns
from pixel_sail.data.sources.entries import member
from pixel_sail.data.sources.pieces import kept_list
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.types import BadSample, Turn

NAME = "llava"
_INSTRUCT = "llava_instruct_150k.json"
FILES = (
    ExpectedFile("llava/train.json", (f"llava/{_INSTRUCT}", f"llava_dataset/{_INSTRUCT}"), splits=("train",)),
    ExpectedFile("llava/val.json", splits=("val",)),
)
FOLDERS = (*ImageFinder.FOLDERS, "")  # the path of an image may start at the data root
MIX665K = "llava_mix665k"
_MIX = "llava_v1_5_mix665k.json"
MIX_FILE = ExpectedFile(
    f"llava/{_MIX}", (f"llava_data/LLaVA-Instruct-150K/{_MIX}", f"LLaVA-Instruct-150K/{_MIX}", _MIX)
)
# Below them its images are coco/train2017, gqa/images, ocr_vqa/images, textvqa/train_images and vg/VG_100K{,_2}.
MIX_FOLDERS = ("llava", "llava_data/llava_images", "llava_images", "", *ImageFinder.FOLDERS, "coco_2017/train2017")
CHOICES = "choices"
CHOICES_FILE = ExpectedFile(f"llava/{CHOICES}.json")
_MARKER = "<image>"


def open_llava(root: Path, split: str, data: DataConfig) -> ConversationSource:
    """One Sample per entry. Raises DatasetError; entries that cannot be used are listed in `.problems`."""
    file = next((file for file in FILES if split in file.splits), ExpectedFile(f"llava/{split}.json"))
    return read_conversations(file.find(root, split), f"{NAME}/{split}", ImageFinder(root, FOLDERS))


def open_mix665k(root: Path, split: str, data: DataConfig) -> ConversationSource:
    """LLaVA-1.5's mixture for instruction tuning; some entries have no image. Raises DatasetError as `open_llava`."""
    return read_conversations(MIX_FILE.find(root, split), MIX665K, ImageFinder(root, MIX_FOLDERS))


def read_conversations(path: Path, name: str, finder: ImageFinder) -> ConversationSource:
    """The entries of a file in LLaVA's format. Raises DatasetError."""
    problems: list[str] = []

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

    entries = kept_list(path, name, Conversation, parse, problems, finder.asked)
    return ConversationSource(entries, problems)


def open_choices(root: Path, split: str, data: DataConfig) -> ConversationSource:
    """Questions with two options about a whole image, in LLaVA's format: one Sample per image. Raises DatasetError."""
    return read_conversations(CHOICES_FILE.find(root, split), f"{NAME}/{CHOICES}", ImageFinder(root, FOLDERS))


def _without_marker(question: str) -> str:
    return question.replace(f"{_MARKER}\n", "").replace(_MARKER, "").strip()


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=FILES,
        sample="an entry",
        turn="a question and its answer, with or without an image",
        open=open_llava,
        image_folders=FOLDERS,
    ),
    SourceRecord(
        name=CHOICES,
        splits=("train",),
        files=(CHOICES_FILE,),
        sample="an entry",
        turn='a question with the options "(a) red (b) blue", and the right option',
        open=open_choices,
        train_only=True,
        image_folders=FOLDERS,
    ),
    SourceRecord(
        name=MIX665K,
        splits=("train",),
        files=(MIX_FILE,),
        sample="an entry",
        turn="a question and its answer, with or without an image",
        open=open_mix665k,
        train_only=True,
        image_folders=MIX_FOLDERS,
    ),
)
