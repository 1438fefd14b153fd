"""The loss of cIoU by cause: every cause in closed form, shares that add up, and the tool on datasets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, write_refer_dataset
from in_process import call_main, load_tool

from pixel_sail.data.masks import encode_mask
from pixel_sail.evaluate.referring import ReferringBenchmark
from pixel_sail.studies.mask_errors import CAUSES, MaskErrors, contour, mask_errors, table

SIZE = (100, 100)  # the diagonal is 141 px; an edge is 2 % of it: 3 px on either side of a contour
TARGET, NEIGHBOUR = (slice(20, 60), slice(20, 60)), (slice(70, 90), slice(60, 90))


def drawn(*regions: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    for region in regions:
        mask[region] = True
    return mask


def errors_of(prediction: np.ndarray | None) -> MaskErrors:
    errors, objects = MaskErrors(), [encode_mask(drawn(region)) for region in (TARGET, NEIGHBOUR)]
    errors.update(None if prediction is None else encode_mask(prediction), objects[0], objects)
    return errors


def lost(**pixels: int) -> dict[str, int]:
    return dict.fromkeys(CAUSES, 0) | pixels


def test_every_cause_in_closed_form() -> None:
    shifted = errors_of(np.roll(drawn(TARGET), 2, axis=1))  # two extra columns of 40 px, two missing
    assert (shifted.right, shifted.lost_px) == (1, lost(edge=160))
    assert shifted.result()["ciou"] == shifted.result()["right_ciou"] == pytest.approx(100 * 1520 / 1680)
    # Three of the five columns on each side are near the contour. In the two other missing columns, the top and the
    # bottom three rows are near it too.
    further = errors_of(np.roll(drawn(TARGET), 5, axis=1))
    assert further.lost_px == lost(edge=240 + 12, ground=80, inside=80 - 12)
    beside = drawn(TARGET, (slice(75, 85), slice(65, 75)), (slice(5, 10), slice(80, 85)))  # 100 px and 25 px extra
    beside[36:42, 36:42] = False
    assert errors_of(beside).lost_px == lost(also=100, ground=25, inside=36)
    assert errors_of(drawn(TARGET)).lost_px == lost()


def test_another_object_or_no_mask_loses_the_whole_case() -> None:
    half = drawn(NEIGHBOUR, (slice(20, 30), slice(20, 60)))  # all of the neighbour and a quarter of the target
    wrong = errors_of(half)
    assert (wrong.cases, wrong.right, wrong.lost_px) == (1, 0, lost(other=1600 + 600 - 400))
    for nothing in (None, drawn()):
        assert (errors_of(nothing).right, errors_of(nothing).lost_px) == (0, lost(other=1600))
    assert errors_of(drawn((slice(0, 4), slice(0, 4)))).lost_px == lost(other=1616)  # it overlaps neither object


def test_the_border_of_the_image_is_not_a_contour() -> None:
    columns = np.flatnonzero(contour(drawn((slice(0, 100), slice(0, 50)))).all(axis=0))
    assert columns.tolist() == [47, 48, 49, 50, 51, 52]
    assert contour(drawn((slice(0, 100), slice(0, 50)))).sum() == 600
    assert not contour(np.ones(SIZE, dtype=bool)).any()


def test_losses_and_ciou_add_up_to_100() -> None:
    rng, errors = np.random.default_rng(0), MaskErrors()
    for _ in range(40):
        masks = [drawn(*(_box(rng) for _ in range(2))) for _ in range(4)]
        codes = [encode_mask(mask) for mask in masks]
        errors.update(encode_mask(masks[0] ^ drawn(_box(rng))), codes[int(rng.integers(2))], codes)
    values = errors.result()
    assert values["ciou"] + sum(values[cause] for cause in CAUSES) == pytest.approx(100)
    assert 0 < errors.right < errors.cases == 40 and all(values[cause] > 0 for cause in CAUSES)
    assert values["right_ciou"] > values["ciou"]


def _box(rng: np.random.Generator) -> tuple[slice, slice]:
    top, left, height, width = (int(rng.integers(8, 45)) for _ in range(4))
    return slice(top, top + height), slice(left, left + width)


def test_the_tool_on_a_refer_dataset(tmp_path: Path) -> None:
    root = write_refer_dataset(tmp_path / "root")
    benchmark = ReferringBenchmark.read(root, "refcoco:val")
    moved = {case.ref_id: case.mask for case in benchmark.cases}
    first, *rest = dict.fromkeys(moved)
    moved[first] = moved[rest[0]]  # for this model its two sentences mean the second object
    lines = [
        {"ref_id": c.ref_id, "sent_id": c.sent_id, "text": "[SEG]", "segmentation": moved[c.ref_id]}
        for c in benchmark.cases
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores, by_group = benchmark.score(lines), mask_errors(benchmark.cases, lines, root, "refcoco:val")
    assert set(by_group) == {"all"}  # no kinds without scenes.json
    errors = by_group["all"]
    assert errors.result()["ciou"] == pytest.approx(scores["ciou"]) and errors.cases == scores["cases"] == 18
    assert (errors.right, set(c for c, pixels in errors.lost_px.items() if pixels)) == (16, {"other"})
    command = [sys.executable, str(REPOSITORY / "tools/mask_errors.py"), str(tmp_path / "p.jsonl")]
    options = ["--benchmark", "refcoco:val", "--data-root", str(root)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.stdout == table(by_group) + "\n" and done.returncode == 0


def test_kinds_of_expressions_and_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = [sys.executable, str(REPOSITORY / "tools/prepare_data.py"), "scenes", "--out", str(tmp_path / "scenes")]
    subprocess.run([*make, "--images", "20", "--seed", "0", "--long-side", "64"], check=True, capture_output=True)
    benchmark = ReferringBenchmark.read(tmp_path / "scenes", "refcoco:val")
    lines = [{"ref_id": c.ref_id, "sent_id": c.sent_id, "segmentation": c.mask} for c in benchmark.cases]
    by_group = mask_errors(benchmark.cases, lines, tmp_path / "scenes", "refcoco:val")
    queries = json.loads((tmp_path / "scenes/scenes.json").read_text())["queries"]["refcoco"]
    kinds = [queries[case.sent_id]["type"] for case in benchmark.cases]
    assert {name: errors.cases for name, errors in by_group.items()} == {
        "all": len(kinds),
        **{kind: kinds.count(kind) for kind in kinds},
    }
    assert all(errors.result()["ciou"] == 100 for errors in by_group.values())
    tool, scenes = load_tool("mask_errors"), tmp_path / "scenes"
    with pytest.raises(SystemExit, match=r"^error: no predictions file .*none\.jsonl"):
        call_main(monkeypatch, tool, tmp_path / "none.jsonl", "--benchmark", "refcoco:val", "--data-root", scenes)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SystemExit, match="are missing"):
        call_main(monkeypatch, tool, tmp_path / "empty.jsonl", "--benchmark", "refcoco:val", "--data-root", scenes)
    general = ReferringBenchmark.read(tmp_path / "scenes", "grefcoco:val")
    lines = [{"ref_id": c.ref_id, "sent_id": c.sent_id, "segmentation": c.mask} for c in general.cases]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match="mask errors need refcoco or refcoco\\+ or refcocog"):
        call_main(monkeypatch, tool, tmp_path / "g.jsonl", "--benchmark", "grefcoco:val", "--data-root", scenes)
