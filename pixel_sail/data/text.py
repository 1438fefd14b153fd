"""Texts that somebody else wrote: what no tokenizer and no console can take is refused before it gets there."""

from __future__ import annotations

from pixel_sail.data.limits import MAX_MESSAGE_CHARACTERS, MAX_TEXT_CHARACTERS
from pixel_sail.types import BadSample


def refuse_text(text: str, where: str) -> None:
    """Raises BadSample, beginning with `where`, for a text that is too long or holds half a character.

    A JSON file can name one half of a surrogate pair ("\\ud83d"), which is no character: files cut texts there.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise BadSample(f"{where}: a text of {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are read")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadSample(
                f"{where}: the text has half a character, {text[error.start]!a}; it was cut in the middle of one "
                f"({text[max(0, error.start - 20) : error.start + 20]!a})"
            ) from None


def printable(message: str) -> str:
    """A message that a console and a file in UTF-8 take: half characters written out, and not endlessly long."""
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = message[: MAX_MESSAGE_CHARACTERS - 3] + "..."
    return message if message.isascii() else message.encode("utf-8", "backslashreplace").decode()
