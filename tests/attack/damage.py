"""Ways to damage one file. Each takes the file and a random generator and returns what it did in words.

None: it does not apply to this file. `Damage.reports`: whether the tool must notice. A bit flipped in a text or an
image may give another text or image that nobody can tell from a good one; there only tracebacks, hangs and
memory count.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attack import structures
from attack.outcome import MARKER
from attack.structures import LINES, PICKLE, YAML

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 134106\n"
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
DEPTH = 20_000
VALUES = (".json", ".jsonl", ".yaml", ".p")
TEXTS = (".json", ".jsonl", ".yaml", ".csv", ".jinja")
IMAGES = (".png", ".jpg")
_SENTINEL = "attack-sentinel"


@dataclass(frozen=True)
class Damage:
    name: str
    apply: Callable[[Path, random.Random], str | None]
    suffixes: tuple[str, ...] = ()  # of the files that it fits; none: of all
    reports: bool = True  # False: the result may be another valid file


# --- bytes ------------------------------------------------------------------------------------------------------------


def truncate(path: Path, rng: random.Random) -> str | None:
    data = path.read_bytes()
    if len(data) < 8:
        return None
    size = rng.randrange(1, len(data) - 2)
    path.write_bytes(data[:size])
    return f"the first {size} of {len(data)} bytes"


def empty(path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "0 bytes"


def zeros(path: Path, rng: random.Random) -> str | None:
    """A block that a crashed file system never wrote."""
    data = bytearray(path.read_bytes())
    if len(data) < 64:
        return None
    begin = rng.randrange(0, len(data) // 2)
    data[begin : begin + len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(data)
    return f"bytes {begin} to {begin + len(data) // 2} are 0"


def flip_bits(path: Path, rng: random.Random) -> str | None:
    data = bytearray(path.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 8)))] if data else []
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"a bit flipped at {places}" if places else None


def noise(path: Path, rng: random.Random) -> str:
    path.write_bytes(rng.randbytes(2000))
    return "2,000 random bytes"


def lfs_pointer(path: Path, rng: random.Random) -> str:
    path.write_bytes(LFS_POINTER)
    return "a pointer of git-LFS"


def login_page(path: Path, rng: random.Random) -> str:
    path.write_bytes(LOGIN_PAGE)
    return "an HTML page"


# --- encodings --------------------------------------------------------------------------------------------------------


def utf16(path: Path, rng: random.Random) -> str | None:
    return _encoded(path, lambda text: text.encode("utf-16"), "UTF-16")


def latin1(path: Path, rng: random.Random) -> str | None:
    return _encoded(path, lambda text: text.replace("e", "é").encode("latin-1", errors="replace"), "latin-1")


def surrogate(path: Path, rng: random.Random) -> str | None:
    """A lone surrogate at the end of a random text: valid JSON, and no text that can be encoded."""
    if structures.format_of(path) in (None, PICKLE, YAML):
        return None
    values = structures.load(path)
    texts = [place for place in structures.leaves(values) if isinstance(structures.get(values, place), str)]
    if not texts:
        return None
    place = rng.choice(texts)
    structures.put(values, place, structures.get(values, place) + "\ud800")
    structures.dump(path, values)
    return f"{_dotted(place)} ends in a lone surrogate"


def _encoded(path: Path, encode: Callable[[str], bytes], name: str) -> str | None:
    if structures.format_of(path) == PICKLE:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    path.write_bytes(encode(text))
    return name


# --- values -----------------------------------------------------------------------------------------------------------


def wrong_type(path: Path, rng: random.Random) -> str | None:
    def change(value: Any) -> Any:
        choices: list[Any] = [{}, [], None, "word", 5, True, [None], {"a": [1]}, 0.5]
        return rng.choice([choice for choice in choices if type(choice) is not type(value)])

    return _replaced(path, rng, change)


def nan(path: Path, rng: random.Random) -> str | None:
    return _replaced(path, rng, lambda value: rng.choice((float("nan"), float("inf"), -float("inf"))), _is_number)


def huge(path: Path, rng: random.Random) -> str | None:
    return _replaced(path, rng, lambda value: rng.choice((10**12, 2**63, 10**30, 1e300)), _is_small)


def negative(path: Path, rng: random.Random) -> str | None:
    """Of a named number. Coordinates in lists may be negative: an outline reaches beyond its image."""
    return _replaced(path, rng, lambda value: rng.choice((-1, -(10**6))), _is_small, named=True)


def long_text(path: Path, rng: random.Random) -> str | None:
    return _replaced(path, rng, lambda value: "word " * 200_000, lambda value: isinstance(value, str))


def nul_text(path: Path, rng: random.Random) -> str | None:
    return _replaced(path, rng, lambda value: f"{value}\0", lambda value: isinstance(value, str))


def no_key(path: Path, rng: random.Random) -> str | None:
    if structures.format_of(path) is None:
        return None
    values = structures.load(path)
    place = structures.random_path(values, rng)
    if place is None or isinstance(place[-1], int):
        return None
    del structures.get(values, place[:-1])[place[-1]]
    structures.dump(path, values)
    return f"without {_dotted(place)}"


def repeated_entry(path: Path, rng: random.Random) -> str | None:
    """An entry of a list twice: two objects of one id."""
    if structures.format_of(path) is None:
        return None
    values = structures.load(path)
    lists = [values] if isinstance(values, list) else [v for v in values.values() if isinstance(v, list)]
    lists = [entries for entries in lists if entries and isinstance(entries[0], dict)]
    if not lists:
        return None
    entries = rng.choice(lists)
    index = rng.randrange(len(entries))
    entries.append(entries[index])
    structures.dump(path, values)
    return f"entry {index} of a list once more"


def deep(path: Path, rng: random.Random) -> str | None:
    kind = structures.format_of(path)
    if kind in (None, PICKLE):
        return None
    values = structures.load(path)
    place = structures.random_path(values, rng)
    if place is None:
        return None
    structures.put(values, place, _SENTINEL)
    text = structures.text_of(kind, values)
    text = text.replace(_SENTINEL if kind == YAML else f'"{_SENTINEL}"', "[" * DEPTH + "]" * DEPTH, 1)
    path.write_text(text, encoding="utf-8")
    return f"{_dotted(place)} is {DEPTH:,} lists deep"


def aliases(path: Path, rng: random.Random) -> str | None:
    """A "billion laughs" of 9 levels in a YAML file."""
    if structures.format_of(path) != YAML:
        return None
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    path.write_text(f"a0: &a0 [x, x, x, x, x, x, x, x, x]\n{levels}{path.read_text()}")
    return "aliases of aliases"


def includes_itself(path: Path, rng: random.Random) -> str:
    path.write_text(f"base: {path.name}\n{path.read_text()}")
    return "its base is itself"


def repeated_key(path: Path, rng: random.Random) -> str | None:
    if structures.format_of(path) in (None, PICKLE, LINES):
        return None
    values = structures.load(path)
    if not isinstance(values, dict) or not values:
        return None
    key = rng.choice(sorted(values))
    text = path.read_text(encoding="utf-8")
    if structures.format_of(path) == YAML:
        path.write_text(f"{text}\n{key}: null\n")
    else:
        path.write_text(f"{text.rstrip()[:-1]}, {json.dumps(key)}: null}}")
    return f"{key} a second time, as null"


def _replaced(
    path: Path,
    rng: random.Random,
    change: Callable[[Any], Any],
    fits: Callable[[Any], bool] = lambda value: True,
    named: bool = False,
) -> str | None:
    """A random value that fits is replaced. `named`: only a value with a key."""
    if structures.format_of(path) is None:
        return None
    values = structures.load(path)
    for _ in range(200):
        place = structures.random_path(values, rng)
        if place is None:
            return None
        value = structures.get(values, place)
        if fits(value) and not (named and isinstance(place[-1], int)):
            new = change(value)
            structures.put(values, place, new)
            structures.dump(path, values)
            return f"{_dotted(place)} is {str(new)[:30]!r} instead of {str(value)[:30]!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_small(value: Any) -> bool:
    """A whole number. Some settings are 10^30 for "no limit", and a loss may be huge: that is no damage."""
    return type(value) is int and abs(value) < 10**9


def _dotted(place: tuple[structures.Step, ...]) -> str:
    return ".".join(map(str, place))


# --- files that mean harm ---------------------------------------------------------------------------------------------


def runs_code(path: Path, rng: random.Random) -> str | None:
    """A file that leaves MARKER in the current folder as soon as what it names is called or imported."""
    if path.suffix in (".p", ".pt", ".bin"):
        return _harmful_pickle(path, rng)
    if path.name == "config.json":
        (path.parent / "harm.py").write_text(f"open({MARKER!r}, 'w').close()\nclass Harm: pass\n")
        values = json.loads(path.read_text())
        names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
        path.write_text(json.dumps(values | {"auto_map": {name: "harm.Harm" for name in names}}))
        return "auto_map names code of its own"
    if path.suffix == ".jinja":
        path.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.getcwd() }}")
        return "a template that reaches for Python"
    return None


def _harmful_pickle(path: Path, rng: random.Random) -> str:
    harm = pickle.dumps(_Harm(), protocol=2)
    if path.suffix == ".p" or rng.random() < 0.3:
        path.write_bytes(harm)
    else:
        with zipfile.ZipFile(path, "w") as archive:  # as torch.save writes it
            archive.writestr("archive/data.pkl", harm)
            archive.writestr("archive/version", "3\n")
    return "a pickle that calls open()"


class _Harm:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (MARKER, "w")


def outside(path: Path, rng: random.Random) -> str | None:
    """The name of a file leads out of the data root, to an image that is there."""
    if structures.format_of(path) is None:
        return None
    values = structures.load(path)
    names = [
        place
        for place in structures.leaves(values)
        if str(structures.get(values, place)).endswith((".jpg", ".png")) and place[-1] != "coco_url"
    ]
    tree = next(folder for folder in path.parents if (folder / "root").is_dir())
    image = next(tree.glob("root/**/*.[jp][pn]g"), None)
    if not names or image is None:
        return None
    secret = tree / f"secret{image.suffix}"
    shutil.copy(image, secret)
    place = rng.choice(names)
    name = rng.choice((str(secret.absolute()), f"../../../{secret.name}", f"../../{secret.name}", f"../{secret.name}"))
    structures.put(values, place, name)
    structures.dump(path, values)
    return f"{_dotted(place)} is {name.replace(str(tree), 'TREE')}"


def rle_bomb(path: Path, rng: random.Random) -> str | None:
    """A mask of a few bytes for an image of 60,000 x 60,000 pixels, or with runs that never end."""
    if structures.format_of(path) is None:
        return None
    values = structures.load(path)
    masks = [place[:-1] for place in structures.leaves(values) if place[-1] == "counts"]
    masks += [place[:-2] for place in structures.leaves(values) if len(place) > 2 and place[-2] == "counts"]
    if not masks:
        return None
    bomb = rng.choice(
        ({"size": [60_000, 60_000], "counts": [0, 3_600_000_000]},
         {"size": [60_000, 60_000], "counts": "PP" + "o" * 12},
         {"size": [48, 64], "counts": "o" * 5000},
         {"size": [2**31, 2**31], "counts": [2**62]})
    )  # fmt: skip
    structures.put(values, rng.choice(masks), bomb)
    structures.dump(path, values)
    return f"a mask of {bomb['size']} pixels"


def pixel_bomb(path: Path, rng: random.Random) -> str | None:
    """An image of a few kilobytes that has 40,000 x 40,000 pixels."""
    if path.suffix not in (".png", ".jpg"):
        return None
    side = 40_000

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = zlib.compress(bytes((side // 8 + 1) * side // 100), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return f"an image of {side:,} x {side:,} pixels"


# --- kinds of files ---------------------------------------------------------------------------------------------------


def missing(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "not there"


def folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def dangling(path: Path, rng: random.Random) -> str:
    return _link(path, "/nowhere/at/all")


def loop(path: Path, rng: random.Random) -> str:
    return _link(path, path.name)


def zero_device(path: Path, rng: random.Random) -> str:
    return _link(path, "/dev/zero")


def _link(path: Path, target: str) -> str:
    path.unlink()
    path.symlink_to(target)
    return f"a link to {target}"


def pipe(path: Path, rng: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a named pipe"


def no_permission(path: Path, rng: random.Random) -> str:
    path.chmod(0)
    return "mode 000"


DAMAGES = (
    Damage("truncate", truncate),
    Damage("empty", empty),
    Damage("zeros", zeros),
    Damage("noise", noise),
    Damage("lfs_pointer", lfs_pointer),
    Damage("login_page", login_page),
    Damage("flip_bits", flip_bits, reports=False),
    Damage("utf16", utf16, TEXTS),
    Damage("latin1", latin1, TEXTS),
    Damage("surrogate", surrogate, (".json", ".jsonl")),
    Damage("wrong_type", wrong_type, VALUES),
    Damage("nan", nan, VALUES),
    Damage("huge", huge, VALUES),
    Damage("negative", negative, VALUES),
    Damage("long_text", long_text, VALUES, reports=False),
    Damage("nul_text", nul_text, VALUES, reports=False),
    Damage("no_key", no_key, VALUES, reports=False),
    Damage("repeated_entry", repeated_entry, VALUES, reports=False),
    Damage("deep", deep, (".json", ".jsonl", ".yaml")),
    Damage("aliases", aliases, (".yaml",)),
    Damage("includes_itself", includes_itself, (".yaml",)),
    Damage("repeated_key", repeated_key, (".json", ".yaml")),
    Damage("runs_code", runs_code, (".p", ".pt", ".bin", ".json", ".jinja")),
    Damage("outside", outside, (".json", ".jsonl", ".p")),
    Damage("rle_bomb", rle_bomb, (".json", ".jsonl", ".p")),
    Damage("pixel_bomb", pixel_bomb, IMAGES),
    Damage("missing", missing, reports=False),
    Damage("folder", folder),
    Damage("dangling", dangling, reports=False),
    Damage("loop", loop, reports=False),
    Damage("zero_device", zero_device),
    Damage("pipe", pipe),
    *([] if os.geteuid() == 0 else [Damage("no_permission", no_permission)]),  # root may read everything
)
