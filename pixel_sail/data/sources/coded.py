"""Entries as JSON, and back: exactly, or not at all."""

from __future__ import annotations

import dataclasses
import json
import operator
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pydantic_core

Code = tuple[Callable[[Any], Any], Callable[[Any], Any]]  # value -> lists and plain values of JSON; and back


class Inexact(Exception):
    """A value does not come back from JSON as it was."""


def encoder(kind: Any) -> Callable[[Any], bytes]:
    """Entry -> JSON. `kind`: the class of the entries, "RegionImage[Referent]" where it is generic.

    It raises Inexact for an entry that would not come back as it is.
    """
    take, _ = _code(kind)

    def encode(entry: Any) -> bytes:
        values = take(entry)
        body = _dumped(values)
        if _loaded(body) != values:
            raise Inexact
        return body

    return encode


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """JSON -> entry."""
    _, build = _code(kind)
    return lambda body: build(_loaded(body))


def _dumped(values: Any) -> bytes:
    try:
        return pydantic_core.to_json(values)  # five times as fast as json
    except ValueError:  # half a character
        try:
            return json.dumps(values, separators=(",", ":")).encode()
        except (TypeError, ValueError):
            raise Inexact from None


def _loaded(body: bytes) -> Any:
    try:
        return pydantic_core.from_json(body, cache_strings="keys")
    except ValueError:  # half a character
        return json.loads(body)


def _same(value: Any) -> Any:
    return value


def _code(kind: Any) -> Code:
    """For values of a type. Types of JSON itself are taken as they are: `encoder` compares them."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (part,) = (part for part in parts if part is not types.NoneType)
        take, build = _code(part)
        return (
            lambda value: None if value is None else take(value),
            lambda value: None if value is None else build(value),
        )
    if origin is tuple:
        return _code_of_tuple(parts)
    if kind is Path:
        return lambda value: str(_checked(value, type(Path()))), Path
    fields_of = origin or kind
    if not dataclasses.is_dataclass(fields_of):
        return _same, _same
    hints, names = typing.get_type_hints(fields_of), [field.name for field in dataclasses.fields(fields_of)]
    of_variables = dict(zip(getattr(fields_of, "__parameters__", ()), parts, strict=True))
    take, build = _code_of_values([_code(_filled(hints[name], of_variables)) for name in names])
    values_of = operator.attrgetter(*names, names[0])  # of one name alone it would be no tuple
    return (
        lambda value: take(values_of(_checked(value, fields_of))[:-1]),
        lambda values: fields_of(*build(values)),
    )


def _code_of_tuple(parts: tuple[Any, ...]) -> Code:
    if parts[1:] == (Ellipsis,):
        take, build = _code(parts[0])
        if build is _same:
            return lambda values: list(_checked(values, tuple)), tuple
        return lambda values: list(map(take, _checked(values, tuple))), lambda values: tuple(map(build, values))
    take, build = _code_of_values([_code(part) for part in parts])
    return lambda values: take(_checked(values, tuple)), build


def _code_of_values(codes: list[Code]) -> Code:
    """For a tuple with a type for each place."""
    takes, builds = zip(*codes, strict=True)
    if all(build is _same for build in builds):
        return lambda values: _of_length(list(values), len(codes)), tuple
    return (
        lambda values: [take(value) for take, value in zip(takes, _of_length(values, len(codes)), strict=True)],
        lambda values: tuple([build(value) for build, value in zip(builds, values, strict=True)]),
    )


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Inexact
    return value


def _of_length(values: Any, length: int) -> Any:
    if len(values) != length:
        raise Inexact
    return values


def _filled(hint: Any, of_variables: dict[Any, Any]) -> Any:
    """The hint with what its type variables stand for."""
    if isinstance(hint, TypeVar):
        return of_variables[hint]
    variables = getattr(hint, "__parameters__", ())
    return hint[tuple(of_variables[variable] for variable in variables)] if variables else hint
