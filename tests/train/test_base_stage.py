"""The stage that makes a base: captioned images and plain text; resumed, on ranks without an image, with bad pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run  # (chooses the CPU)
import torch
from base_files import lines, picture, write_pairs, write_tar
from conftest import REPOSITORY, write_refer_dataset
from in_process import call_main, load_tool
from transformers import LlamaConfig, LlamaForCausalLM

from pixel_sail.config import DataConfig, MixtureEntry, load_config
from pixel_sail.data.sources import open_source
from pixel_sail.durable import read_json_lines
from pixel_sail.evaluate.perplexity import perplexity
from pixel_sail.serve.predictor import Predictor
from pixel_sail.train.loop import train
from pixel_sail.train.step import TrainingStopped
from pixel_sail.weights.convert.scratch import CHAT_TEMPLATE, train_tokenizer

MIXTURE = "data.mixture=[{source: image_text, weight: 0.5}, {source: text, weight: 0.5}]"
WORDS = ("red", "blue", "green", "large", "small", "mug", "chair", "box")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base") / "root"
    write_pairs(root / "image_text/train", 2)
    (root / "text/train").mkdir(parents=True)
    texts = [f"the {WORDS[n % 8]} {WORDS[n % 5]} is beside the {WORDS[n % 3]} one" for n in range(20)]
    (root / "text/train/0.jsonl").write_bytes(lines(*texts))
    return root


def test_a_resumed_run_and_other_workers_give_the_same_bits(root: Path, tmp_path: Path) -> None:
    config = tiny_run.write_config(tmp_path, root)
    for name, workers in (("a", 0), ("b", 2)):
        train(
            load_config(
                config, [MIXTURE, f"run.dir={tmp_path / name}", "train.save_every=2", f"data.workers={workers}"]
            )
        )
    tiny_run.assert_same_bits(tmp_path / "a", tmp_path / "b")
    assert [line["samples"] for line in tiny_run.log_lines(tmp_path / "a")] == [6] * 4
    tiny_run.forget_second_half(tmp_path / "b")
    train(load_config(config, [MIXTURE, f"run.dir={tmp_path / 'b'}", "train.save_every=2", "data.workers=0"]))
    tiny_run.assert_same_bits(tmp_path / "a", tmp_path / "b")


def test_ranks_without_an_image_train_as_one_process_does(root: Path, tmp_path: Path) -> None:
    """One sample for each of two ranks and a step: of text on one or on both, with a filler where one has more."""
    config = tiny_run.write_config(tmp_path, root)
    options = [MIXTURE, "train.batch_size=2", "train.steps=6", "train.micro_batch_tokens=32"]
    for name, processes in (("one", 1), ("two", 2)):
        status, output = tiny_run.run_cli(config, *options, f"run.dir={tmp_path / name}", processes=processes)
        assert status == 0, output
    tiny_run.assert_same_curve(tmp_path / "one", tmp_path / "two")


def test_broken_pairs_are_counted_and_too_many_stop_the_run(root: Path, tmp_path: Path) -> None:
    write_tar(
        tmp_path / "root/0.tar",
        [
            ("a.jpg", picture(1)),
            ("a.txt", b"fine"),
            ("b.jpg", b"\xff\xd8\xff broken"),
            ("b.txt", b"x"),
            ("c.txt", b"x"),
        ],
    )
    config = tiny_run.write_config(tmp_path, tmp_path / "root")
    options = [
        "data.mixture=[{source: image_text, files: 0.tar}]",
        "train.batch_size=3",
        "model.scratch.vocab_size=300",
    ]
    train(load_config(config, [*options, "data.max_bad_samples=8"]))
    skipped = read_json_lines(tmp_path / "run/bad_samples.jsonl")
    assert [line["samples"] for line in tiny_run.log_lines(tmp_path / "run")] == [1] * 4
    assert tiny_run.log_lines(tmp_path / "run")[-1]["bad_samples"] == 8 == len(skipped)
    messages = {line["key"]: line["message"] for line in skipped}
    assert messages.keys() == {"image_text/0.tar/1", "image_text/0.tar/2"}
    assert "0.tar/2: it has no image" in messages["image_text/0.tar/2"]
    with pytest.raises(TrainingStopped, match="4 unusable samples by step 2, more than data.max_bad_samples=3"):
        train(load_config(config, [*options, f"run.dir={tmp_path / 'b'}", "data.max_bad_samples=3"]))


def test_perplexity_is_that_of_the_training_loss(root: Path, tmp_path: Path) -> None:
    """At learning rate 0 the run logs the loss of the texts, and the tool measures the same."""
    config = tiny_run.write_config(tmp_path, root)
    options = ["data.mixture=[{source: text}]", "train.batch_size=20", "train.steps=1", "train.lr=0.0"]
    train(load_config(config, options))
    (line,) = tiny_run.log_lines(tmp_path / "run")
    predictor = Predictor.from_pretrained(tmp_path / "run/export", "cpu")
    entry = MixtureEntry(source="text")
    source = open_source(entry, DataConfig(root=root, mixture=[entry]))
    values = perplexity(predictor, source)
    assert values["nats_per_token"] == pytest.approx(line["lm"], rel=1e-5) and values["texts"] == 20
    assert values["perplexity"] == pytest.approx(300, rel=0.9)  # of random weights: about the vocabulary
    few = perplexity(predictor, source, 3)
    assert few["texts"] == 3 and few["tokens"] < values["tokens"]


def test_smollm2_by_the_whole_chain(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make smollm-base` with a random model of the same architecture: base stage, referring, export, an answer."""
    base, export = save_llama(tmp_path / "llama"), tmp_path / "export"
    write_refer_dataset(tmp_path / "root")
    for name in ("image_text", "text"):
        (tmp_path / "root" / name).symlink_to(root / name)
    small = [f"data.root={tmp_path / 'root'}", "data.workers=0", "train.steps=2", "train.batch_size=4"]
    small += ["architecture.mask_dim=16", "architecture.max_side_px=64", "loss.points=64", "evaluate.benchmarks=[]"]
    first, second = (REPOSITORY / "configs" / f"{name}.yaml" for name in ("base_smollm2", "smollm2_135m"))
    train(load_config(first, [*small, f"model.base={base}", f"run.dir={tmp_path / 'a'}"]))
    train(load_config(second, [*small, f"train.init_from={tmp_path / 'a'}", f"run.dir={tmp_path / 'b'}"]))
    assert tiny_run.log_lines(tmp_path / "a")[-1]["bce"] == 0 < tiny_run.log_lines(tmp_path / "b")[-1]["bce"]
    before, after = tiny_run.weights(tmp_path / "a"), tiny_run.weights(tmp_path / "b")
    assert not any(name.startswith("score_head") for name in before)
    assert any(name.startswith("score_head") for name in after)
    call_main(monkeypatch, load_tool("export"), tmp_path / "b", "--out", export, "--license", "apache-2.0")
    (answer,) = Predictor.from_pretrained(export, "cpu").segment(picture(1), ["the red one"])
    assert isinstance(answer.text, str)


def save_llama(folder: Path) -> Path:
    """Of SmolLM2's architecture: Llama with tied embeddings."""
    tokenizer = train_tokenizer(["the red one, the green thing, a caption of number 1"] * 3, 300)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(folder)
    return folder
