"""Hub ids wherever a model folder is taken: huggingface_hub's download, from a hub on this machine, and its cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, serve
from huggingface_hub import constants
from tiny_export import save_export

from pixel_sail.errors import WeightsError
from pixel_sail.folders.find import find_export, local_folder, own_folder
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.start import find_model, model_folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_export(tmp_path_factory.mktemp("repository") / "export")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("# Tiny")
    return folder


@pytest.fixture
def hub(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve(export) as running:
        point_at(running.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which huggingface_hub has read already."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_model_comes_from_the_hub_once(hub: FakeHub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    expected = Predictor.from_pretrained(export, "cpu").chat(None, "What is red?")[0].text
    assert Predictor.from_pretrained("org/tiny", "cpu").chat(None, "What is red?")[0].text == expected
    assert set(hub.fetched) == {"config.json", "generation_config.json", "model.safetensors", "checksums.json",
                                "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} & {
        file.name for file in export.iterdir()
    }  # fmt: skip
    assert hub.tokens == {"Bearer hf_secret"}
    fetched = len(hub.fetched)
    assert isinstance(PixelSail.from_pretrained("org/tiny", revision="v1").config, PixelSailConfig)
    point_at("http://127.0.0.1:1", monkeypatch)  # nobody answers: the cache is enough
    assert find_export("org/tiny") == find_model(Path("org/tiny@v1")) == model_folder(Path("org/tiny"))
    assert find_export(Path("org/tiny")).name == COMMIT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder(f"org/tiny@{COMMIT}") == own_folder("org/tiny", COMMIT, local_files_only=True)
    assert len(hub.fetched) == fetched


def test_what_no_hub_gives_says_why(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(name: str, **options: object) -> str:
        with pytest.raises(WeightsError) as error:
            own_folder(name, **options)
        return str(error.value)

    assert f"org/none is no folder, and no hub gives it: {hub.address} has no model org/none" in message("org/none")
    assert f"org/gated is gated: accept its conditions at {hub.address}/org/gated" in message("org/gated")
    assert "org/tiny has no revision v9" in message("org/tiny@v9")
    assert "give one of them" in message("org/tiny@v9", revision="v1")
    assert "an id is name or organisation/name" in message("org/a--b")
    assert "nothing is fetched (local_files_only), and org/tiny is not" in message("org/tiny", local_files_only=True)
    point_at("http://127.0.0.1:1", monkeypatch)
    unreachable = message("org/tiny")
    assert (
        "http://127.0.0.1:1 cannot be reached (ConnectError" in unreachable and "`hf download org/tiny`" in unreachable
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "nothing is fetched (HF_HUB_OFFLINE), and org/tiny at revision v1 is not in" in message("org/tiny@v1")
    assert hub.fetched == []


def test_paths_ask_no_hub(hub: FakeHub, tmp_path: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/tiny").symlink_to(export)
    assert own_folder("org/tiny") == Path("org/tiny")
    with pytest.raises(WeightsError, match="org/tiny is a folder, which has none"):
        own_folder("org/tiny", revision="v1")
    with pytest.raises(WeightsError, match="no pixel_sail checkpoint at runs/a/export"):
        Predictor.from_pretrained("runs/a/export", "cpu")
    with pytest.raises(WeightsError, match="no pixel_sail checkpoint at org/mistyped"):
        Predictor.from_pretrained("org/mistyped", "cpu")
    with pytest.raises(WeightsError, match="no pixel_sail checkpoint at nowhere"):
        PixelSail.from_pretrained("nowhere")
    assert hub.fetched == [] and not hub.tokens
