"""YAML of values only, in which nothing is repeated by accident and nothing grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pixel_sail import files
from pixel_sail.errors import FileError, UserError

MAX_BYTES = 2**20  # of a file
MAX_VALUES = 100_000  # with every alias (*name) written out
MAX_NESTED = 50  # lists and mappings within each other


def read(path: Path, error: type[UserError] = FileError) -> Any:
    """The values of a file. Raises `error` for one that cannot be read (see files.py) or used (see `parse`)."""
    files.check_regular(path, MAX_BYTES, error)
    try:
        return parse(files.read_text(path, error=error))
    except UserError:
        raise
    except ValueError as problem:
        raise error(f"{path} is not valid YAML: {problem}") from None


def parse(text: str) -> Any:
    """The values of a text. Raises ValueError for what is not YAML of plain values, and for a key twice in a mapping.

    Likewise for aliases that contain themselves or that are more than MAX_VALUES values when they are written out.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(f"its values are nested in more than {MAX_NESTED} others") from None
    except (TypeError, OverflowError) as error:
        raise ValueError(f"it has a value that cannot be used: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, counted: dict[int, int], depth: int) -> int:
    """Values in a node, aliases written out. `counted`: the nodes that are known; 0 while one is being counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    place = f"in line {node.start_mark.line + 1}"
    if depth > MAX_NESTED:
        raise ValueError(f"a value {place} is nested in more than {MAX_NESTED} others")
    if counted.get(id(node)) == 0:
        raise ValueError(f"the value {place} contains itself")
    if id(node) not in counted:
        counted[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            members = [part for pair in node.value for part in pair]
        else:
            members = node.value
        total = 1
        for member in members:
            total += _count(member, counted, depth + 1)
            if total > MAX_VALUES:
                raise ValueError(f"with its aliases written out, it has more than {MAX_VALUES:,} values")
        counted[id(node)] = total
    return counted[id(node)]


def _refuse_twice(node: yaml.MappingNode) -> None:
    keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for number, key in enumerate(keys):
        if key in keys[:number] and key[0] != "tag:yaml.org,2002:merge":
            line = node.value[number][0].start_mark.line + 1
            raise ValueError(f"the key {key[1]!r:.80} stands twice in one mapping, again in line {line}")
