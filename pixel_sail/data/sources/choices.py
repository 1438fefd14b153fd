"""Questions with two options about a whole image, written as LLaVA's conversations: `<root>/llava/choices.json`."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.data.sources.conversations import ConversationSource
from pixel_sail.data.sources.llava import open_llava

NAME = "choices"


def open_choices(root: Path) -> ConversationSource:
    """One Sample an image, with all its questions. Raises DatasetError; what cannot be used is in `.problems`."""
    return open_llava(root, NAME)
