"""What scores are worth: each number against brute force or scipy, and the command on files that say what is known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_refer_dataset
from PIL import Image
from scipy import stats
from warm import run_tool

from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate.predictions import read_lines
from pixel_sail.evaluate.runner import open_benchmark
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.serve.predictor import Answer
from pixel_sail.studies.mask_scores import BINS, Scored, auroc, bins, calibration_error, spearman, table

RNG = np.random.default_rng(0)


def test_auroc_counts_pairs() -> None:
    scores, positive = RNG.integers(0, 6, 40) / 5, RNG.random(40) < 0.3  # with many ties
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    assert auroc(scores, positive) == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
    assert auroc(np.full(40, 0.3), positive) == 0.5
    assert auroc(positive.astype(float), positive) == 1
    assert auroc(scores, np.ones(40, dtype=bool)) is None


def test_spearman_is_that_of_scipy() -> None:
    a, b = RNG.integers(0, 5, 50).astype(float), RNG.random(50).round(1)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(np.exp(b), b) == pytest.approx(1) and spearman(np.ones(50), b) is None


def test_calibration_error_by_hand() -> None:
    """20 cases, two in each bin: 18 are as often right as they say, one bin of two says 0.95 and is never right."""
    scores = np.repeat(np.arange(10) / 10 + 0.05, 2)
    outcomes = scores.copy()
    outcomes[-2:] = 0
    order = RNG.permutation(20)
    assert calibration_error(scores[order], outcomes[order]) == pytest.approx(0.95 / BINS)
    assert bins(scores, outcomes)[:, 2].tolist() == [2] * 10
    assert calibration_error(outcomes, outcomes) == pytest.approx(0)
    assert calibration_error(np.full(20, outcomes.mean()), outcomes) == pytest.approx(0)  # a constant is one bin
    assert bins(np.array([0.1] * 15 + [0.5] * 5), outcomes)[:, 2].tolist() == [15, 5]
    assert calibration_error(np.array([]), np.array([])) is None
    assert len(bins(outcomes[:0], outcomes[:0])) == 0 and bins(scores[:4], scores[:4])[:, 2].tolist() == [2, 2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("data") / "root")


def write_lines(path: Path, root: Path, presence, score) -> Path:
    """Lines of grefcoco:val whose masks are right where something is there; elsewhere there is one of another case."""
    benchmark = open_benchmark("grefcoco:val", root)
    some = next(case.mask for case in benchmark.cases if case.mask is not None)
    lines = [
        {"ref_id": c.ref_id, "sent_id": c.sent_id, "text": "[SEG]", "segmentation": c.mask or some}
        | ({} if presence is None else {"presence": presence(c), "score": score(c)})
        for c in benchmark.cases
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_command_tells_knowledge_from_none(root: Path, tmp_path: Path) -> None:
    known = write_lines(
        tmp_path / "known.jsonl", root, lambda c: 0.8 if c.mask else 0.1, lambda c: 0.9 if c.mask else 0.2
    )
    options = ("--benchmark", "grefcoco:val", "--data-root", root)
    status, printed = run_tool("tools/mask_scores.py", known, *options, "--out", tmp_path / "out")
    assert status == 0, printed
    rows = dict(line[2:-2].split(" | ") for line in printed.splitlines() if line.startswith("| ") and "---" not in line)
    assert rows["presence: AUROC of nothing there"] == "100.0 (50)" and rows["score: Spearman with IoU"] == "1.000 (0)"
    values = json.loads((tmp_path / "out/mask_scores.json").read_text())["grefcoco:val"]
    share = values["absent"] / values["cases"]
    assert 0 < share < 1 and values["presence_mse"] == pytest.approx(0.04 * (1 - share) + 0.01 * share)
    assert values["presence_mse_constant"] == pytest.approx(share * (1 - share))
    assert values["score_mse"] == pytest.approx(0.01 * (1 - share) + 0.04 * share)
    assert (tmp_path / "out/reliability.png").stat().st_size > 10_000


def test_lines_without_scores_are_refused(root: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark("grefcoco:val", root)
    for presence, message in ((None, "a line has no presence: its model has no score head"), (2, "presence is 2, exp")):
        path = write_lines(tmp_path / "a.jsonl", root, presence and (lambda c: 2), lambda c: 0.9)
        with pytest.raises(DatasetError, match=message):
            Scored.of(benchmark, read_lines(path, benchmark), "a.jsonl")


class Sure:
    """Answers each expression with two masks of everything."""

    def segment(self, image: Image.Image, expressions: list[str]) -> list[Answer]:
        mask = np.ones((image.height, image.width), dtype=bool)
        return [Answer("[SEG] [SEG]", [mask, mask], [0.25, 0.35], 0.75) for _ in expressions]


def test_prediction_lines_carry_the_scores(root: Path) -> None:
    benchmark = open_benchmark("grefcoco:val", root)
    (line, *_) = benchmark.predict(Sure(), [benchmark.cases[0]])
    assert (line["presence"], line["score"]) == (0.75, 0.3)
    assert score_fields(Answer("No.", [], [], 0.1)) == {"presence": 0.1, "score": None}
    assert score_fields(Answer("No.", [])) == {}


def test_a_table_has_a_dash_where_nothing_is_defined() -> None:
    part = Scored(np.array([0.7]), np.array([True]), np.array([]), np.array([]))
    lines = table({"refcoco:val": part.result()}).splitlines()
    assert "| presence: AUROC of nothing there | - (50) |" in lines and "| score: MSE | - (-) |" in lines
    assert Scored.joined([part, part]).result()["cases"] == 2
