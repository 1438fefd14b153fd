"""JSON, JSON lines, YAML and pickles as values, so that a value at a random path can be replaced."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import yaml

Step = str | int

JSON, LINES, YAML, PICKLE = ("json", "jsonl", "yaml", "pickle")
_FORMATS = {".json": JSON, ".jsonl": LINES, ".yaml": YAML, ".yml": YAML, ".p": PICKLE, ".txt": None}


def format_of(path: Path) -> str | None:
    """None: not a file of values."""
    return _FORMATS.get(path.suffix)


def load(path: Path) -> Any:
    """JSON lines become a list."""
    kind = format_of(path)
    if kind == PICKLE:
        return pickle.loads(path.read_bytes())
    text = path.read_text(encoding="utf-8")
    if kind == LINES:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return yaml.safe_load(text) if kind == YAML else json.loads(text)


def dump(path: Path, values: Any) -> None:
    kind = format_of(path)
    if kind == PICKLE:
        path.write_bytes(pickle.dumps(values, protocol=2))
    else:
        path.write_text(text_of(kind, values), encoding="utf-8")


def text_of(kind: str | None, values: Any) -> str:
    if kind == LINES:
        return "".join(json.dumps(value) + "\n" for value in values)
    return yaml.safe_dump(values) if kind == YAML else json.dumps(values)


def leaves(values: Any, prefix: tuple[Step, ...] = ()) -> list[tuple[Step, ...]]:
    """The paths of all values that are no lists or dicts, or are empty ones."""
    if isinstance(values, dict) and values:
        return [path for key, value in values.items() for path in leaves(value, (*prefix, key))]
    if isinstance(values, list) and values:
        return [path for index, value in enumerate(values) for path in leaves(value, (*prefix, index))]
    return [prefix] if prefix else []


def random_path(values: Any, rng: random.Random) -> tuple[Step, ...] | None:
    """A path to a value of any depth, every level equally likely: long lists of numbers do not hide the rest."""
    path: list[Step] = []
    here = values
    while isinstance(here, (dict, list)) and here:
        if path and rng.random() < 0.15:
            break
        step = rng.choice(sorted(here, key=str)) if isinstance(here, dict) else rng.randrange(len(here))
        path.append(step)
        here = here[step]
    return tuple(path) or None


def get(values: Any, path: tuple[Step, ...]) -> Any:
    for step in path:
        values = values[step]
    return values


def put(values: Any, path: tuple[Step, ...], value: Any) -> None:
    get(values, path[:-1])[path[-1]] = value
