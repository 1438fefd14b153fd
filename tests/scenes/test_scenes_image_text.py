"""Captioned images in tars, and plain text, of the drawn world."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pixel_sail import scenes
from pixel_sail.config import DataConfig, MixtureEntry
from pixel_sail.data.sources import open_source
from pixel_sail.errors import FileError
from pixel_sail.scenes import write_image_text


def test_each_image_is_in_a_tar_with_its_captions_and_texts_show_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_image_text, "PAIRS_PER_TAR", 5)
    scenes.generate(tmp_path / "a", 15, 0, 64, workers=1, image_text=True)
    assert not scenes.generate(tmp_path / "a", 15, 0, 64, workers=1, image_text=True)
    with pytest.raises(FileError, match="holds scenes of another request"):
        scenes.generate(tmp_path / "a", 15, 0, 64, workers=1)
    images = {path.read_bytes() for path in (tmp_path / "a/images/train2014").iterdir()}
    for split, count in (("train", 12), ("val", 3)):
        tars = sorted((tmp_path / "a/image_text" / split).iterdir())
        assert [tar.name for tar in tars] == [f"{number:05d}.tar" for number in range(-(-count // 5))]
        entries = [MixtureEntry(source=name, split=split) for name in ("image_text", "text")]
        data = DataConfig(root=tmp_path / "a", mixture=entries)
        pairs, texts = (open_source(entry, data) for entry in entries)
        assert len(pairs) == len(texts) == count
        for index in range(count):
            pair, text = (source.sample(index, np.random.default_rng(0)) for source in (pairs, texts))
            assert pair.image in images and pair.turns[0].answer.endswith(".") and "picture" in text.text
            images.remove(pair.image)
    with tarfile.open(tars[0]) as tar:
        members = {member.name.partition(".")[2]: tar.extractfile(member).read() for member in tar.getmembers()[:3]}
    values = json.loads(members["json"])
    assert values["caption"] == members["txt"].decode() and len(values["re_caption"]) > len(values["caption"])
    assert not images
