"""Plain text without images, in JSON lines or parquet, as SlimPajama has it. All tokens are learned: docs/base.md."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.anywhere import as_local_file
from pixel_sail.data.sources.entries import refuse_tokens
from pixel_sail.data.sources.many_files import FileKind, FileSource, files_of
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.text import printable
from pixel_sail.files import parse_json
from pixel_sail.types import BadSample, Sample

NAME = "text"
KEY = "text"  # of a text in its line, or its column
PIECE_CHARACTERS = 8000  # of a sample at most: about 2,000 tokens of English
MAX_LINE_BYTES = 2**28
ROWS_AT_ONCE = 1000  # of a parquet file
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


class TextSource(FileSource):
    """Samples of one text, or of a piece of a long one (see `pixel_sail.data.sources.Source`)."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` is not used. Raises BadSample for a line that has no text."""
        file, (start, size) = self._where(index)
        key = self.key(index)
        try:
            text = file.read(start, abs(size)).decode("utf-8")
        except (DatasetError, UnicodeDecodeError) as error:
            raise BadSample(f"{key}: {error}") from None
        if size < 0:
            raise BadSample(f"{key}: {text}")
        refuse_tokens(text, key)
        return Sample(key, None, (), text=text)

    def image(self, index: int) -> None:
        return None

    def image_head(self, index: int) -> None:
        return None


def open_text(entry: MixtureEntry, data: DataConfig) -> TextSource:
    """The files of an entry. Raises DatasetError and ConfigError as `files_of`."""
    kind = text_kind(entry.key)
    return TextSource(kind, *files_of(kind, entry, data), data.file_cache_gb * 1e9)


def text_kind(key: str | None) -> FileKind:
    """Files whose texts have this key."""
    key = key or KEY
    return FileKind(NAME, (".jsonl", ".jsonl.gz", ".parquet"), partial(prepare_texts, key=key), False, made_by=key)


def prepare_texts(address: str, out: BinaryIO, key: str) -> np.ndarray:
    """Writes all texts to `out`; (n, 2) int64, of each piece its start and its bytes.

    Negative bytes: a line that has no text, and why not is written there. Raises DatasetError.
    """
    rows: list[tuple[int, int]] = []
    with as_local_file(address) as file:
        for text in _texts(file, address, key):
            if isinstance(text, BadSample):
                written = printable(str(text)).encode()
                rows.append((out.tell(), -len(written)))
                out.write(written)
                continue
            for piece in pieces(text):
                written = piece.encode()
                rows.append((out.tell(), len(written)))
                out.write(written)
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def pieces(text: str) -> Iterator[str]:
    """The whole text in pieces of PIECE_CHARACTERS at most, cut after a line or a word where it can be."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        middle = start + PIECE_CHARACTERS // 2
        cut = max(text.rfind("\n", middle, stop), 0) or max(text.rfind(" ", middle, stop), 0)
        stop = cut + 1 if cut else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def _texts(file: BinaryIO, address: str, key: str) -> Iterator[str | BadSample]:
    """Each text of a file, or why it is none."""
    first = file.read(4)
    file.seek(0)
    if first == _ZSTD:
        raise DatasetError(f"{address!r:.300} is compressed by zstd: unpack it, or give pipe:zstd -dc FILE")
    for number, value in enumerate(_rows(file, address, key) if first == _PARQUET else _lines(file, address, first)):
        try:
            yield _text(value if first == _PARQUET else _member(value, key), key)
        except BadSample as error:
            yield BadSample(f"line {number + 1}: {error}" if first != _PARQUET else f"row {number}: {error}")


def _lines(file: BinaryIO, address: str, first: bytes) -> Iterator[bytes]:
    lines = gzip.GzipFile(fileobj=file) if first[:2] == _GZIP else file
    try:
        while line := lines.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:
                raise DatasetError(f"{address!r:.300} has a line of {MAX_LINE_BYTES:,} bytes: these are no JSON lines")
            if line.strip():
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{address!r:.300} is damaged, or not whole: {error}") from None


def _member(line: bytes, key: str) -> Any:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise BadSample(f"it is not valid JSON: {error}") from None
    if not isinstance(values, dict) or key not in values:
        raise BadSample(f"it has no {key!r}")
    return values[key]


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise BadSample(f"its {key!r} is a {type(value).__name__}; expected a text")
    if not value.strip():
        raise BadSample(f"its {key!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"its {key!r} has half a character, {value[error.start]!a}") from None
    return value


def _rows(file: BinaryIO, address: str, key: str) -> Iterator[Any]:
    """The values of a column of a parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("parquet files need the package pyarrow: pip install 'pixel_sail[parquet]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        if key not in table.schema_arrow.names:
            there = ", ".join(table.schema_arrow.names)
            raise DatasetError(f"{address!r:.300} has no column {key!r}; it has {there}. Give `key`")
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=[key]):
            yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{address!r:.300} is damaged, or not whole: {error!s:.300}") from None


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(ExpectedFile(f"{NAME}/{{split}}"),),
        sample="a text without an image, or a piece of a long one; see [docs/base.md](../docs/base.md)",
        turn="none: every token is learned",
        open_entry=open_text,
        image_folders=(),
    ),
)
