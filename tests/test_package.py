"""`import pixel_sail` is cheap, and offers the model and the predictor at first use."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import pixel_sail
from pixel_sail import shipped

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is installed from a wheel of this tree, without what it needs."""
    pytest.importorskip("setuptools", "70.1", reason="older setuptools need the package wheel")
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for part in ("pixel_sail", "configs", "data/models/tiny"):
        shutil.copytree(REPOSITORY / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(REPOSITORY / name, clone)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(clone),
    ]
    subprocess.run(build, check=True)
    (built,) = out.glob("pixel_sail-*.whl")
    zipfile.ZipFile(built).extractall(out / "installed")
    return out / "installed"


def run_installed(wheel: Path, folder: Path, *arguments: str) -> str:
    """Standard output of a command of the installed package, started in an empty folder."""
    command = [sys.executable, "-m", "pixel_sail", *arguments]
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_wheel_brings_the_recipes_and_the_small_model(wheel: Path, tmp_path: Path) -> None:
    brought = wheel / "pixel_sail" / "shipped"
    assert filecmp.dircmp(REPOSITORY / "configs", brought / "configs").diff_files == []
    names = {path.name for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert names == {path.name for path in (brought / "configs").iterdir()}
    released = "data/models/tiny"
    assert filecmp.cmp(REPOSITORY / released / "model.safetensors", brought / released / "model.safetensors", False)


def test_an_installed_package_predicts_and_fine_tunes_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """With the small model by default, and from a recipe that starts from it; nothing of the clone is at hand."""
    Image.new("RGB", (96, 64), (200, 40, 30)).save(tmp_path / "a.png")
    run_installed(wheel, tmp_path, "predict", "--image", "a.png", "--text", "the red mug", "--out", "out")
    assert (tmp_path / "out" / "a_overlay.png").exists()
    run_installed(wheel, tmp_path, "data", "scenes", "--out", "data/scenes_night", "--images", "20", "--style", "night")
    small = ["train.steps=1", "train.batch_size=2", "data.workers=0", "evaluate.benchmarks=[]"]
    run_installed(wheel, tmp_path, "train", "configs/finetune_scenes.yaml", "run.dir=run", *small)
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


def test_a_wheel_has_every_module() -> None:
    """A folder without __init__.py works in a clone, and is missing from what is built from it."""
    folders = {path.parent for path in (REPOSITORY / "pixel_sail").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    "name", ["configs/" + "a" * 5000 + ".yaml", "data/a\0b", "configs/none.yaml", "../configs/tiny.yaml"]
)
def test_what_is_not_shipped_stays_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").touch()
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path / "configs")
    assert shipped.here_or_shipped(Path(name)) == Path(name)
    assert shipped.here_or_shipped(Path("configs/tiny.yaml")) == tmp_path / "configs" / "tiny.yaml"
