"""Configs: strict, readable, reproducible."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import pytest
import yaml

from pixel_sail.config import ConfigError, build_config, load_config

SMALL = {
    "run": {"dir": "runs/x"},
    "model": {"scratch": {"hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_size": 128}},
    "data": {"root": "data/scenes", "mixture": [{"source": "refcoco"}]},
    "train": {"steps": 3, "batch_size": 4},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("model.scratch.hiden_size=3", "did you mean 'model.scratch.hidden_size'?"),
        ("trian.lr=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.lr=fast", "train.lr: Input should be a valid number"),
        ("train.zero_stage=4", "train.zero_stage: Input should be 0, 1, 2 or 3, got 4"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1"),
        ("train.lr", "override 'train.lr': write key.sub=value"),
        ("train.lr.x=1", None),
        ("train.freeze=[fusion.*", "override 'train.freeze=[fusion.*': the value is not valid YAML"),
        ("model.base=some/model", "give exactly one of model.base"),
        ("data.mixture=[]", "data.mixture: List should have at least 1 item"),
    ],
)
def test_bad_overrides(small: Path, override: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(small, ["train.lr=1e-3", override])
    assert message is None or message in str(error.value)


def test_overrides_in_lists(small: Path) -> None:
    config = load_config(small, ["data.mixture.0.root=/elsewhere", "data.mixture.0.weight=2"])
    assert config.data.mixture[0].source == "refcoco" and config.data.mixture[0].root == Path("/elsewhere")
    for override in ("data.mixture.1.root=/x", "data.mixture.first.root=/x"):
        with pytest.raises(ConfigError, match="is no number of an item; the list has 1, from 0"):
            load_config(small, [override])


def test_overrides_and_bases(small: Path) -> None:
    child = small.with_name("child.yaml")
    child.write_text("base: small.yaml\ntrain: {batch_size: 8}\n")
    config = load_config(child, ["train.steps=7", "model.scratch.layers=1"])
    assert (config.train.batch_size, config.train.steps, config.model.scratch.layers) == (8, 7, 1)
    assert config.model.scratch.hidden_size == 64


def test_missing_file_names_the_nearest(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*smal.yaml; did you mean .*small.yaml\?"):
        load_config(small.with_name("smal.yaml"))


def test_missing_key(small: Path) -> None:
    values = yaml.safe_load(small.read_text())
    del values["data"]["root"]
    small.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="missing key 'data.root'"):
        load_config(small)


def _refused(path: Path, match: str, *overrides: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        load_config(path, overrides)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=-1e-3", "train.lr: Input should be greater than or equal to 0"),
        ("train.lr=.nan", "train.lr: Input should be a finite number"),
        ("train.lr=.inf", "train.lr: Input should be a finite number"),
        ("train.betas=[0.9, 1.0]", "train.betas.1: Input should be less than 1"),
        ("train.betas=[-0.1, 0.9]", "train.betas.0: Input should be greater than or equal to 0"),
        ("train.weight_decay=-1", "train.weight_decay: Input should be greater"),
        ("train.clip_norm=-1", "train.clip_norm: Input should be greater"),
        ("train.steps=1000000000000", "train.steps: Input should be less than or equal to 1000000000"),
        ("train.batch_size=1000000000000", "train.batch_size: Input should be less"),
        ("data.workers=1000000", "data.workers: Input should be less than or equal to 1024"),
        ("run.seed=-1", "run.seed: Input should be greater than or equal to 0"),
        ("run.seed=18446744073709551616", "run.seed: Input should be less than 4294967296"),
        ("run.dir=''", "run.dir: Value error, name a folder for the run"),
        ('run.dir="a\\0b"', "run.dir holds a character that no name"),
        ('data.questions=["{expression}\\ud800"]', "data.questions.0 holds a character"),
        ("loss.dice=-1", "loss.dice: Input should be greater"),
        ("loss.lm=.nan", "loss.lm: Input should be a finite number"),
        ("loss={lm: 0, bce: 0, dice: 0}", "loss.lm, loss.bce and loss.dice are 0"),
        ("loss.points=0", "loss.points: Input should be greater"),
        ("model.scratch.vocab_size=10", "model.scratch.vocab_size: Input should be greater than or equal to 260"),
        ("model.scratch.vocab_size=60000000", "model.scratch.vocab_size: Input should be less"),
        ("model.scratch.heads=3", "hidden_size 64 must be an even multiple of heads 3"),
        ("model.scratch.kv_heads=3", "kv_heads 3 must divide heads 4"),
        ("model.scratch.mlp_size=0", "model.scratch.mlp_size: Input should be greater"),
        ("architecture.max_side_px=1000", "max_side_px 1000 must be a multiple of patch_size 16"),
        ("architecture.mask_dim=1000000000", "architecture.mask_dim: Input should be less"),
        ("data.questions=['Where?']", "data.questions: each template holds {expression} exactly once"),
        ("data.questions=['{expression} {class}']", "'{expression} {class}' holds a place that nothing fills"),
        ("data.answers=['It is there.']", r"data.answers: each template holds \[SEG\] exactly once"),
        ("data.mixture.0.split=../../x", "data.mixture.0.split: String should match"),
        ("data.mixture.0.weight=1e300", "data.mixture.0.weight: Input should be less"),
        ("train={steps: 1, batch_size: 1, muon: {}, zero_stage: 2}", "train.muon needs whole matrices"),
        ("train.offload=optimizer", "train.offload=optimizer needs train.zero_stage=1, 2 or 3"),
        ("train={steps: 1, batch_size: 1, lora: {quantize: nf4}, zero_stage: 2}", "nf4 needs train.zero_stage=0"),
        ("evaluate.max_images=0", "evaluate.max_images: Input should be greater"),
        ("train.lr=!!python/object/apply:os.getcwd []", "the value is not valid YAML"),
        ("train.lr=[" * 3000, "the value is not valid YAML"),
        ("train.steps=" + "9" * 5000, "the value is not valid YAML"),
        ("a." * 5000 + "b=1", "no key is so deep"),
        ("data.mixture.²=1", "is no number of an item"),
    ],
)
def test_values_that_no_run_can_use_are_found_on_loading(small: Path, override: str, message: str) -> None:
    _refused(small, message if "\\" in message else re.escape(message), override)


def test_a_config_whose_bases_come_back_to_it(small: Path) -> None:
    (small.parent / "a.yaml").write_text("base: b.yaml\n")
    (small.parent / "b.yaml").symlink_to("a.yaml")
    for name in ("a.yaml", "b.yaml"):
        _refused(small.with_name(name), "its bases come back to it")
    for number in range(12):
        (small.parent / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    _refused(small.with_name("0.yaml"), "its bases go on for more than 10 files")
    for base in ("[a]", "''", "5", '"a\\0b"'):
        small.with_name("c.yaml").write_text(f"base: {base}\n")
        _refused(small.with_name("c.yaml"), "its 'base' is .*; expected the name of another config")


def test_yaml_that_grows_contains_itself_or_says_a_thing_twice(small: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    merged = ["b0: &b0 {k: 1}"] + [f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    for text, message in [
        ("\n".join(lines), "more than 100,000 values"),
        ("\n".join(merged), "more than 100,000 values"),
        ("run: &r {dir: *r}", "contains itself"),
        ("run: {dir: a}\nrun: {dir: b}", "the key 'run' stands twice in one mapping, again in line 2"),
        ("run: " + "[" * 20_000, "nested in more than 50"),
        ("run: 2020-13-45", "not valid YAML"),
        ("run: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("{[1]: 2}", "not valid YAML"),
        ("- a", "a config is a mapping of sections, got list"),
        ("", "a config is a mapping of sections, got NoneType"),
    ]:
        small.write_text(text)
        _refused(small, message)
    small.write_bytes("run: {dir: café}".encode("latin-1"))
    _refused(small, "line 1: the text is not UTF-8")
    small.write_bytes(b"#" * (2**20 + 1))
    _refused(small, "at most 1,048,576 are read")


def test_a_pipe_a_folder_and_a_device_are_no_config(small: Path) -> None:
    os.mkfifo(small.parent / "pipe.yaml")
    (small.parent / "zero.yaml").symlink_to("/dev/zero")
    (small.parent / "folder.yaml").mkdir()
    (small.parent / "loop.yaml").symlink_to("loop.yaml")
    for name, kind in [("pipe", "a named pipe"), ("zero", "a device"), ("folder", "a folder"), ("loop", "cannot read")]:
        _refused(small.with_name(f"{name}.yaml"), kind)


def test_aliases_and_merges_of_a_right_config_stay(small: Path) -> None:
    text = "data: {root: x, mixture: &m [{source: refcoco}]}\ntrain: {<<: &t {steps: 1, batch_size: 2}, steps: 5}\n"
    small.write_text("run: {dir: r}\nmodel: {base: b}\n" + text)
    config = load_config(small)
    assert (config.train.steps, config.train.batch_size, len(config.data.mixture)) == (5, 2, 1)


def test_any_value_at_any_place_is_a_message(small: Path) -> None:
    values = [
        None,
        True,
        [],
        {},
        "",
        "x",
        -1,
        1e300,
        10**30,
        "a\0b",
        "\ud800",
        [[]],
        {"a": {"b": 1}},
        [None],
        "x" * 5000,
    ]
    base = load_config(small).model_dump(mode="json")
    places = [(key,) for key in base] + [(key, sub) for key in base if isinstance(base[key], dict) for sub in base[key]]
    for place in places:
        for value in values:
            changed = copy.deepcopy(base)
            (changed if len(place) == 1 else changed[place[0]])[place[-1]] = value
            try:
                build_config(changed, "here")
            except ConfigError as error:
                assert len(str(error)) < 5000 and str(error).encode()


def test_an_error_names_the_bases_whose_keys_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: c.yaml\ntrain: {steps: 3}\n")
    (tmp_path / "c.yaml").write_text("data: {}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml \(base: b\.yaml, c\.yaml\): missing key 'run'"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").rename(tmp_path / "C.yaml")
    with pytest.raises(ConfigError, match=r"no config file .*c\.yaml, which .*b\.yaml names as its base; did you mean"):
        load_config(tmp_path / "a.yaml")
