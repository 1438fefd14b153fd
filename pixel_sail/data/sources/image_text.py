"""Images with captions in tars, as img2dataset and webdataset write them: a caption is the answer. See docs/base.md."""

from __future__ import annotations

import tarfile
from typing import BinaryIO

import numpy as np

from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.shards import HEAD_BYTES
from pixel_sail.data.sources.anywhere import IndexedFile, as_local_file, fetch, is_elsewhere
from pixel_sail.data.sources.entries import refuse_tokens, text_member
from pixel_sail.data.sources.many_files import FileKind, FileSource, files_of
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.templates import CAPTION
from pixel_sail.files import parse_json
from pixel_sail.types import BadSample, Sample, Turn

NAME = "image_text"
IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION_KEY = "caption"  # in the .json, if there is no .txt and no key is given
MAX_TEXT_BYTES = 2**20  # of a .txt or .json
_PARTS = ("image", "txt", "json")  # of a row: where each begins, and its bytes, -1 where it is missing


class ImageTextSource(FileSource):
    """Samples of one image, a short request and its caption (see `pixel_sail.data.sources.Source`)."""

    def __init__(self, kind: FileKind, addresses: list[str], counts: list[int], key: str | None, limit_bytes: float):
        super().__init__(kind, addresses, counts, limit_bytes)
        self._caption_key = key

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Raises BadSample for one without an image, or without a caption that can be learned."""
        file, row = self._where(index)
        key = self.key(index)
        image = _part(file, row, "image", key)
        if image is None:
            raise BadSample(f"{key}: it has no image ({', '.join(IMAGES)})")
        caption = _caption(file, row, self._caption_key, key)
        return Sample(key, image, (Turn(CAPTION[rng.integers(len(CAPTION))], caption),))

    def image(self, index: int) -> bytes | None:
        file, row = self._where(index)
        return _part(file, row, "image", self.key(index))

    def image_head(self, index: int) -> bytes | None:
        file, row = self._where(index)
        if row[1] < 0:
            raise BadSample(f"{self.key(index)}: it has no image ({', '.join(IMAGES)})")
        return _part(file, [row[0], min(row[1], HEAD_BYTES)], "image", self.key(index))


def open_image_text(entry: MixtureEntry, data: DataConfig) -> ImageTextSource:
    """The tars of an entry. Raises DatasetError and ConfigError as `files_of`."""
    addresses, counts = files_of(KIND, entry, data)
    return ImageTextSource(KIND, addresses, counts, entry.key, data.file_cache_gb * 1e9)


def prepare_tar(address: str, out: BinaryIO) -> np.ndarray:
    """The rows of a tar. One from elsewhere is copied to `out`. Raises DatasetError for what is no whole tar."""
    if is_elsewhere(address):
        fetch(address, out)
        out.seek(0)
        return index_tar(out, address)
    with as_local_file(address) as file:
        return index_tar(file, address)


def index_tar(file: BinaryIO, name: str) -> np.ndarray:
    """(n, 6) int64: of each sample where its image, .txt and .json are, (start, bytes) of each; bytes -1: missing.

    Members of one sample are neighbours, and have one name up to its first dot, as in webdataset.
    """
    from webdataset.tariterators import base_plus_ext

    rows: list[list[int]] = []
    last = None
    try:
        with tarfile.TarFile(fileobj=file) as tar:
            for member in tar:
                base, suffix = base_plus_ext(member.name)
                if not member.isfile() or base is None:
                    continue
                if base != last:
                    rows.append([0, -1] * len(_PARTS))
                    last = base
                suffix = suffix.lower()
                part = "image" if suffix in IMAGES else suffix
                if part in _PARTS:
                    at = 2 * _PARTS.index(part)
                    rows[-1][at : at + 2] = [member.offset_data, member.size]
                tar.members = []  # tarfile keeps all of them otherwise
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile ends at a damaged header as at the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{name} is no whole tar without compression: {error}") from None
    return np.array(rows, dtype=np.int64).reshape(-1, 2 * len(_PARTS))


def _part(file: IndexedFile, row: list[int], part: str, key: str) -> bytes | None:
    """The bytes of a part; None where it is missing. Raises BadSample."""
    at = 2 * _PARTS.index(part)
    start, size = row[at : at + 2]
    if size < 0:
        return None
    if part != "image" and size > MAX_TEXT_BYTES:
        raise BadSample(f"{key}: its .{part} has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read")
    try:
        data = file.read(start, size)
    except DatasetError as error:
        raise BadSample(f"{key}: {error}") from None
    if len(data) < size:
        raise BadSample(f"{key}: its {part} is cut short: {len(data):,} of {size:,} bytes")
    return data


def _caption(file: IndexedFile, row: list[int], name: str | None, key: str) -> str:
    """From the member `name` of the .json if it is given, else from the .txt, else from "caption" of the .json."""
    text = None if name else _part(file, row, "txt", key)
    if text is not None:
        try:
            caption = text.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise BadSample(f"{key}: its .txt is not UTF-8") from None
        if not caption:
            raise BadSample(f"{key}: its caption is empty")
        refuse_tokens(caption, key)
        return caption
    values = _part(file, row, "json", key)
    if values is None:
        raise BadSample(f"{key}: it has no caption: neither .txt nor .json" if not name else f"{key}: it has no .json")
    try:
        members = parse_json(values)
    except ValueError as error:
        raise BadSample(f"{key}: its .json is not valid: {error}") from None
    return text_member(members, name or CAPTION_KEY, key)


KIND = FileKind(NAME, (".tar",), prepare_tar, in_place=True, made_by="")


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(ExpectedFile(f"{NAME}/{{split}}"),),
        sample="an image of a tar, of a data root or elsewhere; see [docs/base.md](../docs/base.md)",
        turn="a short request, and the caption",
        open_entry=open_image_text,
        image_folders=(),
    ),
)
