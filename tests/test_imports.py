"""Imports go one way, down the list of rooms; nothing below imports the drawn world or the studies."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pixel_sail"
# From bottom to top. A room imports itself and what stands in the lines above it.
LAYERS = (
    (
        "errors",
        "files",
        "shipped",
        "yaml_file",
        "interrupts",
        "locks",
        "ranks",
        "workers",
        "writable",
        "layout",
        "types",
        "tokens",
        "architecture",
        "config",
        "config_keys",
        "durable",
        "devices",
        "folders",
    ),
    ("data", "model"),  # which never import each other
    ("experts",),  # the cache of features is filled from the images of data sources
    ("losses", "metrics"),
    ("weights",),
    ("serve",),
    ("evaluate",),
    ("train",),
    ("bench",),
    ("scenes", "studies"),  # which never import each other; only commands import them
    ("arguments", "command", "released"),  # what commands are made of
    ("commands",),  # the command line; nothing imports it but the next line and tools/
    ("__main__",),
)
LAZY = {"serve.predictor", "model.pixel_sail"}  # what `import pixel_sail` offers, imported at first use


def allowed(room: str) -> set[str]:
    """The rooms that a file of `room` may import."""
    level = next(i for i, layer in enumerate(LAYERS) if room in layer)
    below = {name for layer in LAYERS[:level] for name in layer}
    return below | (set(LAYERS[0]) if level == 0 else {room})


def imported_modules(path: Path) -> set[str]:
    """Modules of pixel_sail, such as "data.masks", that a file imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            whole = node.module == "pixel_sail"
            modules |= {f"pixel_sail.{alias.name}" for alias in node.names} if whole else {node.module}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {name.removeprefix("pixel_sail.") for name in modules if name and name.startswith("pixel_sail.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert imported_modules(path) <= LAZY
        return
    wrong = {name for name in imported_modules(path) if name.partition(".")[0] not in allowed(room)}
    assert not wrong, f"{path.relative_to(PACKAGE)} must not import {sorted(wrong)}"


def test_every_room_has_its_place() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert rooms - {"__init__"} == {name for layer in LAYERS for name in layer}


def test_the_order_is_that_of_the_design() -> None:
    """What a mistake in LAYERS would let through."""
    assert not {"scenes", "studies"} & allowed("bench") and "studies" not in allowed("scenes")
    assert "model" not in allowed("data") and "data" not in allowed("model") and "experts" not in allowed("data")
    assert "commands" not in {room for layer in LAYERS[:-2] for name in layer for room in allowed(name)}
    assert "train" not in allowed("weights") and "evaluate" not in allowed("serve")


def test_readers_of_annotations_know_no_tokenizer() -> None:
    for path in (PACKAGE / "data" / "sources").rglob("*.py"):
        text = path.read_text()
        assert "transformers" not in text and "import torch" not in text, path


def test_everything_above_is_seen() -> None:
    rooms = {name.partition(".")[0] for name in imported_modules(PACKAGE / "train" / "build.py")}
    assert rooms >= {"config", "weights", "data", "model"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_imported_is_there(path: Path) -> None:
    """Also inside functions, whose imports no other test may ever run."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == PACKAGE.name:
            module = PACKAGE.parent / node.module.replace(".", "/")
            names = {alias.name for alias in node.names}
            files = {name for name in names if (module / name).is_dir() or (module / f"{name}.py").exists()}
            missing = names - files - names_in(module)
            assert not missing, f"{node.module} has no {', '.join(sorted(missing))}"


@cache
def names_in(module: Path) -> frozenset[str]:
    """What a module defines or imports anywhere: more than its top level, but a name that is gone is in none of it."""
    path = module.with_suffix(".py") if module.with_suffix(".py").exists() else module / "__init__.py"
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)
