"""Any value of any annotation file replaced by any other: one message, a counted skip, or a sample; never a traceback.

`python tests/data/test_type_changes.py` tries them all; the test tries a share, by seed.
"""

import copy
import random
import sys

import numpy as np
import pytest
from every_source import dump, load, write_every_source
from source_fixtures import open_named

from pixel_sail.architecture import Architecture
from pixel_sail.data.encode import Encoder
from pixel_sail.data.sources import RECORDS
from pixel_sail.errors import UserError
from pixel_sail.tokens import add_special_tokens
from pixel_sail.weights.convert.scratch import train_tokenizer

TRIED = 40  # changes of each file in the test
DEEP: list = []
for _ in range(400):
    DEEP = [DEEP]
VALUES = [
    *(None, True, [], {}, "", "x", "9", 0, -1, 7, 1.5, 10**30, -(10**30), 1e308, float("nan"), float("inf")),
    *("\ud800", "a\0b", "../../etc/passwd", "/etc/passwd", "x" * 300, "x" * 60_000, "<Prompt99999>", "<region1>" * 20),
    *("<Prompt" + "9" * 5000 + ">", "[SEG]", "<vision>", [None], [[]], [[1, 2, 3]], [1e300] * 6, {"a": 1}, [{}], DEEP),
    *(
        {"size": [60_000, 60_000], "counts": "0"},
        {"size": [30, 40], "counts": "_" * 5000},
        {"size": [-1, -1], "counts": []},
    ),
]


def places(values, place=()):
    """The path of every value, that of the whole file first."""
    yield place
    members = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list | tuple) else ()
    )
    for key, value in members:
        yield from places(value, (*place, key))


def changed(values, place, value):
    """A copy with another value at a place; without the member if it is `DROP`."""
    if not place:
        return value
    values = copy.deepcopy(values)
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    if value is DROP:
        del holder[place[-1]]
    elif value is TWICE:
        holder[place[-1]] = [holder[place[-1]]] * 2
    else:
        holder[place[-1]] = value
    return values


DROP, TWICE = object(), object()


def use(root, name, split, encoder):
    """Everything that training does with a source. Returns whether a sample came out."""
    source = open_named(root, name, split)
    "\n".join(source.problems).encode()
    samples = 0
    for index in range(len(source)):
        for seed in range(2):
            try:
                sample = source.sample(index, np.random.default_rng(seed))
                encoder.encode(sample)
                sample.key.encode()
                samples += 1
            except UserError as error:
                str(error).encode()
    return samples > 0


def new_encoder():
    tokenizer = train_tokenizer(["What is hot? It is a cup."] * 3, 300)
    add_special_tokens(tokenizer)
    return Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research")


def attempts(path, rng=None):
    """(place, value) of all changes, or of TRIED drawn ones; the values of the file are `load(path)`."""
    everything = [
        (place, value) for place in places(load(path)) for value in (*VALUES, DROP, TWICE) if place or value is not DROP
    ]
    everything = [(place, value) for place, value in everything if place or value is not TWICE]
    if path.suffix == ".jsonl":
        everything = [(place, value) for place, value in everything if place]  # the file is lines, whatever they hold
    return everything if rng is None else rng.sample(everything, min(TRIED, len(everything)))


def failures(root, name, split, file, encoder, rng=None):
    """The changes that end in anything but a message, a skip or a sample."""
    path, wrong = root / file, []
    values = load(path)
    for place, value in attempts(path, rng):
        try:
            dump(path, changed(values, place, value))
            use(root, name.partition(",")[0], split, encoder)
        except UserError as error:
            if len(str(error)) > 5000 or "\n" in str(error).strip() and "jsonl" not in name:
                wrong.append((place, f"{value!r:.40}", "long message", str(error)[:300]))
            try:
                str(error).encode()
            except UnicodeEncodeError:
                wrong.append((place, f"{value!r:.40}", "cannot be printed", ascii(str(error))[:200]))
        except Exception as error:
            wrong.append((place, f"{value!r:.40}", type(error).__name__, str(error)[:200]))
    dump(path, values)
    return wrong


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("every_source")


@pytest.fixture(scope="module")
def files(root):
    return write_every_source(root)


@pytest.fixture(scope="module")
def encoder():
    return new_encoder()


def test_the_files_are_good_and_of_every_source(root, files, encoder):
    assert {name.partition(",")[0] for name in files} | {
        "shards",
        "hf",
        "ade20k",
        "coco_stuff",
        "image_text",
        "text",
    } == {r.name for r in RECORDS}
    for name, (split, _) in files.items():
        assert use(root, name.partition(",")[0], split, encoder), name
    for name in ("ade20k", "coco_stuff"):
        assert use(root, name, "train", encoder)


def test_a_value_of_another_type_is_a_message_or_a_skip(root, files, encoder):
    rng = random.Random(0)
    assert [
        (name, *wrong) for name, (s, file) in files.items() for wrong in failures(root, name, s, file, encoder, rng)
    ] == []


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    for name, (split, file) in write_every_source(folder).items():
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            wrong = failures(folder, name, split, file, new_encoder())
            print(name, len(attempts(folder / file)), "changes,", len(wrong), "wrong", flush=True)
            for line in wrong:
                print("   ", *line, flush=True)
