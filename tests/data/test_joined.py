"""`also` of a mixture entry: one conversation with the turns of several sources about the same image."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_fixtures import SIZE, assert_mask, box_mask, box_rle, draw_sample

from pixel_sail.config import DataConfig, build_config
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.exclude import RemainingSource, identities
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.mixture import open_mixture
from pixel_sail.data.sources import open_source
from pixel_sail.data.sources.joined import JoinedSource
from pixel_sail.types import BadSample, NoPixels, Sample, Turn

# of each mask and region, where its box is
MASKS = {"the mug": (0, 0), "beside <Prompt0>": (10, 0), "not <Prompt1>": (20, 0), "two": (5, 20)}


def line(image, *questions, **regions):
    """Each question that MASKS knows is answered by its mask, another in words."""
    turns = [{"question": q, "answer": "[SEG]" if q in MASKS else f"answer to {q}"} for q in questions]
    masks = [box_rle(*MASKS[q]) for q in questions if q in MASKS]
    drawn = {k.removeprefix("r"): box_rle(*place) for k, place in regions.items()}
    return {"image": image, "conversations": turns, "masks": masks, "regions": drawn}


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(tmp_path / f"{name}.png")
    files = {
        "train": [line("a.png", "the mug", "words"), line("b.png", "the mug"), line("c.png", "the mug")],
        "more": [
            line("c.png", "only of c"),
            line("a.png", "beside <Prompt0>", "what is <Prompt1>?", r0=(15, 15), r1=(25, 15)),
            line("a.png", "not <Prompt1>", "where is <Prompt4>?", r1=(15, 15), r4=(30, 15)),
        ],
    }
    for split, lines in files.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return tmp_path


def data_of(root, also=("more",), **entry):
    entries = [{"source": "jsonl", "split": split} for split in also]
    return DataConfig(root=root, mixture=[{"source": "jsonl", **entry, "also": entries}])


def opened(root, also=("more",), **entry):
    data = data_of(root, also, **entry)
    return open_source(data.mixture[0], data)


def test_turns_keep_their_masks_and_regions(root):
    source, orders = opened(root), set()
    assert len(source) == 3 and source.problems == []
    for seed in range(20):
        sample = draw_sample(source, 0, seed)
        assert sample.key == "train.jsonl:1 + more.jsonl:2 + more.jsonl:3" and sample.image == root / "a.png"
        masks = iter(sample.masks)
        asked = []
        for turn in sample.turns:
            # by what it is about, whatever its number is now
            places = {k: np.argwhere(decode_mask(sample.prompts[k]))[0][::-1].tolist() for k in sample.prompts}
            about = [place for k, place in places.items() if f"<Prompt{k}>" in turn.question]
            kind = turn.question.split(" <")[0]
            asked.append(kind)
            wanted = {"beside": [15, 15], "what is": [25, 15], "not": [15, 15], "where is": [30, 15]}
            assert about == ([wanted[kind]] if kind in wanted else [])
            if turn.answer == "[SEG]":
                (own,) = [place for question, place in MASKS.items() if question.split(" <")[0] == kind]
                assert_mask(next(masks), box_mask(*own))
            elif kind in wanted:  # the number of the answer follows that of the question
                assert turn.answer == f"answer to {turn.question}"
        assert sorted(asked) == ["beside", "not", "the mug", "what is", "where is", "words"]
        assert next(masks, None) is None and len(sample.prompts) == 3  # one region is of two turns
        orders.add(tuple(asked))
    assert len(orders) > 10


def test_an_image_of_which_the_others_know_nothing_stays_as_it_is(root):
    plain, joined = opened(root, also=()), opened(root)
    assert not isinstance(plain, JoinedSource)
    assert joined.sample(1, np.random.default_rng(0)) == plain.sample(1, np.random.default_rng(0))
    assert {turn.question for turn in joined.sample(2, np.random.default_rng(0)).turns} == {"only of c", "the mug"}


def test_the_others_are_part_of_the_fingerprint(root):
    def fingerprint(data):
        values = {"run": {"dir": "r"}, "model": {"base": "b"}, "train": {"steps": 1, "batch_size": 1}}
        return open_mixture(build_config({**values, "data": data.model_dump(mode="json")}, "here")).fingerprint()

    alone, joined = fingerprint(data_of(root, ())), fingerprint(data_of(root))
    assert alone[0]["samples"] == joined[0]["samples"] and alone != joined
    path = root / "more.jsonl"
    path.write_text("\n" + path.read_text())  # its lines have other numbers now
    assert fingerprint(data_of(root)) != joined


def test_excluded_images_stay_out_whatever_joins(root):
    """Also the second image of a sample that nothing joins."""
    path = root / "train.jsonl"
    pair = {"images": ["b.png", "c.png"], "conversations": [{"question": "same?", "answer": "Yes."}]}
    path.write_text(path.read_text() + json.dumps(pair) + "\n")
    more = root / "more.jsonl"
    more.write_text("".join(more.read_text().splitlines(keepends=True)[1:]))  # c.png is not in it
    remaining = RemainingSource(opened(root), identities([root / "c.png"]))
    assert [remaining.key(i).split(" + ")[0] for i in range(len(remaining))] == ["train.jsonl:1", "train.jsonl:2"]
    assert len(opened(root).sample(3, np.random.default_rng(0)).images) == 2


def test_a_text_alone_stays_alone(root):
    path = root / "train.jsonl"
    path.write_text(path.read_text() + json.dumps(line(None, "words")) + "\n")
    source = opened(root)
    assert source.key(3) == "train.jsonl:4" and source.image(3) is None
    assert source.sample(3, np.random.default_rng(0)) == opened(root, ()).sample(3, np.random.default_rng(0))
    more = root / "more.jsonl"
    more.write_text(json.dumps(line(None, "words")) + "\n" + more.read_text())
    assert opened(root).key(3) == "train.jsonl:4" and opened(root).key(2) == "train.jsonl:3 + more.jsonl:2"


def test_what_cannot_be_joined_is_refused(root):
    (root / "other.jsonl").write_text(json.dumps(line("other.png", "the mug")) + "\n")
    Image.new("RGB", SIZE[::-1]).save(root / "other.png")
    with pytest.raises(
        DatasetError, match=r"jsonl \(train\) has also: jsonl \(other\), but they share no image; .*a.png, .*other.png"
    ):
        opened(root, also=("other",))
    (root / "text.jsonl").write_text(json.dumps(line(None, "words")) + "\n")
    with pytest.raises(DatasetError, match=r"but they share no image; the first of the one is .*a.png, .* no image"):
        opened(root, also=("text",))
    pair = {"images": ["a.png", "b.png"], "conversations": [{"question": "same?", "answer": "Yes."}]}
    (root / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    with pytest.raises(BadSample, match=r"pairs.jsonl:1: it has several images, so it cannot be joined"):
        opened(root, also=("pairs",)).sample(0, np.random.default_rng(0))
    with pytest.raises(DatasetError, match=r"no file .*absent.jsonl"):
        opened(root, also=("absent",))
    for entry in (
        {"source": "shards", "also": [{"source": "refcoco"}]},
        {"source": "refcoco", "also": [{"source": "text"}]},
    ):
        with pytest.raises(ValueError, match=r"also joins questions about image files; '(shards|text)' has none"):
            DataConfig(root=root, mixture=[entry])
    in_memory = Fake("x", False)
    in_memory.image = lambda index: b"jpg"
    with pytest.raises(DatasetError, match="x cannot be joined with others by also: its images are not files"):
        JoinedSource(in_memory, [Fake("y", False)], ("x", "y"))


class Fake:
    """A source of one image, whose sample may have no pixels."""

    problems = ("one",)

    def __init__(self, name, empty):
        self.name, self.empty = name, empty

    def __len__(self):
        return 1

    def key(self, index):
        return self.name

    def image(self, index):
        return Path("a.png")

    def sample(self, index, rng):
        if self.empty:
            raise NoPixels(f"{self.name}: empty")
        return Sample(self.name, Path("a.png"), (Turn("Q", self.name),), dropped_turns=2)


def test_a_part_without_pixels_is_left_out_and_counted():
    rng = np.random.default_rng(0)
    for empty in ((False, True), (True, False)):
        source = JoinedSource(Fake("x", empty[0]), [Fake("y", empty[1])], ("x", "y"))
        sample = source.sample(0, rng)
        assert [turn.answer for turn in sample.turns] == ["y" if empty[0] else "x"]
        assert sample.dropped_turns == 3 and source.problems == ["one", "one"]
    with pytest.raises(NoPixels, match="x: empty"):
        JoinedSource(Fake("x", True), [Fake("y", True)], ("x", "y")).sample(0, rng)


def test_coco_images_of_other_years_are_the_same(tmp_path):
    class Named(Fake):
        def image(self, index):
            return Path(f"{self.name}000000000007.jpg")

    source = JoinedSource(Named("train2014/COCO_train2014_", False), [Named("train2017/", False)], ("x", "y"))
    sample = source.sample(0, np.random.default_rng(0))
    assert sample.key == "train2014/COCO_train2014_ + train2017/" and len(sample.turns) == 2


def test_an_empty_list_says_what_none_says(root):
    assert data_of(root, also=()) == DataConfig(root=root, mixture=[{"source": "jsonl"}])
