"""Renders a chat template in a process of its own with limits; chat_template.py starts it. Only jinja2 is imported.

stdin: JSON {template, date, seconds, memory_bytes, characters, calls: [variables, ...]}; stdout: JSON {texts: [...]} or
{error: why}. The environment is that of transformers' `apply_chat_template`, with a fixed date.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which only marks text, is that text."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Namespace(jinja2.utils.Namespace):
    """Has no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def render(request: dict[str, Any]) -> list[str]:
    """The texts of all calls. Raises what jinja2 raises, and ValueError for a text that is too long."""
    date = datetime.fromisoformat(request["date"])
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": date.strftime,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": Namespace,
    }
    template = environment.from_string(request["template"])
    return [_text(template, variables, request["characters"]) for variables in request["calls"]]


def main() -> None:
    request = json.load(sys.stdin)
    seconds, memory = request["seconds"], request["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write
    try:
        answer = {"texts": render(request)}
    except MemoryError:
        answer = {"error": f"it needs more than {memory:,} bytes of memory"}
    except RecursionError:
        answer = {"error": "it is nested too deep"}
    except Exception as error:  # a template can raise anything
        answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    json.dump(answer, sys.stdout)


def _text(template: jinja2.Template, variables: dict[str, Any], characters: int) -> str:
    parts, length = [], 0
    for part in template.generate(**variables):
        length += len(part)
        if length > characters:
            raise ValueError(f"it writes more than {characters:,} characters")
        parts.append(part)
    return "".join(parts)


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # noqa: ANN001, ANN202
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"names of a namespace cannot begin with an underscore: {name!r}")


if __name__ == "__main__":
    main()
