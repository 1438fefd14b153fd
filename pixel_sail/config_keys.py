"""All keys of a config with their types, defaults and meanings, for `tools/train.py --keys`.

A meaning is the comment beside or above its field in config.py or architecture.py: written once, where the code is.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pixel_sail import architecture, config

COLUMNS = 100
# Types of config.py as a user writes their values; in this order.
_TYPES = (
    (r"Annotated\[(\w+), .*?\)\]", r"\1"),
    (r"\bWidth\b", "int"),
    (r"\bWeight\b", "float"),
    (r"\b(Name|Split|Path)\b", "str"),
    (r"\bSwitch\b", "'auto' | true | false"),
    (r"Literal\[([^]]*)\]", lambda match: match[1].replace(", ", " | ")),
    (r"list\[(\w+)\]", r"list of \1"),
    (r"tuple\[(\w+), (\w+)\]", r"[\1, \2]"),
    (r"\bNone\b", "null"),
    (r"'", ""),
)


@dataclass(frozen=True)
class Key:
    """One key: "train.lr", how its values are written, its default, what it means."""

    name: str
    type: str
    default: str  # "required" where there is none; empty of a section, whose keys have defaults
    meaning: str


def keys() -> list[Key]:
    """The keys of a config, in the order of the sections. Those of a list's members have [] in their names."""
    comments = {**_comments(architecture), **_comments(config)}
    return list(_keys(config.Config, "", comments))


def keys_text(beginning: str = "") -> str:
    """A paragraph for each key that begins so, in lines of COLUMNS. Empty if there is none."""
    paragraphs = []
    for key in keys():
        if key.name.startswith(beginning):
            default = {"": "", "required": ", required"}.get(key.default, f" = {key.default}")
            head = f"{key.name}: {key.type}{default}"
            lines = textwrap.wrap(head, COLUMNS, subsequent_indent="    ", break_long_words=False)
            paragraphs += [
                *lines,
                *textwrap.wrap(key.meaning, COLUMNS, initial_indent="    ", subsequent_indent="    "),
            ]
    return "\n".join(paragraphs)


def _keys(section: type[BaseModel], prefix: str, comments: dict[tuple[str, str], str]) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        meaning = comments.get((section.__name__, name), "")
        inner, is_list = _section_of(field.annotation)
        if inner is None:
            yield Key(prefix + name, _written(section, name), _default(field), meaning)
            continue
        meaning = meaning or (inspect.getdoc(inner) or "").split("\n\n")[0].replace("\n", " ")
        kind = "list of sections" if is_list else "section"
        yield Key(prefix + name, kind, _default(field) if is_list or field.default is None else "", meaning)
        yield from _keys(inner, f"{prefix}{name}[]." if is_list else f"{prefix}{name}.", comments)


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that an annotation stands for, and whether it is a list of them."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part, typing.get_origin(annotation) is list
    return None, False


def _written(section: type[BaseModel], name: str) -> str:
    """The type of a field: "int", "str | null", the values of a Literal, "list of str"."""
    text = ast.unparse(ast.parse(str(section.__annotations__[name]), mode="eval"))
    for pattern, plain in _TYPES:
        text = re.sub(pattern, plain, text)
    return text


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or isinstance(field.default, bool):
        return {None: "null", True: "true", False: "false"}[field.default]
    return str(list(field.default) if isinstance(field.default, tuple) else field.default)


def _comments(module: ModuleType) -> dict[tuple[str, str], str]:
    """(class, field) -> its comment: the lines above it, and what stands beside it."""
    source = inspect.getsource(module)
    comments = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for section in ast.parse(source).body:
        for field in section.body if isinstance(section, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[section.name, field.target.id] = _comment(field, comments)
    return found


def _comment(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    above, line = [], field.lineno - 1
    while comments.get(line, ("", False))[1]:
        above.insert(0, comments[line][0])
        line -= 1
    beside = [comments[line][0] for line in range(field.lineno, (field.end_lineno or 0) + 1) if line in comments]
    return " ".join([*above, *beside])
