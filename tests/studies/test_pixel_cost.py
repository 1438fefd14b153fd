"""What configs/pixel_cost.yaml adds to the ablation: variants side by side, one base, scores in the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import write_refer_dataset

from pixel_sail.config import REPOSITORY, Config, ConfigError, load_config
from pixel_sail.data.masks import encode_mask
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.scores import pix_scores
from pixel_sail.studies.ablation.plan import load_plan
from pixel_sail.studies.ablation.plots import write_plots
from pixel_sail.studies.ablation.table import markdown, results_of, shown_counts, shown_scores
from pixel_sail.train.build import build_model

SCRATCH = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_size": 64, "vocab_size": 400}
BASE = {
    "run": {"dir": "x"},
    "model": {"scratch": SCRATCH},
    "architecture": {"max_side_px": 64, "mask_dim": 16},
    "data": {"root": "set below", "mixture": [{"source": "refcoco"}]},
    "train": {"steps": 2, "batch_size": 4},
}
VARIANTS = [
    {"name": "one", "changes": {"data.mixture": [{"source": "refcoco"}], "train.lr": 1e-3}},
    {"name": "two", "changes": {"data.mixture": [{"source": "grefcoco"}]}},
    {"name": "three", "changes": {"loss.lm": 0.25}},
]


def write(folder: Path, root: Path, **changes) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE | {"data": BASE["data"] | {"root": str(root)}}))
    values = {"base": "base.yaml", "dir": str(folder / "runs"), "seeds": [0, 1], "benchmarks": ["refcoco:val"]}
    path = folder / "cost.yaml"
    path.write_text(yaml.safe_dump(values | {"variants": VARIANTS, "variants_add_up": False} | changes))
    return path


def configs_of(path: Path) -> dict[str, Config]:
    return {run.variant: run.config for run in load_plan(path).runs}


def test_each_variant_has_its_own_changes_alone(tmp_path: Path) -> None:
    def seen(path: Path) -> list[tuple[str, float, float]]:
        return [(c.data.mixture[0].source, c.train.lr, c.loss.lm) for c in configs_of(path).values()]

    apart = write(tmp_path, tmp_path, changes={"loss.lm": 0.75})
    assert seen(apart) == [("refcoco", 1e-3, 0.75), ("grefcoco", 4e-5, 0.75), ("refcoco", 4e-5, 0.25)]
    together = write(tmp_path, tmp_path, changes={"loss.lm": 0.75}, variants_add_up=True)
    assert seen(together) == [("refcoco", 1e-3, 0.75), ("grefcoco", 1e-3, 0.75), ("grefcoco", 1e-3, 0.25)]


def test_invalid_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no variant 'four'; its variants are one, two, three"):
        load_plan(write(tmp_path, tmp_path, steps=[["one", "two"], ["one", "four"]]))
    with pytest.raises(ConfigError, match="steps"):
        load_plan(write(tmp_path, tmp_path, steps=[["one"]]))


def test_one_base_whatever_the_mixture(tmp_path: Path) -> None:
    """The same seed gives the same tokenizer and weights to every variant; another seed, other weights."""
    root = write_refer_dataset(tmp_path / "root")
    path = write(tmp_path, root, changes={"model.scratch.text_from": ["refcoco", "grefcoco"]})
    configs = configs_of(path)
    (model, words), (other_model, other_words) = (build_model(configs[name]) for name in ("one", "two"))
    assert words.get_vocab() == other_words.get_vocab()
    assert _equal(model, other_model)
    another_seed = configs["one"].run.model_copy(update={"seed": 7})
    assert not _equal(model, build_model(configs["one"].model_copy(update={"run": another_seed}))[0])
    alone = configs_of(write(tmp_path, root))
    assert (
        build_model(alone["one"])[1].get_vocab() != build_model(alone["two"])[1].get_vocab()
    )  # which is why text_from exists


def _equal(model: torch.nn.Module, other_model: torch.nn.Module) -> bool:
    first, second = model.state_dict(), other_model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_shipped_experiment() -> None:
    """Questions, masks, both, both with two experts; equally many samples and one base for all; at least two seeds."""
    plan = load_plan(REPOSITORY / "configs/pixel_cost.yaml")
    configs = {run.variant: run.config for run in plan.runs}
    assert list(configs) == ["qa", "qa_half", "masks", "both", "both_distilled"] and len(plan.config.seeds) >= 2
    assert len(plan.runs) == 5 * len(plan.config.seeds) and "pixmmvp:own" in plan.config.benchmarks
    weights = {name: {e.source: e.weight for e in c.data.mixture} for name, c in configs.items()}
    assert weights["qa"].keys() == {"choices", "llava"} and weights["masks"].keys() == {"refcoco", "coco_semantic"}
    # half of the samples of `both` are those of `qa`, half those of `masks`; `qa_half` sees the first half alone
    for name in ("both", "both_distilled"):
        halves = {source: weight / 2 for half in ("qa", "masks") for source, weight in weights[half].items()}
        assert weights[name] == pytest.approx(halves)
    assert weights["qa_half"] == weights["qa"]
    assert {name: c.train.steps / configs["both"].train.steps for name, c in configs.items()} == {
        "qa": 1, "qa_half": 0.5, "masks": 1, "both": 1, "both_distilled": 1
    }  # fmt: skip
    for config in configs.values():
        assert sum(entry.weight for entry in config.data.mixture) == pytest.approx(1)
    without = {"run": True, "experts": True, "data": {"mixture"}, "train": {"steps"}}
    kept = [config.model_dump(exclude=without) for config in configs.values()]
    assert all(config == kept[0] for config in kept)  # batch size, model, losses: nothing else differs
    assert [expert.at for expert in configs["both_distilled"].experts] == ["mask_features", "patches"]
    assert not any(configs[name].experts for name in configs if name != "both_distilled")
    expert = yaml.safe_load((REPOSITORY / "configs/expert_scenes.yaml").read_text())
    for taught_by in configs["both_distilled"].experts:
        assert (taught_by.path, taught_by.size_px) == (f"{expert['dir']}/expert", expert["size_px"])
    assert plan.config.pairs()[:2] == [("qa_half", "both"), ("qa", "both")]


def test_the_base_of_the_shipped_experiment() -> None:
    """It has the architecture of the variants, and a tokenizer for all their texts."""
    base = load_config(REPOSITORY / "configs/perbench_scenes.yaml")
    words = load_config(REPOSITORY / "configs/words_scenes.yaml")
    assert base.train.init_from == words.run.dir / "export"
    for run in load_plan(REPOSITORY / "configs/pixel_cost.yaml").runs:
        assert run.config.train.init_from == base.run.dir / "export"
        for config in (words, base):
            assert run.config.model.model_dump(exclude={"scratch"}) == config.model.model_dump(exclude={"scratch"})
        assert {entry.source for entry in run.config.data.mixture} <= {*words.model.scratch.text_from}


def test_the_table_has_the_configured_pairs_and_the_failure_cells(tmp_path: Path) -> None:
    """Cells are shown with their spread over seeds. They have no steps, because more of them is not better."""
    pairs = [("one", "three"), ("two", "three")]
    plan = load_plan(write(tmp_path, tmp_path, benchmarks=["pixmmvp"], steps=[list(pair) for pair in pairs]))
    accuracy = {"one": 40.0, "two": 20.0, "three": 30.0}
    for run in plan.runs:
        run.folder.mkdir(parents=True)
        scores = {"accuracy": accuracy[run.variant] + run.seed, "score": None, "both_right": 3 + 2 * run.seed}
        scores |= {"failures": {"both_right": [[1, 2]]}}
        (run.folder / "scores.json").write_text(json.dumps({"max_images": None, "benchmarks": {"pixmmvp": scores}}))
    results = results_of(plan)
    assert results.scores == ("pixmmvp accuracy", "pixmmvp both_right")
    steps = [(step.before, step.after, step.score, step.mean, step.differences) for step in results.steps]
    assert steps == [
        ("one", "three", "pixmmvp accuracy", -10.0, {0: -10.0, 1: -10.0}),
        ("two", "three", "pixmmvp accuracy", 10.0, {0: 10.0, 1: 10.0}),
    ]
    text = markdown(results)
    assert "| pixmmvp both_right | " + " | ".join(["4.0 ± 1.4 (3.0 to 5.0)"] * 3) + " |" in text
    assert "| difference, 95 % interval | one → three | two → three |" in text
    assert text.count("pixmmvp both_right") == 1 and text.count("pixmmvp accuracy") == 2
    pytest.importorskip("matplotlib")
    assert {path.name for path in write_plots(results, [], tmp_path)} == {"ablation_scores.png", "ablation_steps.png"}


def test_scores_of_the_table_are_those_of_the_benchmark() -> None:
    """The table would silently omit a score that the benchmark does not have."""
    mask = encode_mask(np.eye(4, dtype=bool))
    rows = [PixObject(i, Path("x"), (4, 4), "it", mask, "Which?", ("Open", "Shut"), "a", 0) for i in (1, 2)]
    scores = pix_scores(rows, [{"answers": ["(a)"], "segmentations": [mask]}] * 2, pair_size=2, judge=None)
    names = (*shown_scores("pixmmvp"), *shown_counts("pixmmvp"))
    assert {name: scores[name] for name in names} == dict.fromkeys(names, 100.0) | {
        "both_right": 1,
        "only_grounding_wrong": 0,
        "only_vqa_wrong": 0,
        "both_wrong": 0,
        "undecided": 0,
        "pairs": 1,
    }
