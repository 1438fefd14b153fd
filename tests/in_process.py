"""Commands that run in the process of the test: no time for imports, and parts of them can be replaced."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import pytest
from conftest import REPOSITORY


def load_tool(name: str) -> ModuleType:
    """The module of pixel_sail/commands that tools/<name>.py opens."""
    door = (REPOSITORY / f"tools/{name}.py").read_text()
    return importlib.import_module(re.search(r"^from (\S+) import main$", door, re.MULTILINE)[1])


def call_main(monkeypatch: pytest.MonkeyPatch, tool: ModuleType, *arguments: object) -> None:
    """Call `main` of the command with these arguments."""
    monkeypatch.setattr(sys, "argv", [tool.__file__, *map(str, arguments)])
    tool.main()
