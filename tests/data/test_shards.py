"""Shards: what is stored comes back, byte for byte; the order; and a name for everything that can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import edit_refs, write_refer_dataset
from source_fixtures import messages
from test_mixture import FakeSource

from pixel_sail.config import Config, ConfigError, DataConfig, MixtureEntry, PromptConfig, build_config
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import image_size, load_image
from pixel_sail.data.masks import area_px
from pixel_sail.data.mixture import Mixture, open_mixture
from pixel_sail.data.shards import GROUP, HEAD_BYTES, ShardOrder, ShardSource, decode_sample, encode_sample, with_bytes
from pixel_sail.data.sources import open_source
from pixel_sail.data.verify_shards import verify_shards
from pixel_sail.data.write_shards import make_shards
from pixel_sail.experts.cache import CacheWriter, finish, image_digest, made_with
from pixel_sail.experts.features import cached_features
from pixel_sail.types import BadSample, NoPixels, Sample

SAMPLES, PER_SHARD = 47, 6  # the last of the eight shards is smaller


def config_of(root: Path, **data) -> Config:
    mixture = [
        {"source": "refcoco"},
        {"source": "grefcoco", "weight": 0.5},
        {"source": "refcoco_captions"},  # regions
        {"source": "llava", "weight": 0.5},  # without an image
    ]
    values = {
        "run": {"dir": "unused", "seed": 5},
        "model": {"base": "unused"},
        "data": {"root": str(root), "mixture": mixture, "expressions_per_image": 2} | data,
        "train": {"steps": 1, "batch_size": 1},
    }
    return build_config(values, "test")


def open_shards(root: Path, **data) -> ShardSource:
    values = DataConfig(root=root, mixture=[MixtureEntry(source="shards", root=root)], **data)
    return open_source(values.mixture[0], values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_refer_dataset(tmp_path_factory.mktemp("shards") / "root", train=5)
    talk = messages("Hör zu: größer als 漢?", "Yes\n\n— much.")
    (root / "llava").mkdir()
    (root / "llava" / "train.json").write_text(json.dumps([{"conversations": talk}]))
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A folder of shards. Copy it before changing it."""
    out = tmp_path_factory.mktemp("made") / "shards"
    make_shards(config_of(root), out, SAMPLES, PER_SHARD)
    return out


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shards, tmp_path / "shards")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_mixture_without_shards_is_what_it_was() -> None:
    # Recorded before there were shards.
    mixture = Mixture([FakeSource("a", 17), FakeSource("b", 300), FakeSource("c", 5)], [1.0, 2.0, 0.004], seed=3)
    stream = [(mixture.locate(i), mixture.key(i), mixture.sample(i).key, mixture.point_seed(i)) for i in range(2500)]
    assert hashlib.sha256(repr(stream).encode()).hexdigest()[:16] == "d8536ca1e968c7f2"
    assert [source["keys"] for source in mixture.fingerprint()] == [
        "dafaccaa1daf691f",
        "c5ac82733493c4be",
        "34009011248f5c19",
    ]


def test_every_sample_comes_back_as_it_was_drawn(root: Path, shards: Path) -> None:
    mixture, source = open_mixture(config_of(root)), open_shards(shards)
    expected = [with_bytes(mixture.annotated(position)) for position in range(SAMPLES)]
    assert len(source) == SAMPLES and source.problems == []
    assert [source.sample(i, np.random.default_rng()) for i in range(SAMPLES)] == expected
    assert [source.key(i) for i in range(SAMPLES)] == [sample.key for sample in expected]
    assert {sample.image is None for sample in expected} == {True, False}
    assert any(sample.prompts for sample in expected) and any(len(sample.masks) > 1 for sample in expected)


def test_the_first_bytes_of_an_image_tell_its_size(root: Path, shards: Path) -> None:
    """Ranks deal samples by it (data/deal.py)."""
    mixture, stored = open_mixture(config_of(root)), Mixture([open_shards(shards)], [1.0], seed=0)
    for position in range(SAMPLES):
        number, index, _ = stored.locate(position)
        sample, head = stored.sources[number].sample(index, np.random.default_rng()), stored.image(position)
        assert head == (None if sample.image is None else sample.image[:HEAD_BYTES])
        assert head is None or image_size(head, "") == load_image(sample.image).size[::-1]
    assert {mixture.image(position) is None for position in range(SAMPLES)} == {True, False}


def test_features_of_a_cache_travel_with_their_images(root: Path, tmp_path: Path) -> None:
    expert = {"name": "dino", "kind": "timm", "path": "x", "at": "patches", "size_px": 32, "cache": str(tmp_path / "c")}
    values = config_of(root).model_dump(mode="json") | {"experts": [expert]}
    config = build_config(values, "test")
    made_as = made_with(config.experts[0], config.architecture) | {"fingerprint": "abc"}
    mixture, rng = open_mixture(config), np.random.default_rng(0)
    features: dict[bytes, np.ndarray] = {}
    with CacheWriter(tmp_path / "c", {"width": 3, "path": "x", "made_with": made_as}) as cache:
        for sample in (with_bytes(mixture.annotated(position)) for position in range(SAMPLES)):
            if sample.image is not None and sample.image not in features:
                features[sample.image] = rng.normal(size=(3, 2, 2)).astype(np.float16)
                cache.add(image_digest(sample.image), features[sample.image])
    finish(tmp_path / "c", progress=False)

    make_shards(config, tmp_path / "shards", SAMPLES, PER_SHARD, features=cached_features(config))
    source = open_shards(tmp_path / "shards")
    for sample in (source.sample(i, rng) for i in range(SAMPLES)):
        assert sample.features.keys() == (set() if sample.image is None else {"dino"})
        if sample.image is not None:
            assert np.array_equal(sample.features["dino"], features[sample.image])
    read = next(iter(webdataset.WebDataset([str(tmp_path / "shards" / "000000.tar")], shardshuffle=False)))
    assert set(read) - {"__key__", "__url__", "__local_path__"} == {"json", "png", "dino.npy"}

    # What training compares with its config (train/distillation.py).
    assert source.experts == {"dino": {"made_with": made_as, "path": "x", "width": 3}}
    with pytest.raises(ConfigError, match=r"expert 'dino': the cache .* other features: size_px was 32, is 64"):
        cached_features(build_config(values | {"experts": [expert | {"size_px": 64}]}, "test"))
    (image,) = (root / "images" / "train2014").glob("*11.png")
    before = image.read_bytes()
    image.write_bytes(before + b"\x00")
    try:
        index = make_shards(config, tmp_path / "changed", SAMPLES, PER_SHARD, features=cached_features(config))
    finally:
        image.write_bytes(before)
    assert index["problems"] and all("image=11: its image is not in" in problem for problem in index["problems"])


@pytest.mark.parametrize("start, suffix", [(b"\xff\xd8\xff\xe0", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"", "bin")])
def test_features_and_any_kind_of_image_come_back(start: bytes, suffix: str) -> None:
    features = {"sam": np.arange(24, dtype=np.float16).reshape(2, 3, 4), "a_1": np.zeros((1, 1, 5), np.float16)}
    sample = Sample("k", start + b"\x00rest", (), features=features)
    members = encode_sample(sample)
    assert list(members) == ["json", suffix, "a_1.npy", "sam.npy"]
    back = decode_sample(members)
    assert back == sample and back.features.keys() == features.keys()
    for name, array in features.items():
        assert back.features[name].dtype == np.float16 and np.array_equal(back.features[name], array)


def test_webdataset_and_tar_read_them(shards: Path) -> None:
    source = open_shards(shards)
    paths = [str(shards / shard.file) for shard in source.shards]
    assert [shard.samples for shard in source.shards] == [6] * 7 + [5]
    read = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == [f"{position:09d}" for position in range(SAMPLES)]
    for i, sample in enumerate(read):
        members = {suffix: content for suffix, content in sample.items() if not suffix.startswith("__")}
        assert decode_sample(members) == source.sample(i, np.random.default_rng())
    with tarfile.open(paths[1]) as tar:
        assert tar.getnames()[0] == "000000006.json"
        assert json.load(tar.extractfile("000000006.json"))["key"] == source.key(6)


def test_regions_are_drawn_on_reading_not_on_writing(root: Path, tmp_path: Path) -> None:
    points = {"prompts": {"mask": 0, "point": 1}, "mixture": [{"source": "refcoco_captions"}]}
    make_shards(config_of(root, **points), tmp_path / "shards", 4)
    source = open_shards(tmp_path / "shards")
    stored = [area_px(rle) for i in range(4) for rle in source.sample(i, np.random.default_rng()).prompts.values()]
    assert min(stored) > 1
    mixture = Mixture([source], [1.0], 0, PromptConfig(mask=0, point=1))
    assert {area_px(rle) for i in range(8) for rle in mixture.sample(i).prompts.values()} == {1}


def test_the_same_bytes_for_any_number_of_workers(root: Path, shards: Path, tmp_path: Path) -> None:
    make_shards(config_of(root), tmp_path / "shards", SAMPLES, PER_SHARD, workers=3)
    assert contents(tmp_path / "shards") == contents(shards)
    moved = shutil.copytree(root, tmp_path / "moved")
    make_shards(config_of(moved), tmp_path / "again", SAMPLES, PER_SHARD)
    assert contents(tmp_path / "again") == contents(shards)


def test_only_missing_shards_are_made(root: Path, shards: Path, copy: Path) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}

    before = times()
    (copy / "shards.json").rename(copy / "shards.unfinished.json")  # a kill left this, with
    (copy / "000002.index.json").unlink()  # a tar without its index,
    (copy / "000004.tar").unlink()  # none at all,
    (copy / "000005.tar").write_bytes(b"short")  # one that a full disk cut,
    (copy / "000006.tar.partial").write_bytes(b"half")  # and a tar that was being written
    (copy / "000006.index.json").unlink()
    (copy / "000006.tar").unlink()
    make_shards(config_of(root), copy, SAMPLES, PER_SHARD)
    assert contents(copy) == contents(shards)
    again = {name for name, time in times().items() if time != before[name]}
    assert again == {"shards.json"} | {f"00000{n}.{end}" for n in (2, 4, 5, 6) for end in ("tar", "index.json")}


def test_other_requests_and_other_folders_are_refused(root: Path, shards: Path, copy: Path, tmp_path: Path) -> None:
    before = contents(copy)
    for config, samples, message in (
        (config_of(root), SAMPLES + 1, "samples was 47, is 48"),
        (config_of(root, expressions_per_image=3), SAMPLES, "data.expressions_per_image was 2, is 3"),
        (
            config_of(write_refer_dataset(tmp_path / "other", train=4), mixture=[{"source": "refcoco"}]),
            47,
            "sources was ",
        ),
    ):
        with pytest.raises(ConfigError, match=f"holds shards of another request: .*{message}"):
            make_shards(config, copy, samples, PER_SHARD)
    assert contents(copy) == before
    with pytest.raises(ConfigError, match="exists and is not a folder of shards"):
        make_shards(config_of(root), tmp_path, SAMPLES)
    with pytest.raises(ConfigError, match="each must be >= 1"):
        make_shards(config_of(root), tmp_path / "none", 0)


def test_unusable_samples_are_left_out_and_listed(root: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(root, tmp_path / "broken")
    edit_refs(broken, lambda refs: refs.append({**refs[0], "ref_id": 999, "image_id": 999}))
    image = next((broken / "images" / "train2014").glob("*10.png"))
    image.unlink()
    mixture = open_mixture(config_of(broken))
    bad = [i for i in range(SAMPLES) if mixture.annotated(i).image == image]
    assert len(bad) > 2
    index = make_shards(config_of(broken), tmp_path / "shards", SAMPLES, PER_SHARD, workers=2)
    assert index["samples"] == SAMPLES - len(bad) == sum(index["samples_per_source"])
    on_reading = [problem for source in mixture.sources for problem in source.problems]
    assert len(on_reading) == 2 and index["problems"][:2] == on_reading
    assert [problem.split(":")[0] for problem in index["problems"][2:]] == [mixture.key(i) for i in bad]
    source = open_shards(tmp_path / "shards")
    assert source.problems == index["problems"] and str(image) in source.problems[2]
    good = [with_bytes(mixture.annotated(i)) for i in range(SAMPLES) if i not in bad]
    assert [source.sample(i, np.random.default_rng()) for i in range(len(source))] == good
    with pytest.raises(DatasetError, match="3 unusable samples, more than data.max_bad_samples=2:\n  .*image=10"):
        make_shards(config_of(broken, max_bad_samples=2), tmp_path / "few", SAMPLES, 1)


def test_samples_without_a_pixel_are_listed_and_not_counted(root: Path, tmp_path: Path, monkeypatch) -> None:
    drawn = Mixture.annotated

    def annotated(self: Mixture, position: int) -> Sample:
        if position < 4:
            raise NoPixels(f"{self.key(position)}: no pixel")
        sample = drawn(self, position)
        return replace(sample, dropped_turns=2) if position == 4 else sample

    monkeypatch.setattr(Mixture, "annotated", annotated)
    config = config_of(root, max_bad_samples=0)
    index = make_shards(config, tmp_path / "shards", 8, 8)
    assert index["samples"] == 4 and sum(problem.endswith(": no pixel") for problem in index["problems"]) == 4
    assert [open_shards(tmp_path / "shards").sample(i, np.random.default_rng()).dropped_turns for i in range(2)] == [
        2,
        0,
    ]


@pytest.mark.parametrize("sizes", [[5], [3, 0, 4], [7] * 30, list(range(1, 40))], ids=len)
def test_an_epoch_is_a_permutation_that_reads_few_shards_at_a_time(sizes: list[int]) -> None:
    order = ShardOrder(sizes, (1, 0, 0, 5))
    total, shard_of = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    places = [order[place] for place in range(total)]
    assert sorted(places) == list(range(total))
    shuffled = np.random.default_rng(0).permutation(total)
    fresh = ShardOrder(sizes, (1, 0, 0, 5))
    assert [fresh[place] for place in shuffled] == [places[place] for place in shuffled]
    # Every shard is opened, read to its end and not come back to; at most GROUP of them at a time.
    read = shard_of[places]
    spans = [np.flatnonzero(read == shard)[[0, -1]] for shard in np.unique(read)]
    assert max(sum(first <= place <= last for first, last in spans) for place in range(total)) <= GROUP
    if len(sizes) > 1:
        assert places != [ShardOrder(sizes, (1, 0, 1, 5))[place] for place in range(total)]
    if len(sizes) > GROUP:
        # Shuffled: the samples that follow each other are of different shards more often than not.
        assert (read[1:] != read[:-1]).mean() > 0.5


def test_epochs_of_a_mixture_of_shards_and_others(shards: Path) -> None:
    mixture = Mixture([open_shards(shards), FakeSource("a", 10)], [0.75, 0.25], seed=1)
    drawn = [mixture.locate(position) for position in range(1000)]
    assert sum(number == 0 for number, _, _ in drawn) == 750
    epochs = [[index for number, index, e in drawn if (number, e) == (0, epoch)] for epoch in range(750 // SAMPLES)]
    assert all(sorted(epoch) == list(range(SAMPLES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert mixture.key(0) == mixture.sample(0).key.split(":")[0]


def test_the_fingerprint_sees_other_contents_under_the_same_keys(root: Path, shards: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root, tmp_path / "other")
    image = next((other / "images" / "train2014").glob("*10.png"))
    image.write_bytes(image.read_bytes() + b"\x00")
    make_shards(config_of(other), tmp_path / "shards", SAMPLES, PER_SHARD)
    mixtures = [Mixture([open_shards(folder)], [1.0], 0) for folder in (shards, tmp_path / "shards")]
    assert [mixtures[0].key(i) for i in range(SAMPLES)] == [mixtures[1].key(i) for i in range(SAMPLES)]
    assert mixtures[0].fingerprint() != mixtures[1].fingerprint()
    assert mixtures[0].fingerprint() == Mixture([open_shards(shards)], [1.0], 9).fingerprint()


def test_what_is_missing_or_cut_is_named_on_opening(root: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no file .*/none/shards.json; make it with tools/make_shards.py"):
        open_shards(tmp_path / "none")
    tar = copy / "000003.tar"
    size = tar.stat().st_size
    with tar.open("rb+") as file:
        file.truncate(size - 1)
    (copy / "000005.tar").unlink()
    (copy / "000006.index.json").unlink()
    with pytest.raises(DatasetError) as caught:
        open_shards(copy)
    for part in (str(copy), f"000003.tar has {size - 1} bytes instead of {size}", "000005.tar is missing"):
        assert part in str(caught.value)
    assert "000006.index.json is missing" in str(caught.value) and "000004" not in str(caught.value)
    index = copy / "shards.json"
    for text, message in (("{", "not valid JSON"), ('{"version": 0}', "has version 0, not 1")):
        index.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_shards(copy)
    index.rename(copy / "shards.unfinished.json")
    with pytest.raises(DatasetError, match="some shards are not made yet: repeat the command"):
        open_shards(copy)


def test_texts_that_are_not_hidden_are_not_taken_for_hidden_ones(root: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="made with data.hide=none and the config says data.hide=text"):
        open_shards(shards, hide="text")
    open_shards(shards, hide="image")  # the encoder's work
    with pytest.raises(ConfigError, match="'shards' has only the split 'train'"):
        open_source(MixtureEntry(source="shards", split="val", root=shards), config_of(root).data)


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_damaged_member_is_one_bad_sample(shards: Path, copy: Path, suffix: str) -> None:
    entries = json.loads((copy / "000001.index.json").read_text())["samples"]
    place = next(i for i, entry in enumerate(entries) if suffix in entry["members"])
    offset, size, _ = entries[place]["members"][suffix]
    with (copy / "000001.tar").open("rb+") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([byte[0] ^ 1]))
    source, rng = open_shards(copy), np.random.default_rng()
    with pytest.raises(BadSample, match=rf"000001.tar: {entries[place]['name']}.{suffix} is damaged: .*CRC-32"):
        source.sample(PER_SHARD + place, rng)
    whole = [i for i in range(SAMPLES) if i != PER_SHARD + place]
    assert [source.sample(i, rng) for i in whole] == [open_shards(shards).sample(i, rng) for i in whole]
    problems = verify_shards(copy)
    assert len(problems) == 1 and f"{entries[place]['name']}.{suffix} is damaged" in problems[0]
    assert entries[place]["key"] in problems[0]


def test_what_goes_wrong_while_reading_is_named(copy: Path) -> None:
    source, rng = open_shards(copy), np.random.default_rng()
    (copy / "000000.tar").unlink()
    with pytest.raises(BadSample, match="000000.tar: cannot read sample 000000003: no file"):
        source.sample(3, rng)
    with (copy / "000001.tar").open("rb+") as file:
        file.truncate(600)
    with pytest.raises(BadSample, match=r"000001.tar: 000000007\.json is cut short: 0 of \d+ bytes"):
        source.sample(7, rng)
    (copy / "000002.index.json").write_text("{}")
    with pytest.raises(DatasetError, match="000002.index.json has changed since it was written"):
        source.sample(2 * PER_SHARD, rng)


def test_verify_names_what_is_wrong_and_repeating_mends_it(root: Path, shards: Path, copy: Path) -> None:
    assert verify_shards(copy) == []
    with (copy / "000001.tar").open("rb+") as file:
        file.write(b"x")  # a header: no sample is concerned
    (copy / "000002.tar").unlink()
    index = (copy / "000003.index.json").read_bytes()
    (copy / "000003.index.json").write_bytes(index.replace(b"crc", b"CRC").replace(b"refcoco", b"refCOCO"))
    problems = verify_shards(copy)
    assert len(problems) == 3
    assert problems[0].startswith("000001.tar has changed since it was written")
    assert problems[1] == "000002.tar is missing"
    assert "000003.index.json has changed since it was written" in problems[2]
    (copy / "000001.tar").unlink()
    (copy / "000003.index.json").unlink()
    make_shards(config_of(root), copy, SAMPLES, PER_SHARD)
    assert contents(copy) == contents(shards) and verify_shards(copy) == []
