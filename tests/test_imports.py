"""Imports go one way: {types, tokens, config} -> {data | model | experts} -> {losses, metrics} -> top -> tools."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pixel_sail"
BASE, ROOMS, SCORES = {"types", "tokens", "config"}, {"data", "model", "experts"}, {"losses", "metrics"}
MAY_IMPORT = {
    **{name: BASE for name in BASE},
    **{room: BASE | {room} for room in ROOMS},  # data and model never import each other
    **{name: BASE | ROOMS | SCORES for name in SCORES},
    # A converter makes a model and its tokenizer; it reads nothing of training or scoring.
    "convert": BASE | ROOMS | {"convert"},
    "serve": BASE | ROOMS | SCORES | {"serve"},
    "evaluate": BASE | ROOMS | SCORES | {"serve", "evaluate"},
    "train": BASE | ROOMS | SCORES | {"convert", "serve", "evaluate", "train"},
    "bench": BASE | ROOMS | SCORES | {"serve", "evaluate", "train", "bench"},
    "__init__": BASE | ROOMS | {"serve"},
}


def imports(path: Path) -> set[str]:
    """The parts of pixel_sail that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "pixel_sail"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
        found |= {name.split(".")[1] for name in names if name.startswith("pixel_sail.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} has no place in the direction of imports"
    wrong = imports(path) - MAY_IMPORT[part]
    assert not wrong, f"{path.relative_to(PACKAGE)} must not import {sorted(wrong)}"


def test_readers_of_annotations_know_no_tokenizer() -> None:
    for path in (PACKAGE / "data" / "sources").rglob("*.py"):
        text = path.read_text()
        assert "transformers" not in text and "import torch" not in text, path


def test_everything_above_is_seen() -> None:
    assert imports(PACKAGE / "train" / "build.py") >= {"config", "convert", "data", "model"}
