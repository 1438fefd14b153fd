"""`import pixel_sail` is cheap, and offers the model and the predictor at first use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pixel_sail

REPOSITORY = Path(__file__).resolve().parents[1]


def run_python(code: str) -> str:
    """What a new interpreter prints; the repository is where it imports from."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_no_heavy_package() -> None:
    heavy = "('torch', 'transformers', 'numpy', 'pydantic')"
    assert run_python(f"import sys, pixel_sail; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_exports_are_the_classes_themselves() -> None:
    from pixel_sail.model.pixel_sail import PixelSail
    from pixel_sail.serve.predictor import Predictor

    assert pixel_sail.PixelSail is PixelSail and pixel_sail.Predictor is Predictor
    assert set(pixel_sail.__all__) <= set(dir(pixel_sail))


def test_exports_work_in_a_new_interpreter() -> None:
    assert (
        run_python("from pixel_sail import *; print(Predictor.__name__, PixelSail.__name__)") == "Predictor PixelSail"
    )


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'pixel_sail' has no attribute 'Segmenter'"):
        pixel_sail.Segmenter  # noqa: B018


def test_one_version() -> None:
    """setup.py, the package, the changelog and the citation name the same release."""
    setup = re.search(r'version="([^"]+)"', (REPOSITORY / "setup.py").read_text())[1]
    changelog = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = re.search(r"^version: (\S+)", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert setup == changelog == citation == pixel_sail.__version__


def test_type_checkers_find_the_types() -> None:
    assert (REPOSITORY / "pixel_sail" / "py.typed").is_file()
    assert 'package_data={"pixel_sail": ["py.typed"]}' in (REPOSITORY / "setup.py").read_text()


def test_a_wheel_has_every_module() -> None:
    """A folder without __init__.py works in a clone, and is missing from what is built from it."""
    folders = {path.parent for path in (REPOSITORY / "pixel_sail").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
