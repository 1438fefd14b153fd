"""How many samples files have that lie anywhere: counted once, and given as `sizes` in data.mixture."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources import image_text
from pixel_sail.data.sources.anywhere import expanded, file_name
from pixel_sail.data.sources.many_files import counted
from pixel_sail.data.sources.plain_text import text_kind
from pixel_sail.durable import write_json
from pixel_sail.files import read_json
from pixel_sail.interrupts import how_far
from pixel_sail.writable import check_writable


def write_sizes(source: str, files: str, key: str | None, out: Path) -> dict[str, int]:
    """Counts the samples of every file, into `out`, after each file; one that is listed there already stays as it is.

    Raises DatasetError for files that cannot be fetched or read.
    """
    kind = image_text.KIND if source == image_text.NAME else text_kind(key)
    addresses = expanded(files, Path())
    names = {address: file_name(address) for address in addresses}
    if len(set(names.values())) < len(names):
        names = {address: address for address in addresses}
    check_writable(out.absolute().parent)
    sizes = _before(out)
    with how_far(lambda: f"{len(sizes)} files are counted; the same command counts the others"):
        for address, name in tqdm(names.items(), unit="file", disable=None):
            if name not in sizes:
                sizes[name] = counted(kind, [address], DataConfig.model_fields["file_cache_gb"].default)[0]
                write_json(out, sizes)
    return {name: sizes[name] for name in names.values()}


def _before(out: Path) -> dict[str, int]:
    if not out.exists():
        return {}
    sizes = read_json(out, error=DatasetError)
    if not isinstance(sizes, dict) or not all(type(size) is int for size in sizes.values()):
        raise DatasetError(f"{out} is there already and holds no sizes; give another --out")
    return sizes
