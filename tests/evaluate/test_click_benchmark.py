"""NoC against a simulation that is written anew, and the published rule for its scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_refer_dataset
from tiny_predictor import tiny_predictor

from pixel_sail.data.masks import decode_mask
from pixel_sail.errors import UserError
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.clicks import ClickBenchmark, Run, simulate
from pixel_sail.serve.predictor import Answer
from pixel_sail.types import BadSample


class Painter:
    """In place of a Session: a click paints or erases a disc on the mask of its conversation, and slips sometimes."""

    def __init__(self, size_hw: tuple[int, int], radius: float):
        self.size_hw, self.radius, self.asked = size_hw, radius, []

    def answers(self, conversations) -> list[Answer]:
        self.asked.append([conversation[-1].clicks for conversation in conversations])
        return [Answer("[SEG]", [self.mask(clicks_of(conversation))]) for conversation in conversations]

    def mask(self, clicks) -> np.ndarray:
        mask = np.zeros(self.size_hw, dtype=bool)
        rows, columns = np.ogrid[: self.size_hw[0], : self.size_hw[1]]
        for x, y, positive in clicks:
            mask[(rows - y) ** 2 + (columns - x) ** 2 <= self.radius**2] = positive
        return mask


def clicks_of(turns) -> list[tuple[int, int, bool]]:
    return [(int(click.x), int(click.y), click.positive) for turn in turns for click in turn.clicks]


def slowly(painter: Painter, truth: np.ndarray) -> tuple[list[float], list[tuple[int, int, bool]]]:
    """The protocol of f-BRS and RITM, by loops: distances to every pixel outside of an error, no second click."""
    ious, clicks = [], []
    mask = np.zeros_like(truth)
    while len(clicks) < 20 and not (ious and ious[-1] >= 0.9):
        found = {}
        for positive, error in ((True, truth & ~mask), (False, mask & ~truth)):
            padded = np.pad(error, 1)
            outside = np.argwhere(~padded)
            depths = {(y - 1, x - 1): ((outside - (y, x)) ** 2).sum(1).min() for y, x in np.argwhere(padded)}
            for x, y, _ in clicks:
                depths.pop((y, x), None)
            found[positive] = max(
                depths.items(), key=lambda item: (item[1], -item[0][0], -item[0][1]), default=(None, 0)
            )
        positive = found[True][1] > found[False][1]
        if not found[positive][1]:
            break
        y, x = found[positive][0]
        clicks.append((int(x), int(y), positive))
        mask = painter.mask(clicks)
        ious.append(round(float((mask & truth).sum() / (mask | truth).sum()), 5))
    return ious, clicks


@pytest.mark.parametrize("radius", [2.5, 5.0])
def test_the_simulation_is_the_slow_one(radius: float) -> None:
    rng, painter = np.random.default_rng(0), Painter((24, 30), radius)
    truths = [painter.mask([(12, 13, True)])]  # one click is enough
    for _ in range(3):
        truth = np.zeros(painter.size_hw, dtype=bool)
        for _ in range(2):
            y, x = rng.integers(20, size=2)
            truth[y : y + rng.integers(2, 12), x : x + rng.integers(2, 12)] = True
        truths.append(truth)
    runs = [Run(truth, (), np.zeros_like(truth)) for truth in truths]
    simulate(painter, runs)
    for run, truth in zip(runs, truths, strict=True):
        ious, clicks = slowly(painter, truth)
        assert (run.ious, clicks_of(run.turns)) == (ious, clicks)
    lengths = [len(run.ious) for run in runs]
    assert len(set(lengths)) > 1 and max(lengths) == 20
    assert [len(asked) for asked in painter.asked] == [sum(n > i for n in lengths) for i in range(20)]  # in step


def test_scores_follow_the_published_rule() -> None:
    """compute_noc_metric of f-BRS and RITM: the first click that reaches the goal, else 20."""
    rng, lines = np.random.default_rng(1), []
    for _ in range(50):
        ious = np.sort(rng.random(20) ** 0.3)
        stop = np.argmax(ious >= 0.9) + 1 if (ious >= 0.9).any() else 20
        phrase = [0.95] if rng.random() < 0.2 else [0.4, *ious[:stop].tolist()]
        lines.append({"clicks_ious": ious[:stop].tolist(), "phrase_ious": phrase})
    scores = ClickBenchmark("clicks:x", (), ()).score(lines)
    for goal in (0.8, 0.9):
        runs = [np.array(line["clicks_ious"]) >= goal for line in lines]
        needed = np.array([np.argmax(run) + 1 if run.any() else 20 for run in runs])
        assert scores[f"noc@{goal:.0%}".rstrip("%")] == pytest.approx(needed.mean())
        assert scores[f"missed@{goal:.0%}".rstrip("%")] == pytest.approx(100 * np.mean([not run.any() for run in runs]))
        of_phrase = [np.array(line["phrase_ious"]) >= goal for line in lines]
        needed = [np.argmax(run) if run.any() else 20 for run in of_phrase]  # the phrase itself is no click
        assert scores[f"phrase_noc@{goal:.0%}".rstrip("%")] == pytest.approx(np.mean(needed))
    assert scores["phrase_iou_after_0"] == pytest.approx(100 * np.mean([line["phrase_ious"][0] for line in lines]))
    third = [line["clicks_ious"][min(2, len(line["clicks_ious"]) - 1)] for line in lines]
    assert scores["iou_after_3"] == pytest.approx(100 * np.mean(third)) and scores["cases"] == 50


def test_from_a_model_to_scores_and_back(tmp_path: Path, monkeypatch) -> None:
    root, out = write_refer_dataset(tmp_path / "root"), tmp_path / "out"
    predictor = tiny_predictor(architecture={"clicks": True})
    torch.nn.init.normal_(predictor.model.fusion.clicks.weight)
    monkeypatch.setattr("pixel_sail.evaluate.clicks.MAX_CLICKS", 3)
    benchmark = runner.open_benchmark("clicks:refcoco:val", root, max_images=2)
    assert len({case.ref_id for case in benchmark.cases}) == len(benchmark.cases)
    before = predictor.images_encoded
    scores = runner.run_benchmark(predictor, benchmark, out, {})
    assert predictor.images_encoded == before + 2
    lines = [json.loads(line) for line in (out / "predictions/clicks_refcoco_val.jsonl").read_text().splitlines()]
    for case, line in zip(benchmark.cases, lines, strict=True):
        truth = decode_mask(case.mask)
        assert len(line["phrase_ious"]) == len(line["phrase_clicks"]) + 1 <= 4 >= len(line["clicks_ious"]) + 1
        x, y, positive = line["clicks_clicks"][0]
        assert positive and truth[y, x]
        last, truth = decode_mask(line["segmentation"]), decode_mask(case.mask)
        assert line["phrase_ious"][-1] == pytest.approx((last & truth).sum() / (last | truth).sum(), abs=1e-5)
        assert benchmark.result(case, line).overlap.iou == pytest.approx(line["phrase_ious"][-1], abs=1e-5)
    assert runner.score_file(out / "predictions/clicks_refcoco_val.jsonl", "clicks:refcoco:val", root, 2) == scores
    lines[0]["clicks_ious"] = [0.3, 1.4]
    (out / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadSample, match=r"clicks_ious is \[0.3, 1.4\]; expected a list of 1 to 3 IoUs"):
        runner.score_file(out / "bad.jsonl", "clicks:refcoco:val", root, 2)
    with pytest.raises(UserError, match="takes no clicks"):
        runner.run_benchmark(tiny_predictor(), benchmark, tmp_path / "none", {})
