"""Remote code: the Python files with which transformers' AutoModel and AutoProcessor load a published folder.

Where pixel_sail is installed, it is used. Elsewhere the folder's own copy is: the modules of serving, with the same
text, as files side by side (transformers copies no packages), `pixel_sail.model.attention` as
pixel_sail_model_attention.py. They need the libraries that they import (torch, transformers, einops, pycocotools,
pydantic), which transformers names where one is missing.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ENTRY = "pixel_sail.serve.remote"
FILE = "modeling_pixel_sail"
CLASSES = {"AutoConfig": "PixelSailConfig", "AutoModel": "PixelSailModel", "AutoProcessor": "PixelSailProcessor"}
AUTO_MAP = {auto: f"{FILE}.{name}" for auto, name in CLASSES.items()}


def write_remote_code(folder: Path) -> None:
    """Write the entry modeling_pixel_sail.py, a copy of every module that it needs, and processor_config.json."""
    names = ", ".join(CLASSES.values())
    text = (
        f'"""Loads this model in transformers (trust_remote_code=True); written by pixel_sail."""\n\n'
        f"try:  # the package, where it is installed\n    from {ENTRY} import {names}\n"
        f"except ImportError:  # its modules of serving, which lie beside this file\n"
        f"    from .{_flat(ENTRY)} import {names}\n\n__all__ = {list(CLASSES.values())}\n"
    )
    (folder / f"{FILE}.py").write_text(text, encoding="utf-8")
    for module, source in copies().items():
        (folder / f"{_flat(module)}.py").write_text(source, encoding="utf-8")
    processor = {"auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1), encoding="utf-8")


def copies() -> dict[str, str]:
    """By name, the source of each module that `ENTRY` needs, with imports of modules that lie side by side."""
    sources: dict[str, str] = {}
    waiting = [ENTRY]
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module], needed = _with_neighbours((PACKAGE.parent / module.replace(".", "/")).with_suffix(".py"))
            waiting += needed
    return sources


def _with_neighbours(path: Path) -> tuple[str, list[str]]:
    """The source of a file with `from .pixel_sail_a_b import c` for `from pixel_sail.a.b import c`, and its modules."""
    text = path.read_text(encoding="utf-8")
    lines, needed = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE.name:
            continue
        line = lines[node.lineno - 1]
        if node.module == PACKAGE.name:  # transformers looks for `from .x import` to know what to copy
            modules = {f"{PACKAGE.name}.{alias.name}": alias.asname or alias.name for alias in node.names}
            indent = line[: node.col_offset]
            lines[node.lineno - 1] = "\n".join(
                f"{indent}from .{_flat(module)} import __name__ as _\n{indent}from . import {_flat(module)} as {name}"
                for module, name in modules.items()
            )
            needed += modules
        else:
            lines[node.lineno - 1] = line.replace(f"from {node.module} ", f"from .{_flat(node.module)} ", 1)
            needed.append(node.module)
    return "\n".join(lines) + "\n", needed


def _flat(module: str) -> str:
    return module.replace(".", "_")
