"""Whether a folder is still what was written: SHA-256 of each file that decides what the model computes.

Our tools write checksums.json into every model folder. A flipped bit of a weight that stays a plausible number is seen
by nothing else. A folder without it loads unchecked: so can one that was edited on purpose, once the file is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from pixel_sail.durable import file_sha256, write_json
from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import CONFIG, GENERATION_CONFIG, VOCABULARIES, check_downloaded, read_settings

CHECKSUMS = "checksums.json"
_COVERED = (CONFIG, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", *VOCABULARIES,
            "merges.txt", "chat_template.jinja", "model.safetensors.index.json", GENERATION_CONFIG)  # fmt: skip
_SUM = re.compile(r"[0-9a-f]{64}")


def write_sums(folder: Path) -> None:
    """Write checksums.json for the files of a model folder as they are now."""
    files = [*(folder / name for name in _COVERED), *sorted(folder.glob("*.safetensors"))]
    write_json(folder / CHECKSUMS, _sums([file for file in files if file.is_file()]))


def check_sums(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise WeightsError for a file that differs from what checksums.json says; nothing without that file.

    `known`: SHA-256 of files that have been read already, by name.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return
    advice = f"download the folder again; if it was changed on purpose, delete {path}, and it loads without this check"
    expected = read_settings(path)
    for name, digits in expected.items():
        if not isinstance(digits, str) or not _SUM.fullmatch(digits) or Path(name).name != name:
            raise WeightsError(f"{path}: {name!r} has no SHA-256 of 64 hex digits; {advice}")
        if not (folder / name).exists():
            raise WeightsError(f"{folder} lacks {name}, which {CHECKSUMS} lists; {advice}")
        check_downloaded(folder / name)
    sums = _sums([folder / name for name in expected if name not in known]) | dict(known)
    for name, digits in sums.items():
        if name in expected and digits != expected[name]:
            raise WeightsError(f"{folder / name} is not what was written ({CHECKSUMS}); {advice}")


def _sums(files: Sequence[Path]) -> dict[str, str]:
    """By file name; several files at a time, a GB takes about a second."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in files), pool.map(file_sha256, files), strict=True))
