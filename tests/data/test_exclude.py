"""data.exclude: images that benchmarks score never enter training, under any name, and everybody is told."""

import json
import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, edit_refs, write_refer_dataset

from pixel_sail import scenes
from pixel_sail.config import ConfigError, DataConfig, MixtureEntry, build_config
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.exclude import image_identity
from pixel_sail.data.mixture import BLOCK, exclusion_lines, open_mixture
from pixel_sail.data.shards import open_shards
from pixel_sail.data.sources import RECORDS, open_source
from pixel_sail.data.write_shards import make_shards
from pixel_sail.evaluate.held_out import held_out_images

SHARED = 11  # the training image that a sentence of the split val is about, too


@pytest.fixture
def root(tmp_path):
    """RefCOCO whose splits share an image; and the same image under its name of 2017 in a source of another root."""
    root = write_refer_dataset(tmp_path / "root", train=3, val=2)

    def share(refs):
        next(ref for ref in refs if ref["image_id"] == SHARED)["split"] = "val"

    edit_refs(root, share)
    (root / "mine/images").mkdir(parents=True)
    lines = []
    for image_id in (10, SHARED, 99):
        name = f"{image_id:012d}.png"
        (root / "mine/images" / name).write_bytes(next((root / "images/train2014").glob("*.png")).read_bytes())
        lines.append({"image": name, "conversations": [{"question": "What?", "answer": "Boxes."}]})
    lines.append({"image": None, "conversations": [{"question": "Who?", "answer": "Me."}]})
    (root / "mine/train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def config_of(root, *exclude, mixture=None):
    sources = [{"source": "refcoco"}, {"source": "jsonl", "root": str(root / "mine")}]
    values = {
        "run": {"dir": "unused"},
        "model": {"base": "unused"},
        "data": {"root": str(root), "mixture": mixture or sources, "exclude": list(exclude)},
        "train": {"steps": 1, "batch_size": 1},
    }
    return build_config(values, "test")


def opened(config):
    return open_mixture(config, held_out_images(config))


def test_an_image_has_one_identity_under_all_its_names():
    same = ["COCO_train2014_000000123456.jpg", "000000123456.jpg", "COCO_val2014_000000123456.png"]
    assert {image_identity(Path("/data") / folder / name) for folder in "ab" for name in same} == {"COCO 123456"}
    others = ["/a/1.jpg", "/b/1.jpg", "/a/scenes_000000123456.jpg", "/a/0000000123456.jpg", "/a/000000123457.jpg"]
    assert len({image_identity(Path(name)) for name in others}) == len(others)


def test_a_linked_folder_is_the_same_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert image_identity(tmp_path / "link/a.jpg") == image_identity(tmp_path / "images/a.jpg")


def test_held_out_images_are_never_drawn(root):
    free, mixture = opened(config_of(root)), opened(config_of(root, "refcoco:val"))
    assert [len(source) for source in free.sources] == [3, 4]
    assert [len(source) for source in mixture.sources] == [2, 3]  # the length is that of what remains
    drawn = Counter(mixture.key(position) for position in range(BLOCK))
    assert {key for key in drawn if "image=" in key} == {"refcoco/train/image=10", "refcoco/train/image=12"}
    assert {key for key in drawn if "jsonl" in key} == {f"train.jsonl:{line}" for line in (1, 3, 4)}
    assert sum(drawn[key] for key in drawn if "image=" in key) == BLOCK // 2  # the shares stay
    assert {image_identity(sample.image) for sample in map(mixture.annotated, range(200)) if sample.image} == {
        "COCO 10",
        "COCO 12",
        "COCO 99",
    }
    assert any("image=11" in free.key(position) for position in range(BLOCK))
    assert mixture.fingerprint() != free.fingerprint()


def test_every_image_of_several_counts(root):
    """Of a sample in training, and of a question that is scored."""
    with (root / "mine/train.jsonl").open("a") as file:
        talk = [{"question": "Same?", "answer": "No."}]
        file.write("\n" + json.dumps({"images": ["000000000010.png", f"{SHARED:012d}.png"], "conversations": talk}))
    assert [len(source) for source in opened(config_of(root)).sources] == [3, 5]
    assert [len(source) for source in opened(config_of(root, "refcoco:val")).sources] == [2, 3]
    pair = {
        "images": ["000000000010.png", "000000000099.png"],
        "conversations": [{"question": "There?", "answer": "[SEG]"}],
        "masks": [[[0, 0, 3, 0, 3, 3, 0, 3]]],
        "mask_images": [1],
    }
    (root / "mine/scored.jsonl").write_text(json.dumps(pair))
    assert held_out_images(config_of(root, "jsonl:mine/scored.jsonl")) == {"COCO 10", "COCO 99"}


def test_what_is_left_out_is_said(root, monkeypatch, capsys):
    config = config_of(root, "refcoco:val")
    assert exclusion_lines(config, opened(config)) == [
        "data.exclude: images of refcoco:val are left out of training",
        "data.exclude: refcoco (train): 1 of 3 samples are left out",
        "data.exclude: jsonl (train): 1 of 4 samples are left out",
    ]
    assert exclusion_lines(config_of(root), opened(config_of(root))) == []


def test_what_cannot_be_kept_out_is_refused(root):
    for name, message in (
        ("refcoco:valid", r"data.exclude: the images of refcoco:valid are not known: .* has no split 'valid'"),
        ("refcoko:val", r"data.exclude: the images of refcoko:val are not known: unknown benchmark 'refcoko:val'"),
        ("refcocog:val", r"data.exclude: the images of refcocog:val are not known: no dataset refcocog"),
    ):
        with pytest.raises(ConfigError, match=message):
            held_out_images(config_of(root, name))
    with pytest.raises(ValueError, match="pass held_out"):  # nobody forgets it silently
        open_mixture(config_of(root, "refcoco:val"))
    config = config_of(root, "refcoco:val", mixture=[{"source": "refcoco", "split": "val"}])
    with pytest.raises(DatasetError, match=r"leaves nothing of refcoco \(val\): all 3 samples are of images of refcoc"):
        opened(config)


def test_shards_know_what_they_were_made_without(root, tmp_path):
    config, out = config_of(root, "refcoco:val"), tmp_path / "shards"
    index = make_shards(config, out, samples=40, held_out=held_out_images(config))
    assert "data.exclude: refcoco (train): 1 of 3 samples are left out" in index["excluded"]
    assert index["request"]["data"]["exclude"] == ["refcoco:val"]
    stored = open_shards(out, config.data)
    assert not [key for key in map(stored.key, range(40)) if "image=11" in key or key == "train.jsonl:2"]
    streamed = config_of(root, "refcoco:val", mixture=[{"source": "shards", "root": str(out)}])
    assert exclusion_lines(streamed, opened(streamed))[1].endswith("its shards were made without these images")
    for other in (config_of(root), config_of(root, "refcoco:val", "grefcoco:val")):
        with pytest.raises(
            ConfigError, match=r"was made with data.exclude=\[refcoco:val\] and the config says data.exc"
        ):
            open_shards(out, other.data)
    with pytest.raises(ConfigError, match=r"another request: data\.exclude was \[\"refcoco:val\"\], is null"):
        make_shards(config_of(root), out, samples=40)
    plain = make_shards(config_of(root), tmp_path / "plain", samples=4)
    assert "exclude" not in plain["request"]["data"] and "excluded" not in plain  # as before


def test_the_tools_say_it(root, tmp_path, monkeypatch, capsys):
    config = tmp_path / "some.yaml"
    config.write_text(
        f"""
run: {{dir: {tmp_path}/run}}
model: {{scratch: {{hidden_size: 32, layers: 1, heads: 2, kv_heads: 2, mlp_size: 32, vocab_size: 300}}}}
data:
  root: {root}
  mixture: [{{source: refcoco}}]
  exclude: [refcoco:val]
train: {{steps: 1, batch_size: 2}}
"""
    )
    for command in (["inspect_data.py"], ["make_shards.py", "--samples", "4", "--workers", "1"]):
        out = tmp_path / command[0]
        monkeypatch.setattr(sys, "argv", [command[0], str(config), "--out", str(out), *command[1:]])
        runpy.run_path(str(REPOSITORY / "tools" / command[0]), run_name="__main__")
        assert "data.exclude: refcoco (train): 1 of 3 samples are left out" in capsys.readouterr().out


def test_every_source_says_the_image_of_a_sample(tmp_path):
    """Else its images could not be kept out."""
    root = tmp_path / "drawn"
    scenes.generate(root, 15, 0, 96, workers=1)
    seen = set()
    for record in RECORDS:
        if record.files and record.files_of("train")[0].path(root, "train").exists():
            data = DataConfig(root=root, mixture=[MixtureEntry(source=record.name)])
            source = open_source(data.mixture[0], data)
            for index in range(len(source)):
                assert source.image(index) == source.sample(index, np.random.default_rng(0)).image, record.name
            seen.add(record.name)
    assert len(seen) > 20 and re.search("llava", " ".join(seen))
