"""The source hf: rows of parquet, of a folder of images and of save_to_disk become Samples, and say what is wrong."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from source_fixtures import SIZE, assert_mask, box_mask, box_polygon, box_rle

from pixel_sail.config import ConfigError, build_config
from pixel_sail.data.errors import DatasetError, UnknownSplit
from pixel_sail.data.exclude import RemainingSource, identities
from pixel_sail.data.mixture import Mixture, open_mixture
from pixel_sail.data.shards import open_shards
from pixel_sail.data.sources import open_source
from pixel_sail.data.sources.hf import HfSource
from pixel_sail.data.write_shards import make_shards
from pixel_sail.types import BadSample, Turn

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs datasets: pip install 'pixel_sail[hf]'"
)
TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A box."}]
TURN = Turn("What is it?", "A box.")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache of its own."""
    if importlib.util.find_spec("datasets"):
        import datasets
        import huggingface_hub.constants

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()


def png(image: Image.Image | np.ndarray) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return file.getvalue()


def picture(value: int = 90, name: str | None = "a.png") -> dict[str, Any]:
    """A cell of a column of images."""
    return {"bytes": png(Image.new("RGB", SIZE[::-1], (value, value, value))), "path": name}


def write_rows(
    root: Path, rows: list[dict[str, Any]], split: str = "train", images: tuple[str, ...] = ("image",)
) -> Path:
    """A folder of parquet; `images`: the columns of images."""
    import datasets

    rows = [{name: cell and [cell] if name == "images" else cell for name, cell in row.items()} for row in rows]
    made = datasets.Dataset.from_list(rows)
    features = made.features.copy()
    for name in images:
        features[name] = datasets.List(datasets.Image()) if name == "images" else datasets.Image()
    (root / "data").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    return root


def config_of(root: Path, **entry: Any):
    scratch = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_size": 32}
    mixture = [{"source": "hf", "root": str(root), **entry}]
    return build_config(
        {
            "run": {"dir": "runs/x"},
            "model": {"scratch": scratch},
            "architecture": {"patch_size": 8, "max_side_px": 64},
            "data": {"root": "none", "mixture": mixture},
            "train": {"steps": 1, "batch_size": 1},
        },
        "test",
    )


def opened(root: Path, **entry: Any) -> HfSource:
    data = config_of(root, **entry).data
    return open_source(data.mixture[0], data)


@needs_datasets
@pytest.mark.parametrize(
    "columns, cells",
    [
        (None, {"conversations": TALK}),
        (
            {"conversation": "talk"},
            {"talk": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A box."}]},
        ),
        (None, {"messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A box."}]}]}),
        (None, {"texts": [{"user": "What is it?", "assistant": "A box.", "source": "x"}]}),
        ({"question": "q", "answer": "a"}, {"q": "What is it?", "a": "A box."}),
        ({"question": "q", "answer": "a"}, {"q": ["What is it?"], "a": ["A box."]}),
    ],
)  # fmt: skip
def test_every_form_of_a_conversation(tmp_path: Path, columns: dict[str, Any] | None, cells: dict[str, Any]) -> None:
    source = opened(write_rows(tmp_path / "org", [{"image": picture(), **cells}]), columns=columns)
    sample = source.sample(0, np.random.default_rng(0))
    assert sample.turns == (TURN,) and sample.image == picture()["bytes"] and source.image(0) == sample.image
    assert len(source) == 1 and sample.key == source.key(0) == "hf/org/train/row=0"


@needs_datasets
def test_masks_of_the_segs_of_a_conversation(tmp_path: Path) -> None:
    """RLE; a column of lists of images may hold one; a row without an image is a text alone."""
    talk = {"q": ["Where?", "And?"], "a": ["[SEG] and [SEG].", "No more."]}
    rows = [
        {"images": picture(), "masks": [box_rle(5, 5), box_rle(9, 2)], **talk},
        {"images": None, "masks": None, "q": ["Why?"], "a": ["So."]},
    ]
    columns = {"image": "images", "question": "q", "answer": "a", "masks": "masks"}
    source = opened(write_rows(tmp_path / "org", rows, images=("images",)), columns=columns)
    first, text = (source.sample(index, np.random.default_rng(0)) for index in range(2))
    assert_mask(first.masks[0], box_mask(5, 5))
    assert_mask(first.masks[1], box_mask(9, 2))
    assert len(first.turns) == 2 and text.image is None and text.turns == (Turn("Why?", "So."),)


@needs_datasets
@pytest.mark.parametrize("form", ["rle", "polygons", "png", "one"])
def test_expressions_with_masks(tmp_path: Path, form: str) -> None:
    """A missing mask means that the expression names nothing."""
    shape = {
        "rle": box_rle(5, 5),
        "polygons": box_polygon(5, 5),
        "png": {"bytes": png(box_mask(5, 5).astype(np.uint8) * 255), "path": None},
        "one": box_rle(5, 5),
    }[form]
    row = {"image": picture(), "phrase": ["the box", "the zebra"], "mask": [shape, None]}
    if form == "one":
        row |= {"phrase": "the box", "mask": shape}
    columns = {"expression": "phrase", "masks": "mask"}
    root = tmp_path / "org"
    if form == "png":
        import datasets

        features = datasets.Features(
            image=datasets.Image(), phrase=datasets.List(datasets.Value("string")), mask=datasets.List(datasets.Image())
        )
        (root / "data").mkdir(parents=True)
        datasets.Dataset.from_list([row], features=features).to_parquet(root / "data/train.parquet")
    else:
        write_rows(root, [row])
    sample = opened(root, columns=columns).sample(0, np.random.default_rng(0))
    assert len(sample.masks) == 1 and len(sample.turns) == (1 if form == "one" else 2)
    (asked,) = (turn for turn in sample.turns if "[SEG]" in turn.answer)
    assert "the box" in asked.question
    mask = box_mask(5, 5)
    assert_mask(sample.masks[0], mask)


@needs_datasets
def test_a_folder_of_images(tmp_path: Path) -> None:
    """The library's own layout, `imagefolder`: images stay files, and a link to elsewhere is not followed by name."""
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(picture()["bytes"])
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "conversations": TALK}))
    source = opened(tmp_path / "photos")
    sample = source.sample(0, np.random.default_rng(0))
    assert sample.image == folder / "a.png" and sample.turns == (TURN,)
    assert source.image_name(0) == folder / "a.png"


@needs_datasets
def test_a_saved_dataset_and_its_split(tmp_path: Path) -> None:
    import datasets

    rows = [{"image": None, "conversations": TALK}]
    made = datasets.DatasetDict({"validation": datasets.Dataset.from_list(rows * 3)})
    made.save_to_disk(tmp_path / "saved")
    assert len(opened(tmp_path / "saved", split="validation")) == 3
    with pytest.raises(UnknownSplit, match="saved has no split 'train'; it has validation"):
        opened(tmp_path / "saved")


@needs_datasets
def test_names_of_files_stay_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture()["bytes"])
    root = tmp_path / "org"
    names = ["a.png", "../secret.png", str(tmp_path / "secret.png"), str(root / "../secret.png")]
    write_rows(root, [{"image": name, "conversations": TALK} for name in names], images=())
    (root / "a.png").write_bytes(picture()["bytes"])
    source = opened(root)
    assert source.sample(0, np.random.default_rng(0)).image == root / "a.png"
    for index in range(1, 4):
        with pytest.raises(BadSample, match=f"row={index}: its 'image': the file name .* leads out of"):
            source.sample(index, np.random.default_rng(0))


@needs_datasets
@pytest.mark.parametrize(
    "cells, columns, message",
    [
        ({"q": "Why?", "a": ["So.", "No."]}, {"question": "q", "answer": "a"}, "it has 1 questions and 2 answers"),
        ({"q": "Why?", "a": "[SEG]."}, {"question": "q", "answer": "a"}, "have 1 [SEG], but 'masks' has 0"),
        ({"q": "Why?", "a": " "}, {"question": "q", "answer": "a"}, "turn 0: its answer is empty"),
        ({"q": "<Prompt1>?", "a": "A."}, {"question": "q", "answer": "a"}, "<Prompt1> is named"),
        ({"q": 7, "a": "So."}, {"question": "q", "answer": "a"}, "question 0 is 7; expected a text"),
        ({"conversations": TALK[:1]}, None, "it has 1 messages of user and assistant; expected pairs"),
        ({"conversations": TALK[::-1]}, None, "message 0 is from 'gpt'"),
        ({"conversations": "What?"}, None, "expected a list of messages"),
        ({"e": ["a", "b"], "m": [box_rle(5, 5)]}, {"expression": "e", "masks": "m"}, "2 expressions and 1 masks"),
        ({"e": "a", "m": {"size": [4, 4], "counts": "44"}}, {"expression": "e", "masks": "m"}, "mask 0"),
        ({"e": "a", "m": [5.0]}, {"expression": "e", "masks": "m"}, "mask 0 is 5.0; expected an image"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(
    tmp_path: Path, cells: dict[str, Any], columns: dict[str, Any] | None, message: str
) -> None:
    source = opened(write_rows(tmp_path / "org", [{"image": picture(), **cells}]), columns=columns)
    with pytest.raises(BadSample) as raised:
        source.sample(0, np.random.default_rng(0))
    assert str(raised.value).startswith("hf/org/train/row=0: ") and message in str(raised.value)


@needs_datasets
def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_rows(tmp_path / "org", [{"image": picture(), "text": "x"}])
    with pytest.raises(DatasetError, match="none of the columns conversations, messages, texts; it has image, text"):
        opened(root)
    with pytest.raises(DatasetError, match="no column 'q'; it has image, text"):
        opened(root, columns={"question": "q", "answer": "text"})
    with pytest.raises(UnknownSplit, match="org has no split 'valid'"):
        opened(root, split="valid")
    with pytest.raises(DatasetError, match="nobody/nothing cannot be opened: .*no local folder either"):
        opened(root, path="nobody/nothing")
    with pytest.raises(DatasetError, match="no folder .*/nowhere; a dataset of the hub is named by `path`"):
        opened(tmp_path / "nowhere")
    (root / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match="org cannot be opened: "):
        opened(root)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package datasets: pip install 'pixel_sail\[hf\]'"):
        opened(root)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"source": "refcoco", "path": "a/b"}, "path is for source hf"),
        ({"source": "hf", "columns": {"question": "q"}}, "question and answer belong together"),
        ({"source": "hf", "columns": {"expression": "e"}}, "an expression needs masks and image"),
        ({"source": "hf", "columns": {"conversation": "c", "expression": "e", "masks": "m"}}, "not several of these"),
    ],
)
def test_entries_that_contradict_themselves(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, **entry)


@needs_datasets
def test_the_stream_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    """What resuming and other numbers of ranks and workers rest on; also out of shards."""
    rows = [{"image": picture(n), "e": ["the box", "it"], "m": [box_rle(5, 5), box_rle(n, 2)]} for n in range(7)]
    root = write_rows(tmp_path / "org", rows)
    config = config_of(root, columns={"expression": "e", "masks": "m"})
    first, again = open_mixture(config), open_mixture(config)
    samples = [first.sample(position) for position in range(20)]
    assert [again.sample(position) for position in reversed(range(20))] == samples[::-1]
    assert len({sample.key for sample in samples[:7]}) == 7 and first.fingerprint() == again.fingerprint()
    make_shards(config, tmp_path / "shards", 20, samples_per_shard=8)
    stored = open_shards(tmp_path / "shards", config.data)
    assert [stored.sample(index, np.random.default_rng(0)).turns for index in range(20)] == [s.turns for s in samples]


@needs_datasets
def test_held_out_images_are_told_by_their_names(tmp_path: Path) -> None:
    names = ["COCO_train2014_000000000009.jpg", "000000000010.jpg", "b.png"]
    root = write_rows(tmp_path / "org", [{"image": picture(name=name), "conversations": TALK} for name in names])
    left = RemainingSource(opened(root), identities([Path("000000000009.jpg")]))
    assert len(left) == 2 and left.excluded == 1 and left.key(0) == "hf/org/train/row=1"
    assert Mixture([left], [1.0], 0).image(0) == picture()["bytes"]
    unnamed = write_rows(tmp_path / "unnamed", [{"image": picture(name=None), "conversations": TALK}])
    with pytest.raises(DatasetError, match="row=0: its image has no file name, so that data.exclude cannot tell"):
        RemainingSource(opened(unnamed), frozenset())
