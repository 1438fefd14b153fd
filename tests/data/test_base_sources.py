"""What a base is made of: captioned images in tars, plain text, from anywhere; who reads what; what cannot be read."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from base_files import PAIRS, TARS, lines, picture, write_pairs, write_tar
from conftest import write_refer_dataset
from PIL import Image

from pixel_sail.architecture import Architecture
from pixel_sail.config import Config, ConfigError, DataConfig, MixtureEntry, build_config
from pixel_sail.data.deal import Costs
from pixel_sail.data.encode import Encoder
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.loader import StepDataset, load_steps
from pixel_sail.data.mixture import Mixture, exclusion_lines, open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.data.shards import decode_sample, encode_sample
from pixel_sail.data.sources import open_source, plain_text
from pixel_sail.data.sources.anywhere import SUFFIX, expanded
from pixel_sail.data.sources.sizes import write_sizes
from pixel_sail.data.templates import CAPTION
from pixel_sail.tokens import add_special_tokens
from pixel_sail.types import IGNORE_LABEL, BadSample, Sample, Turn
from pixel_sail.weights.convert.scratch import train_tokenizer

RNG = np.random.default_rng(0)


def new_encoder(max_length: int = 512) -> Encoder:
    tokenizer = train_tokenizer(["the red mug and the blue chair"] * 3, 300)
    add_special_tokens(tokenizer)
    return Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research", max_length)


def entry_of(**values) -> MixtureEntry:
    return MixtureEntry.model_validate(values)


def open_files(root: Path, source: str = "image_text", **values):
    entry = entry_of(source=source, **values)
    return open_source(entry, DataConfig(root=root, mixture=[entry]))


def all_samples(source) -> list[Sample]:
    return [source.sample(index, np.random.default_rng(index)) for index in range(len(source))]


@pytest.fixture(params=["kept", "not kept"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    folder = tmp_path / "cache" if request.param == "kept" else ""
    monkeypatch.setenv("PIXEL_SAIL_CACHE", str(folder))
    return folder or None


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIXEL_SAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- images with captions -------------------------------------------------------------------------------------------


def test_a_caption_is_the_answer_to_a_short_request(cache: Path | None, tmp_path: Path) -> None:
    captions = write_pairs(tmp_path / "image_text/train")
    source = open_files(tmp_path)
    samples = all_samples(source)
    assert [sample.turns[0].answer for sample in samples] == captions
    assert {sample.turns[0].question for sample in samples} == set(CAPTION)
    for index, sample in enumerate(samples):
        assert Image.open(io.BytesIO(sample.image)).getpixel((0, 0))[0] == pytest.approx(12 * index, abs=5)
        assert sample.key == source.key(index) == f"image_text/{index // PAIRS:05d}.tar/{index % PAIRS}"
        assert source.image(index) == sample.image and sample.image.startswith(source.image_head(index))
    long = open_files(tmp_path, key="re_caption")
    assert [sample.turns[0].answer for sample in all_samples(long)] == [f"long {n}" for n in range(TARS * PAIRS)]


def test_only_the_caption_is_learned() -> None:
    encoder = new_encoder()
    sample = Sample("k", picture(1), (Turn("Describe this image.", "a red mug"),))
    encoded = encoder.encode(sample)
    learned = encoded.input_ids[encoded.labels != IGNORE_LABEL].tolist()
    assert learned == encoder.text_ids(encoder.chat.answer("a red mug")) + encoder.end_ids
    assert encoded.labels[encoded.labels != IGNORE_LABEL].tolist() == learned


def test_what_cannot_be_learned_is_a_bad_sample_by_name(tmp_path: Path) -> None:
    good = [("a.jpg", picture(1)), ("a.txt", b"fine")]
    cases = {
        "no image": ([("b.txt", b"x")], r"image_text/0.tar/1: it has no image \(jpg, jpeg, png, webp\)"),
        "no caption": ([("b.jpg", picture(1))], "0.tar/1: it has no caption: neither .txt nor .json"),
        "empty": ([("b.jpg", picture(1)), ("b.txt", b" \n")], "0.tar/1: its caption is empty"),
        "latin": ([("b.jpg", picture(1)), ("b.txt", b"caf\xe9")], "0.tar/1: its .txt is not UTF-8"),
        "token": ([("b.jpg", picture(1)), ("b.txt", b"see [SEG]")], r"0.tar/1: the text contains \[SEG\]"),
        "json": ([("b.jpg", picture(1)), ("b.json", b"{")], "0.tar/1: its .json is not valid"),
        "null": ([("b.jpg", picture(1)), ("b.json", b'{"caption": null}')], "0.tar/1: its 'caption' is None"),
    }
    for name, (members, message) in cases.items():
        write_tar(tmp_path / name / "0.tar", good + members)
        source = open_files(tmp_path, files=f"{name}/0.tar")
        assert len(source) == 2 and source.sample(0, RNG).turns[0].answer == "fine"
        with pytest.raises(BadSample, match=message):
            source.sample(1, RNG)
        if name == "no image":
            with pytest.raises(BadSample, match=message):
                source.image_head(1)


def test_a_damaged_tar_stops_the_opening(kept: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "image_text/train", 1)
    path = tmp_path / "image_text/train/00000.tar"
    whole = path.read_bytes()
    middle = 3 * 1024  # in the header of the fourth member or in one of its bytes: some header is no header
    for damage in (
        whole[:2000],
        whole[:middle] + b"x" * 2048 + whole[middle + 2048 :],
        gzip.compress(whole),
        b"",
        b"x" * 9999,
    ):
        path.write_bytes(damage)
        with pytest.raises(DatasetError, match=r"00000.tar( is no whole tar without compression| can be used)"):
            open_files(tmp_path)
    assert not list(kept.glob(f"*{SUFFIX}")) or damage  # nothing of a damaged file is used
    path.write_bytes(whole)
    assert len(open_files(tmp_path)) == PAIRS


# --- plain text -----------------------------------------------------------------------------------------------------


def test_plain_text_from_each_kind_of_file(cache: Path | None, tmp_path: Path) -> None:
    folder = tmp_path / "text/train"
    folder.mkdir(parents=True)
    (folder / "0.jsonl").write_bytes(lines("One.", "Hör zu: größer als 漢?") + b"\n")
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(lines("Three\nlines\n", "Four.")))
    (folder / "notes.md").write_text("no data")
    source = open_files(tmp_path, "text")
    texts = ["One.", "Hör zu: größer als 漢?", "Three\nlines\n", "Four."]
    assert [sample.text for sample in all_samples(source)] == texts
    assert all(sample.turns == () and sample.image is None for sample in all_samples(source))
    assert source.key(3) == "text/1.jsonl.gz/1" and source.image(0) is None and source.image_head(0) is None
    (folder / "empty").write_bytes(b"\n")
    with pytest.raises(DatasetError, match="nothing of .*empty can be used: it has no sample"):
        open_files(tmp_path, "text", files="text/train/empty")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "text/train").mkdir(parents=True)
    texts = [f"text {n}" for n in range(2500)] + [None]
    parquet.write_table(pyarrow.table({"content": texts}), tmp_path / "text/train/0.parquet")
    source = open_files(tmp_path, "text", key="content")
    assert [source.sample(n, RNG).text for n in range(2500)] == texts[:2500]
    with pytest.raises(BadSample, match="text/0.parquet/2500: row 2500: its 'content' is a NoneType; expected a text"):
        source.sample(2500, RNG)
    with pytest.raises(DatasetError, match="0.parquet' has no column 'text'; it has content. Give `key`"):
        open_files(tmp_path, "text")


def test_a_long_text_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc漢\n"), rng.integers(1, 9))) for _ in range(9000)]
    for text in (" ".join(words), "x" * 20_001, "y" * plain_text.PIECE_CHARACTERS, " a"):
        cut = list(plain_text.pieces(text))
        assert "".join(cut) == text and max(map(len, cut)) <= plain_text.PIECE_CHARACTERS
        assert len(cut) == 1 or min(map(len, cut[:-1])) >= plain_text.PIECE_CHARACTERS // 2
    assert all(piece[-1] in " \n" for piece in list(plain_text.pieces(" ".join(words)))[:-1])
    (tmp_path / "text/train").mkdir(parents=True)
    (tmp_path / "text/train/0.jsonl").write_bytes(lines(" ".join(words)))
    assert "".join(sample.text for sample in all_samples(open_files(tmp_path, "text"))) == " ".join(words)


def test_a_line_without_a_text_is_a_bad_sample_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "text/train").mkdir(parents=True)
    wrong = [
        b"{",
        b"[1]",
        b'{"other": "x"}',
        b'{"text": 5}',
        b'{"text": " "}',
        b'{"text": "\\ud83d"}',
        b'{"text": "[SEG]"}',
    ]
    (tmp_path / "text/train/0.jsonl").write_bytes(b"\n".join([*wrong, lines("good").strip()]))
    source = open_files(tmp_path, "text")
    assert len(source) == len(wrong) + 1 and source.sample(len(wrong), RNG).text == "good"
    messages = ["it is not valid JSON", "it has no 'text'", "it has no 'text'", "its 'text' is a int", "is empty"]
    for index, message in enumerate([*messages, "half a character", r"contains \[SEG\]"]):
        with pytest.raises(BadSample, match=rf"text/0.jsonl/{index}: .*{message}"):
            source.sample(index, RNG)


def test_a_file_that_is_not_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "text/train").mkdir(parents=True)
    path = tmp_path / "text/train/0.jsonl"
    for content, message in (
        (gzip.compress(lines("a" * 999))[:40], "is damaged, or not whole"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "is compressed by zstd: unpack it, or give pipe:zstd -dc FILE"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"0.jsonl' {message}"):
            open_files(tmp_path, "text")


def test_every_token_of_a_text_is_learned_but_the_first() -> None:
    encoder = new_encoder()
    text = "the red mug and the blue chair"
    encoded = encoder.encode(Sample("k", None, (), text=text), seed=3)
    ids = encoder.tokenizer(text)["input_ids"]
    assert encoded.input_ids.tolist() == ids and encoded.labels.tolist() == [IGNORE_LABEL, *ids[1:]]
    assert encoded.position_ids.tolist() == [list(range(len(ids)))] * 3 and encoded.dropped_turns == 0
    answer = encoder.encode(Sample("q", None, (Turn("what?", "a mug"),)))
    batch = pack([encoded, answer, encoded], encoder.tokens.seg, encoder.tokens.vision_patch)
    # what predicts a label is always the token before it, of the same text
    assert batch.input_ids[batch.predict_index + 1].tolist() == batch.labels.tolist()
    starts = {span[0] for span in batch.spans}
    assert not starts & set((batch.predict_index + 1).tolist())
    # a text answers nothing: presence is learned from the one answer
    assert len(batch.asked_index) == 1 and batch.counts()["answer"] == 1
    short = new_encoder(max_length=4)
    cut = short.encode(Sample("k", None, (), text=text))
    assert cut.input_ids.tolist() == ids[:4] and cut.dropped_turns == 1
    with pytest.raises(BadSample, match="k: a text of 1 tokens"):
        encoder.encode(Sample("k", None, (), text="a"))
    with pytest.raises(BadSample, match="k: the text contains <vision>"):
        encoder.encode(Sample("k", None, (), text="a <vision> b"))
    assert torch.equal(encoded.labels[1:], encoded.input_ids[1:])


def test_a_text_survives_shards() -> None:
    sample = Sample("k", None, (), text="größer")
    assert decode_sample(encode_sample(sample)) == sample
    assert b'"text"' not in encode_sample(replace(sample, text="", turns=(Turn("q", "a"),)))["json"]


# --- anywhere -------------------------------------------------------------------------------------------------------


def test_patterns(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a")
    names = [str(tmp_path / f"a/{n:05d}.tar") for n in range(TARS)]
    assert expanded("a/{00000..00002}.tar", tmp_path) == names == expanded("a/*.tar", tmp_path)
    assert expanded("a/00002.tar::pipe:cat {b,c}.tar", tmp_path) == [names[2], "pipe:cat b.tar", "pipe:cat c.tar"]
    for pattern, message in (("b/*.tar", "names no file in"), ("a/*.tar::a/00000.tar", "names a file twice")):
        with pytest.raises(DatasetError, match=message):
            expanded(pattern, tmp_path)
    with pytest.raises(DatasetError, match="no file .*00003.tar"):
        open_files(tmp_path, files="a/{00000..00003}.tar")
    with pytest.raises(DatasetError, match="no folder .*image_text/train; give `files`, or put them there"):
        open_files(tmp_path)


def test_files_behind_a_command_are_fetched_once_and_read_as_local_ones(kept: Path, tmp_path: Path) -> None:
    captions = write_pairs(tmp_path / "a")
    pipe = f"pipe:echo x >> {tmp_path}/fetched; cat {tmp_path}/a/{{00000..00002}}.tar"
    with pytest.raises(ConfigError, match=r"Count them once: tools/prepare_data.py count image_text FILES --out sizes"):
        open_files(tmp_path, files=pipe)
    sizes = write_sizes("image_text", pipe, None, tmp_path / "sizes.json")
    assert sizes == {f"{n:05d}.tar": PAIRS for n in range(TARS)} == json.loads((tmp_path / "sizes.json").read_text())
    source = open_files(tmp_path, files=pipe, sizes=tmp_path / "sizes.json")
    local = open_files(tmp_path, files="a/*.tar")
    assert [sample.turns[0].answer for sample in all_samples(source)] == captions
    assert [replace(s, key="") for s in all_samples(source)] == [replace(s, key="") for s in all_samples(local)]
    assert source.digest() == local.digest()
    assert all_samples(open_files(tmp_path, files=pipe, sizes=tmp_path / "sizes.json")) == all_samples(source)
    assert (tmp_path / "fetched").read_text() == "x\n" * TARS
    texts = tmp_path / "0.jsonl"
    texts.write_bytes(lines("one", "two"))
    (tmp_path / "text.json").write_text('{"0.jsonl": 2}')
    source = open_files(tmp_path, "text", files=f"pipe:gzip -c {texts}", sizes=tmp_path / "text.json")
    assert [sample.text for sample in all_samples(source)] == ["one", "two"]


def test_the_oldest_fetched_files_go_and_come_back(kept: Path, tmp_path: Path) -> None:
    captions = write_pairs(tmp_path / "a")
    (tmp_path / "sizes.json").write_text(json.dumps({f"{n:05d}.tar": PAIRS for n in range(TARS)}))
    entry = entry_of(
        source="image_text", files=f"pipe:cat {tmp_path}/a/{{00000..00002}}.tar", sizes=tmp_path / "sizes.json"
    )
    room = 1.5 * (tmp_path / "a/00000.tar").stat().st_size / 1e9
    for _ in range(2):  # the second finds one of the three
        source = open_source(entry, DataConfig(root=tmp_path, mixture=[entry], file_cache_gb=room))
        assert [sample.turns[0].answer for sample in all_samples(source)] == captions
        assert len(list(kept.glob(f"*{SUFFIX}"))) == 1
    damaged = next(kept.glob(f"*{SUFFIX}"))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    left = damaged.with_suffix(".1.partial")  # by a killed process
    left.write_bytes(b"half")
    source = open_source(entry, DataConfig(root=tmp_path, mixture=[entry], file_cache_gb=room))
    assert [sample.turns[0].answer for sample in all_samples(source)] == captions and not left.exists()


def test_a_file_that_cannot_be_fetched_is_so_many_bad_samples(kept: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", 1)
    tar = tmp_path / "a/00000.tar"
    cases = {
        "pipe:echo x >> TRIED; cat /nowhere/00000.tar 2>/dev/null": "cannot be fetched",
        f"pipe:cat {tar}; exit 3 # 00000.tar": "cannot be fetched",
        "pipe:true 00000.tar": "gives nothing",
        "s3://bucket/00000.tar": r"cannot be fetched \(write pipe:aws s3 cp s3://BUCKET/NAME.tar -\)",
        f"pipe:head -c 2000 {tar}": "is no whole tar",
        f"pipe:cat {tar}": "the file has 7 samples, and 9 were counted",
    }
    (tmp_path / "sizes.json").write_text('{"00000.tar": 9}')
    for files, message in cases.items():
        files = files.replace("TRIED", str(tmp_path / "tried"))
        source = open_files(tmp_path, files=files, sizes=tmp_path / "sizes.json")
        for index in (7, 8):
            with pytest.raises(BadSample, match=f"image_text/00000.tar/{index}: .*{message}"):
                source.sample(index, RNG)
    assert (tmp_path / "tried").read_text() == "x\n"  # not for each of its samples
    (tmp_path / "sizes.json").write_text('{"00000.tar": 5}')
    with pytest.raises(DatasetError, match="00000.tar has 7 samples, and 5 were counted: count again"):
        open_files(tmp_path, files="a/*.tar", sizes=tmp_path / "sizes.json").sample(0, RNG)
    (tmp_path / "sizes.json").write_text('{"00001.tar": 5}')
    with pytest.raises(DatasetError, match="sizes.json does not say how many samples '00000.tar' has"):
        open_files(tmp_path, files="a/*.tar", sizes=tmp_path / "sizes.json")


def test_keys_are_for_their_sources() -> None:
    for source, values in (("refcoco", {"files": "x"}), ("hf", {"sizes": "x"}), ("llava", {"key": "x"})):
        name = next(iter(values))
        with pytest.raises(ValueError, match=f"{name} is for source "):
            entry_of(source=source, **values)


# --- in one mixture -------------------------------------------------------------------------------------------------


def mixture_config(root: Path, **data) -> Config:
    mixture = [
        {"source": "image_text", "weight": 0.5},
        {"source": "text", "weight": 0.3},
        {"source": "refcoco", "weight": 0.2},
    ]
    values = {
        "run": {"dir": "unused", "seed": 5},
        "model": {"base": "unused"},
        "data": {"root": str(root), "mixture": mixture, "expressions_per_image": 2} | data,
        "train": {"steps": 1, "batch_size": 1},
    }
    return build_config(values, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_refer_dataset(tmp_path_factory.mktemp("base") / "root")
    write_pairs(root / "image_text/train", 2)
    (root / "text/train").mkdir(parents=True)
    (root / "text/train/0.jsonl").write_bytes(lines(*(f"this is text number {n}" for n in range(9)), 5))
    return root


def steps_of(root: Path, world: int, workers: int, start: int, stop: int) -> list[list]:
    """By step: what all ranks have."""
    encoder, config = new_encoder(), mixture_config(root)
    packed = partial(pack, seg_id=encoder.tokens.seg, patch_id=encoder.tokens.vision_patch)
    costs = Costs(lambda tokens, pairs: float(tokens), encoder.architecture, 512)
    ranks = []
    for rank in range(world):
        dataset = StepDataset(open_mixture(config), encoder.encode, packed, 12, 512, rank, world, costs)
        ranks.append(list(load_steps(dataset, start, stop, workers)))
    return [list(step) for step in zip(*ranks, strict=True)]


def taken(step: list) -> Counter:
    """The keys of a step, of all ranks together."""
    return Counter(
        [key for data in step for batch in data.batches for key in batch.keys]
        + [bad.key for data in step for bad in data.bad]
    )


@pytest.mark.parametrize(("world", "workers"), [(3, 0), (2, 2)])
def test_ranks_and_workers_share_each_sample_out_once(root: Path, world: int, workers: int) -> None:
    """More readers than files (two tars, one file of text), and a resumed run."""
    mixture = open_mixture(mixture_config(root))
    expected = [Counter(mixture.key(step * 12 + i) for i in range(12)) for step in range(4)]
    steps = steps_of(root, world, workers, 0, 4)
    assert [taken(step) for step in steps] == expected
    bad = [bad for step in steps for data in step for bad in data.bad]
    assert {record.message for record in bad} <= {"text/0.jsonl/9: line 10: its 'text' is a int; expected a text"}
    resumed = steps_of(root, 1, 0, 2, 4)
    assert [taken(step) for step in resumed] == expected[2:]


def test_an_epoch_has_every_sample_once(root: Path) -> None:
    mixture = open_mixture(mixture_config(root))
    positions = range(2000)
    for number, source in enumerate(mixture.sources[:2]):
        drawn = [mixture.locate(position)[1:] for position in positions if mixture.locate(position)[0] == number]
        for epoch in range(3):
            assert sorted(index for index, of_epoch in drawn if of_epoch == epoch) == list(range(len(source)))
        assert [index for index, epoch in drawn if epoch == 0] != [index for index, epoch in drawn if epoch == 1]
    counts = Counter(mixture.locate(position)[0] for position in positions)
    assert [counts[number] for number in range(3)] == [1000, 600, 400]


def test_other_files_are_another_fingerprint(root: Path, tmp_path: Path) -> None:
    prints = open_mixture(mixture_config(root)).fingerprint()
    assert [source["samples"] for source in prints] == [2 * PAIRS, 10, 3]
    write_pairs(tmp_path / "image_text/train", 2, PAIRS + 1)
    other = Mixture([open_files(tmp_path)], [1.0], 0).fingerprint()
    assert other[0]["keys"] != prints[0]["keys"]


def test_exclude_says_what_it_cannot_check(root: Path) -> None:
    config = mixture_config(root, exclude=["refcoco:val"])
    mixture = open_mixture(config, frozenset({"COCO 13"}))
    printed = "\n".join(exclusion_lines(config, mixture))
    assert (
        "image_text (train): NOT CHECKED: images in tars have no names" in printed and ": text (train)" not in printed
    )
