"""An ablation without its runs: the plan, which configs are the same run, and the arithmetic of the table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from pixel_sail.config import REPOSITORY, ConfigError, load_config
from pixel_sail.errors import FileError
from pixel_sail.studies.ablation.plan import Plan, load_plan
from pixel_sail.studies.ablation.plots import write_plots
from pixel_sail.studies.ablation.table import markdown, results_of, spread_of, step_of, write_results

VARIANTS = [
    {"name": "plain", "changes": {"architecture.mask_stride": 8, "architecture.region_embedding": "pooled"}},
    {"name": "upsampling", "changes": {"architecture.mask_stride": 2}},
    {"name": "fusion", "changes": {"architecture.region_embedding": "fused"}},
]


def write(folder: Path, **changes) -> Path:
    values = {
        "base": str(REPOSITORY / "configs/scratch.yaml"),
        "dir": str(folder / "runs"),
        "seeds": [0, 1, 2],
        "benchmarks": ["refcoco:val", "perbench:mcq"],
        "changes": {"train.steps": 7, "data.mixture": [{"source": "refcoco"}]},
        "variants": VARIANTS,
    }
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def finish(plan: Plan, value) -> None:
    """Write the files of finished runs. `value(variant, seed)` is the cIoU, None for an unfinished run."""
    for run in plan.runs:
        ciou = value(run.variant, run.seed)
        if ciou is not None:
            run.write_config()
            run.config.run.dir.mkdir(parents=True)
            lines = [{"step": i, "lm": 1.0 / i, "bce": 0.1, "dice": ciou / i} for i in (1, 2, 3)]
            (run.config.run.dir / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            environment = {"commit": f"{run.seed // 2}" * 40, "modified_files": []}
            (run.config.run.dir / "environment.json").write_text(json.dumps(environment))
            scores = {"refcoco:val": {"ciou": ciou, "small_giou": None, "cases": 9}, "perbench:mcq": {"accuracy": 0.0}}
            (run.folder / "scores.json").write_text(json.dumps({"max_images": None, "benchmarks": scores}))


def test_variants_add_up_and_runs_go_seed_by_seed(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    assert [(run.variant, run.seed) for run in plan.runs[:4]] == [
        ("plain", 0),
        ("upsampling", 0),
        ("fusion", 0),
        ("plain", 1),
    ]
    models = {
        run.variant: (run.config.architecture.mask_stride, run.config.architecture.region_embedding)
        for run in plan.runs
    }
    assert models == {"plain": (8, "pooled"), "upsampling": (2, "pooled"), "fusion": (2, "fused")}
    for run in plan.runs:
        assert run.config.run.seed == run.seed and run.config.train.steps == 7 and len(run.config.data.mixture) == 1
        assert run.config.run.dir == tmp_path / "runs" / run.variant / f"seed_{run.seed}" / "run"
        assert load_config(run.write_config()) == run.config
    assert {run.variant for run in load_plan(tmp_path / "ablation.yaml", ["fusion"]).runs} == {"fusion"}


def test_the_shipped_ablation_is_the_papers() -> None:
    plan = load_plan(REPOSITORY / "configs/ablation.yaml")
    configs = {run.variant: run.config for run in plan.runs}
    steps = [
        (c.architecture.mask_stride, c.architecture.region_embedding, *(expert.at for expert in c.experts))
        for c in configs.values()
    ]
    assert steps == [
        (8, "pooled"),
        (2, "pooled"),
        (2, "fused"),
        (2, "fused", "mask_features"),
        (2, "fused", "mask_features", "patches"),
    ]
    assert configs["plain"].architecture.patch_size == 8 and len(plan.runs) == 5 * 3
    expert = yaml.safe_load((REPOSITORY / "configs/expert_scenes.yaml").read_text())
    for taught_by in configs["distill_patches"].experts:
        assert (taught_by.path, taught_by.size_px) == (f"{expert['dir']}/expert", expert["size_px"])


def test_a_run_of_another_config_is_refused_and_a_move_is_not(tmp_path: Path) -> None:
    before = load_plan(write(tmp_path)).runs[0]
    before.write_config()
    (changed,) = load_plan(write(tmp_path, seeds=[0], changes={"train.steps": 9, "train.lr": 1e-5}), ["plain"]).runs
    with pytest.raises(ConfigError, match=r"seed_0 has a run of another config: .*train.steps was 7, is 9"):
        changed.check_same()
    (same,) = load_plan(
        write(
            tmp_path, seeds=[0], changes={"data.workers": 5, "train.steps": 7, "data.mixture": [{"source": "refcoco"}]}
        ),
        ["plain"],
    ).runs
    same.check_same()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "sedes: Extra inputs are not permitted.*has the keys base, dir, seeds"),
        ({"seeds": [1, 1]}, "must each be listed once"),
        ({"variants": [*VARIANTS, VARIANTS[0]]}, "must each be listed once"),
        ({"variants": [{"name": "a/b", "changes": {}}]}, "String should match pattern"),
        ({"variants": [{"name": "a", "changes": {"train.stepz": 1}}]}, "variant a: .*did you mean 'train.steps'"),
        ({"base": "nowhere.yaml"}, "variant plain: no config file"),
    ],
)
def test_invalid_files(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(write(tmp_path, **changes))
    with pytest.raises(ConfigError, match="has no variant 'fusoin'; its variants are plain, upsampling, fusion"):
        load_plan(write(tmp_path), ["fusoin"])
    with pytest.raises(ConfigError, match="ablation file .* does not exist"):
        load_plan(tmp_path / "none.yaml")


@pytest.mark.parametrize("seeds", [2, 3, 6, 15])
def test_the_interval_holds_95_percent_of_students_density(seeds: int) -> None:
    step = step_of("a", "b", "x", dict.fromkeys(range(seeds), 0.0), dict(enumerate(np.arange(seeds, dtype=float))))
    freedom = seeds - 1
    t = (step.interval[1] - step.mean) * seeds**0.5 / np.arange(seeds).std(ddof=1)
    x = np.linspace(0, t, 200_001)
    density = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / (freedom * math.pi) ** 0.5
    y = density * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    inside = 2 * float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
    assert inside == pytest.approx(0.95, abs=1e-6)


def test_a_step_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, interval 2 -+ t / sqrt(3).

    t from its closed form for two degrees of freedom: t^2 / (2 + t^2) = 0.95^2.
    """
    t = (2 * 0.95**2 / (1 - 0.95**2)) ** 0.5
    step = step_of("a", "b", "x", {0: 10.0, 1: 20.0, 2: 30.0, 7: 99.0}, {2: 33.0, 1: 22.0, 0: 11.0, 8: 0.0})
    assert step.differences == {0: 1.0, 1: 2.0, 2: 3.0} and step.mean == 2
    assert step.interval == pytest.approx((2 - t / 3**0.5, 2 + t / 3**0.5)) and step.verdict == "leans better"
    for new, verdict in (
        ([1.0, 1.1, 1.2], "better"),
        ([-1.0, -1.1, -1.2], "worse"),
        ([-1.0, -2.0, -3.0], "leans worse"),
        ([-1.0, 2.0, 3.0], "no difference seen"),
        ([0.0, 0.0, 0.0], "no difference seen"),
        ([5.0], "one seed"),
    ):
        seeds = range(len(new))
        assert step_of("a", "b", "x", dict.fromkeys(seeds, 0.0), dict(zip(seeds, new, strict=True))).verdict == verdict
    spread = spread_of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.low, spread.high) == (3, 1, 6) and spread.sd == pytest.approx(7**0.5)


def test_how_often_equal_variants_are_called_different() -> None:
    """Three seeds of equal variants: the interval misses 0 in 5 % of the cases."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 2, 3))
    called = [
        step_of("a", "b", "x", dict(enumerate(old)), dict(enumerate(new))).verdict in ("better", "worse")
        for old, new in draws.tolist()
    ]
    assert np.mean(called) == pytest.approx(0.05, abs=0.012)


def test_table_and_plots_of_what_is_finished(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    values = {"plain": 30.0, "upsampling": 32.0, "fusion": 31.0}
    finish(plan, lambda variant, seed: None if (variant, seed) == ("fusion", 2) else values[variant] + seed)
    results = results_of(plan)
    assert results.scores == (
        "refcoco:val ciou",
        "perbench:mcq accuracy",
    )  # a score that is None in every run is not shown
    assert results.unfinished == ("fusion, seed 2",) and results.commits == ("0000000", "1111111")
    assert (
        results.spreads["refcoco:val ciou"]["plain"].mean == 31
        and results.spreads["refcoco:val ciou"]["fusion"].seeds == 2
    )
    steps = {(step.after, step.score): step for step in results.steps}
    assert steps["upsampling", "refcoco:val ciou"].differences == {0: 2.0, 1: 2.0, 2: 2.0}
    assert steps["fusion", "refcoco:val ciou"].differences == {0: -1.0, 1: -1.0}
    text = markdown(results)
    assert (
        "| refcoco:val ciou | 31.0 ± 1.0 (30.0 to 32.0) | 33.0 ± 1.0 (32.0 to 34.0) | 31.5 ± 0.7 (31.0 to 32.0) |"
        in text
    )
    assert "| refcoco:val ciou | +2.0 (+2.0 to +2.0), better | -1.0 (-1.0 to -1.0), worse |" in text
    assert "| perbench:mcq accuracy | 0.0 ± 0.0 (0.0 to 0.0) |" in text
    assert "**Rows were trained by different code.**" in text and "**Unfinished:** fusion, seed 2." in text
    write_results(results, tmp_path / "out")
    written = json.loads((tmp_path / "out/ablation.json").read_text())
    assert written["values"]["refcoco:val ciou"]["plain"] == {"0": 30.0, "1": 31.0, "2": 32.0}
    pytest.importorskip("matplotlib")
    images = write_plots(results, [run for run in plan.runs if (run.folder / "scores.json").exists()], tmp_path / "out")
    assert [path.name for path in images] == ["ablation_scores.png", "ablation_steps.png", "ablation_losses.png"]
    finished = next(run for run in plan.runs if (run.folder / "scores.json").exists())
    (finished.config.run.dir / "log.jsonl").write_text('{"step": 1, "lm": [null], "bce": 1, "dice": 1}\n')
    with pytest.raises(FileError, match=r"log.jsonl, line 1: lm is \[None\], no number"):
        write_plots(results, [finished], tmp_path)


def test_nothing_is_finished_yet(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    results = results_of(plan)
    assert results.steps == () and len(results.unfinished) == 9 and "none yet" in markdown(results)
    pytest.importorskip("matplotlib")
    assert write_plots(results, [], tmp_path) == []
