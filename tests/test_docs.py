"""The docs: links, paths, config keys and options exist; the Python examples run; lines are short enough to read."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from transformers import AutoTokenizer

from pixel_sail.architecture import FLAT_KEYS, Architecture
from pixel_sail.config import Config, ModelSection, ScratchConfig
from pixel_sail.model import generation
from pixel_sail.weights.convert.scratch import from_scratch

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "data" / "README.md"],
    key=lambda page: str(page.relative_to(REPOSITORY)),
)
NAMED_PATH = re.compile(r"\b(?:pixel_sail|tools|configs|docs|tests)/[\w{},*/.+-]*\w")
SECTIONS = "run|architecture|data|train|loss|evaluate"
NAMED_KEY = re.compile(rf"`((?:{SECTIONS})\.[a-z_.]+)(?:[:=][^`]*)?`")
MAX_LINE = 160


def of_repository(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(REPOSITORY)))


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def expanded(path: str) -> list[str]:
    """ "a_{b,c}.py" -> ["a_b.py", "a_c.py"]."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    return [name for part in braces[1].split(",") for name in expanded(path.replace(braces[0], part, 1))]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code_blocks(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_repository(PAGES)
def test_links_lead_somewhere(path: Path) -> None:
    text = without_code_blocks(path.read_text())
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not link.startswith("http") and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    assert not broken


@of_repository([page for page in PAGES if page.name not in ("CHANGELOG.md", "add_a_dataset.md")])
def test_named_paths_exist(path: Path) -> None:
    """Also in commands. The changelog names old paths; add_a_dataset.md names the files of its example."""
    names = {name for match in NAMED_PATH.findall(path.read_text()) for name in expanded(match)}
    assert not sorted(name for name in names if not list(REPOSITORY.glob(name)))


@of_repository(sorted((REPOSITORY / "configs").glob("*.yaml")))
def test_paths_in_the_heads_of_configs_exist(path: Path) -> None:
    comments = " ".join(re.findall(r"#.*", path.read_text()))
    assert not sorted(name for name in NAMED_PATH.findall(comments) if not (REPOSITORY / name).exists())


@of_repository(sorted([*(REPOSITORY / "pixel_sail").rglob("*.py"), *(REPOSITORY / "tools").glob("*.py")]))
def test_pages_named_in_code_exist(path: Path) -> None:
    pages = re.findall(r"\b(?:docs|data)/[\w/]+\.md", path.read_text())
    assert not sorted(name for name in pages if not (REPOSITORY / name).exists())


def is_key(name: str) -> bool:
    section: type[BaseModel] | None = Config
    for part in name.split("."):
        field = None if section is None else section.model_fields.get(part)
        if field is None:
            return False
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return True


@of_repository([page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "results"])
def test_named_config_keys_exist(path: Path) -> None:
    """Pages of results name the keys of their commit."""
    text = path.read_text()
    files = (".py", ".jsonl", ".yaml")
    unknown = [name for name in NAMED_KEY.findall(text) if not is_key(name) and not name.endswith(files)]
    assert not unknown
    assert not re.findall(rf"\bmodel\.(?:{'|'.join(FLAT_KEYS)})\b", text)


@of_repository([page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "results"])
def test_options_of_commands_exist(path: Path) -> None:
    """In commands of indented blocks and of backticks; a backslash continues a line."""
    unknown = []
    text = path.read_text().replace("\\\n", " ")
    for tool, arguments in re.findall(r"(tools/\w+\.py)([^`\n]*)", text):
        door = (REPOSITORY / tool).read_text()
        source = (REPOSITORY / re.search(r"pixel_sail/commands/\w+\.py", door)[0]).read_text()
        options = re.findall(r"(?<=\s)--[a-z][\w-]*", arguments.partition(" # ")[0])
        unknown += [f"{tool} {option}" for option in options if f'"{option}"' not in source]
    assert not unknown


@of_repository([page for page in PAGES if page.parent.name != "data"])
def test_lines_are_short(path: Path) -> None:
    """Rows of tables may be longer: they cannot be broken."""
    lines = enumerate(path.read_text().splitlines(), 1)
    assert not [number for number, line in lines if len(line) > MAX_LINE and not line.lstrip().startswith("|")]


@of_repository(PAGES)
def test_nothing_is_left_to_be_filled_in(path: Path) -> None:
    assert not re.search(r"PLACEHOLDER|TODO|@[A-Z]+@", path.read_text())


def test_the_front_page_is_short() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= MAX_LINE


def test_every_page_is_in_an_index() -> None:
    for folder in (REPOSITORY / "docs", REPOSITORY / "docs" / "results"):
        index = (folder / "README.md").read_text()
        assert not [page.name for page in folder.glob("*.md") if f"({page.name})" not in index + "(README.md)"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as an export folder."""
    torch.manual_seed(0)
    scratch = ScratchConfig(hidden_size=32, layers=1, heads=2, kv_heads=2, mlp_size=32, vocab_size=400)
    architecture = Architecture(patch_size=8, mask_stride=8, mask_dim=8, max_side_px=64, clicks=True)
    texts = ["the red mug"] * 3
    model, tokenizer = from_scratch(ModelSection(scratch=scratch), architecture, texts, "Segment {expression}.")
    folder = tmp_path_factory.mktemp("export")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@of_repository([REPOSITORY / "README.md", REPOSITORY / "docs" / "use.md"])
def test_python_examples_run(path: Path, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tiny model; its first answers begin with [SEG], which random weights would not choose."""
    for name in ("photo.jpg", "other.jpg"):
        Image.new("RGB", (160, 120), "grey").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    seg_id = AutoTokenizer.from_pretrained(export).convert_tokens_to_ids("[SEG]")
    choose, calls = generation._choose, itertools.count()

    def seg_first(logits: torch.Tensor, sampling: generation.Sampling) -> list[int]:
        return choose(logits, sampling) if next(calls) else [seg_id] * len(logits)

    monkeypatch.setattr(generation, "_choose", seg_first)
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks).replace("data/models/tiny", str(export))
    code = re.sub(r'"data/scenes_day/\S+"', '"photo.jpg"', code)
    names: dict[str, Any] = {}
    exec(compile(code, str(path), "exec"), names)
    assert names["answers"][0].masks[0].shape == (120, 160)
