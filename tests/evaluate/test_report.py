"""report.html and the comparison of two models: counts and scores by hand, and the pages in a real browser."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_refer_dataset
from PIL import Image
from test_scoring import MADE_WITH, Colours, Knowing, Silent
from tiny_export import save_export
from tiny_predictor import tiny_scoring_predictor
from warm import run_tool

from pixel_sail.data.masks import encode_mask
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.case_result import CaseResult, mask_result, size_group
from pixel_sail.evaluate.page.breakdown import breakdown, group_scores, iou_histogram
from pixel_sail.evaluate.page.compare import differences
from pixel_sail.evaluate.page.picks import EVENLY_SPACED, pick
from pixel_sail.evaluate.topics import topic


def _mask(left: int, right: int, height: int = 10) -> dict:
    pixels = np.zeros((20, 100), dtype=bool)
    pixels[:height, left:right] = True
    return encode_mask(pixels)


def _case(masks: list, target: dict | None, image: str = "a.jpg", **groups: str) -> CaseResult:
    return mask_result(Path(image), "the thing", masks, target, groups)


@pytest.mark.parametrize(
    "masks, target, iou, flaw",
    [
        ([_mask(0, 10)], _mask(0, 10), 1, None),
        ([_mask(0, 6), _mask(4, 10)], _mask(0, 10), 1, None),  # united
        ([_mask(5, 15)], _mask(0, 10), 5 / 15, None),  # half of it lies on the target: an inexact edge
        ([_mask(6, 16)], _mask(0, 10), 4 / 16, "wrong object"),
        ([_mask(0, 30)], _mask(0, 10), 10 / 30, "wrong object"),
        ([None], _mask(0, 10), 0, "empty mask"),
        ([_mask(0, 0)], _mask(0, 10), 0, "empty mask"),
        ([_mask(0, 10)], None, 0, "false alarm"),
        ([None], None, 1, None),
    ],
)
def test_a_mask_is_judged_as_by_hand(masks, target, iou, flaw):
    result = _case(masks, target)
    assert result.overlap.iou == pytest.approx(iou) and result.overlap.flaw == flaw
    assert result.right == (iou >= 0.5)


def test_few_pixels_count_as_none():
    assert mask_result(Path("a"), "", [_mask(0, 4)], None, {}, min_pixels=50).right
    assert not mask_result(Path("a"), "", [_mask(0, 5)], None, {}, min_pixels=50).right


def test_scores_by_group_are_those_of_the_benchmark(dataset, tmp_path):
    """All cases together give the scores of metrics.json; the groups add up to them."""
    for name in ("refcoco:val", "grefcoco:val"):
        benchmark = runner.open_benchmark(name, dataset)
        scores = runner.run_benchmark(Knowing(benchmark, shift=4), benchmark, tmp_path, MADE_WITH)
        lines = runner.checked_lines(tmp_path / "predictions" / f"{name.replace(':', '_')}.jsonl", benchmark)
        results = [benchmark.result(*pair) for pair in zip(benchmark.cases, lines, strict=True)]
        overall = group_scores("all", results)
        assert overall.ciou == pytest.approx(scores["ciou"]) and overall.giou == pytest.approx(scores["giou"])
        if "pr@0.5" in scores:
            assert overall.right == pytest.approx(scores["pr@0.5"])
        for groups in breakdown(results).values():
            assert sum(group.cases for group in groups) == scores["cases"]
            assert sum(group.giou * group.cases for group in groups) == pytest.approx(scores["giou"] * scores["cases"])
        if name == "grefcoco:val":
            meant = {group.name: group for group in breakdown(results)["objects meant"]}
            assert meant["0"].cases == scores["no_target_cases"] and meant["0"].right == scores["n_acc"]


def test_histogram_and_sizes():
    results = [_case([_mask(0, right)], _mask(0, 100)) for right in (0, 9, 10, 55, 99, 100)]
    assert iou_histogram([*results, _case([None], None)]) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert iou_histogram([CaseResult(Path("a"), "?", "red")]) == []
    sizes = [size_group(target) for target in (None, _mask(0, 3), _mask(0, 4), _mask(0, 19), _mask(0, 20))]
    assert [size.split()[0] for size in sizes] == ["nothing", "small", "medium", "medium", "large"]


def test_the_shown_cases_are_the_best_the_worst_and_those_with_flaws():
    ious = np.random.default_rng(0).permutation(60)
    results = [_case([_mask(0, iou)], _mask(0, 100), f"{i}.jpg") for i, iou in enumerate(ious)]
    results += [_case([_mask(50, 90)], _mask(0, 10), f"wrong{i}.jpg") for i in range(5)]
    results += [_case([_mask(0, 9)], None, "false.jpg")] * 3
    sets = pick(results, 4)
    of = lambda name: [i for i, names in sets.items() if name in names]  # noqa: E731
    assert {ious[i] for i in of("best")} == {56, 57, 58, 59}
    assert all(results[i].overlap.iou == 0 for i in of("worst")) and len(of("worst")) == 4
    assert len(of("wrong object")) == 4 and all(results[i].overlap.flaw == "wrong object" for i in of("wrong object"))
    assert len(of("false alarm")) == 3 and of(EVENLY_SPACED) == [0, 17, 34, 51]
    assert len({results[i].image for i in of("best")}) == 4


@pytest.mark.parametrize(
    "text, expected",
    [
        ("How many mugs are red?", "count"),
        ("the second mug from the left", "order"),
        ("the largest red thing", "comparison"),
        ("the dog next to the chair", "relation"),
        ("man on the left", "place"),
        ("What colour is <Prompt0>?\nA. left\nB. red", "colour"),
        ("the mug", "other"),
    ],
)
def test_topics(text, expected):
    assert topic(text) == expected


def _score(dataset: Path, model, out: Path, name: str) -> Path:
    """A predictions file of a stand-in for a model."""
    benchmark = runner.open_benchmark(name, dataset)
    runner.run_benchmark(model(benchmark), benchmark, out, MADE_WITH)
    return out / "predictions" / f"{name.replace(':', '_')}.jsonl"


def _report(dataset: Path, file: Path, name: str, out: Path) -> str:
    call = ["tools/test.py", "--predictions", str(file), "--benchmark", name, "--data-root", str(dataset)]
    status, printed = run_tool(*call, "--out", str(out))
    assert status == 0, printed
    assert max(map(len, printed.split("definitions")[0].splitlines())) <= 100
    return (out / "report.html").read_text()


def test_reports_of_several_calls_are_one_page_that_fetches_nothing(dataset, tmp_path):
    general = _score(dataset, lambda benchmark: Silent(), tmp_path / "g", "grefcoco:val")
    plain = _score(dataset, lambda benchmark: Colours(), tmp_path / "p", "refcoco:val")
    _report(dataset, general, "grefcoco:val", tmp_path / "scores")
    page = _report(dataset, plain, "refcoco:val", tmp_path / "scores")
    assert page.count("<section") == 2 and 'id="refcoco:val"' in page and 'id="grefcoco:val"' in page
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert set(metrics["runs"]) == {"refcoco:val", "grefcoco:val"} and metrics["runs"]["refcoco:val"]["date"] in page
    for scores in metrics["benchmarks"].values():
        assert f"giou {scores['giou']:.1f}" in page
    assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_a_file_is_scored_without_its_images(dataset, tmp_path):
    """Two images are gone and one has another size: the scores are those of before, and the page says so."""
    file = _score(dataset, lambda benchmark: Colours(), tmp_path, "refcoco:val")
    root = tmp_path / "bare"
    shutil.copytree(dataset, root)
    images = sorted({case.image for case in runner.open_benchmark("refcoco:val", root).cases})
    images[0].unlink()
    images[1].unlink()
    Image.new("RGB", (31, 17)).save(images[2])
    page = _report(root, file, "refcoco:val", tmp_path / "scores")
    assert "<figure>" not in page and f"the image cannot be shown: {images[0].name}" in page
    _report(dataset, file, "refcoco:val", tmp_path / "whole")
    without, whole = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("scores", "whole"))
    assert without["benchmarks"] == whole["benchmarks"]


def test_words_of_a_model_are_text_and_nothing_else(dataset, tmp_path):
    file = _score(dataset, lambda benchmark: Colours(), tmp_path, "refcoco:val")
    attack = "</p><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
    benchmark = runner.open_benchmark("refcoco:val", dataset)
    cases = [replace(case, sentence=attack) for case in benchmark.cases]
    from pixel_sail.evaluate.page.section import section

    lines = runner.checked_lines(file, benchmark)
    html = section(
        "refcoco:val", [benchmark.result(*pair) for pair in zip(cases, lines, strict=True)], {attack: attack}
    )
    assert "<script>" not in html and "<img src=x" not in html and "&lt;script&gt;" in html


def test_differences_of_two_models():
    rng = np.random.default_rng(0)
    ends = rng.integers(5, 95, (40, 3))
    first = [_case([_mask(0, end)], _mask(0, 100), f"{i}.jpg") for i, row in enumerate(ends) for end in row]
    second = [_case([_mask(0, end + 5)], _mask(0, 100), f"{i}.jpg") for i, row in enumerate(ends) for end in row]
    for found in differences(first, first):
        assert (found.first, found.low, found.high) == (found.second, 0, 0) and not found.is_clear
    ciou, giou, right = differences(first, second)
    assert (ciou.score, giou.score, right.score) == ("cIoU", "gIoU", "right")
    # every case gains exactly 5 points, so every resample does
    assert giou.second - giou.first == pytest.approx(5) and giou.low == pytest.approx(5) == pytest.approx(giou.high)
    assert ciou.low == pytest.approx(5) and ciou.is_clear
    assert right.first == pytest.approx(100 * (ends >= 50).mean())
    assert right.second == pytest.approx(100 * (ends >= 45).mean())


def test_intervals_are_those_of_a_plain_bootstrap_over_images():
    rng = np.random.default_rng(1)
    ends = rng.integers(5, 95, (2, 30, 2))
    models = [
        [_case([_mask(0, end)], _mask(0, 100), f"{i}.jpg") for i, row in enumerate(model) for end in row]
        for model in ends
    ]
    (giou,) = [found for found in differences(*models) if found.score == "gIoU"]
    gain = (ends[1] - ends[0]).mean(1)
    plain = [gain[rng.integers(0, 30, 30)].mean() for _ in range(20_000)]
    assert [giou.low, giou.high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.6)
    assert not giou.is_clear


@pytest.mark.parametrize(
    ("pixels", "group"),
    [(0, "tiny"), (99, "tiny"), (100, "small"), (199, "small"), (200, "medium"), (999, "medium"), (1000, "large")],
)
def test_sizes_by_their_share_of_the_image(pixels, group):
    mask = np.zeros((100, 100), dtype=bool)
    mask.flat[:pixels] = True
    assert size_group(encode_mask(mask)).split(" ")[0] == group


def test_compare_tool(dataset, tmp_path):
    for folder, model in (("a", lambda benchmark: Silent()), ("b", Knowing)):
        for name in ("refcoco:val", "grefcoco:val"):
            file = _score(dataset, model, tmp_path / f"made_{folder}", name)
            _report(dataset, file, name, tmp_path / folder)
            shutil.copytree(file.parent, tmp_path / folder / "predictions", dirs_exist_ok=True)
    call = ["tools/compare.py", str(tmp_path / "a"), str(tmp_path / "b"), "--data-root", str(dataset)]
    status, printed = run_tool(*call, "--out", str(tmp_path / "pages" / "compare.html"))
    assert status == 0, printed
    assert re.search(r"refcoco:val +gIoU +0\.0 +100\.0 +\+100\.0 +\+100\.0 to \+100\.0$", printed, re.MULTILINE)
    assert "<section>" in (tmp_path / "pages" / "compare.html").read_text()
    status, printed = run_tool(*call, "--by", "object size", "--benchmark", "refcoco:val")
    sizes = re.findall(r"^  (\w+) \(.*\) +cIoU +0\.0 +100\.0", printed, re.MULTILINE)
    assert status == 0 and sizes == [size for size in ("tiny", "small", "medium", "large") if size in sizes] != []
    status, printed = run_tool(*call, "--by", "colour")
    assert status == 1 and "--by colour: no benchmark tells such groups apart: refcoco:val has " in printed
    assert "; grefcoco:val has " in printed and "object size" in printed
    status, printed = run_tool(*call, "--by", "objects meant")  # of grefcoco alone
    groups = re.findall(r"^  (\d+) +gIoU", printed, re.MULTILINE)
    assert status == 0 and "0" in groups and re.search(r"^refcoco:val +gIoU", printed, re.MULTILINE)
    assert re.search(r"^not divided by objects meant, .*: refcoco:val$", printed, re.MULTILINE)
    status, printed = run_tool(*call, "--benchmark", "perbench")
    assert status == 1 and "A was not scored on perbench:caption, perbench:mcq, perbench:vtres" in printed
    metrics = tmp_path / "b" / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"made_with": {"max_images": 1}}))
    status, printed = run_tool(*call)
    assert status == 1 and "score both in the same way" in printed


def _browser():
    """Playwright's Chromium of Debian; skips with the reason where either is absent."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright (pip install playwright)")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium (Debian's package chromium)")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    return sync_playwright(), {"executable_path": path, "args": options}


def test_the_gallery_filters_in_a_browser(dataset, tmp_path):
    playwright, options = _browser()
    file = _score(dataset, lambda benchmark: Colours(), tmp_path, "refcoco:val")
    _report(dataset, file, "refcoco:val", tmp_path / "scores")
    with playwright as running:
        browser = running.chromium.launch(**options)
        page, errors, asked = browser.new_page(), [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "scores" / "report.html").as_uri())
        shown = lambda: page.locator(".card:visible").count()  # noqa: E731
        counts = {}
        for button in page.locator("section button").all():
            button.click()
            name = button.inner_text()
            counts[name] = shown()
            assert all(
                name in json.loads(card.get_attribute("data-sets")) for card in page.locator(".card:visible").all()
            )
        assert counts["evenly spaced"] == 12 and counts["worst"] >= 1 and len(counts) >= 4
        widths = page.eval_on_selector_all("figure img", "images => images.map(image => image.naturalWidth)")
        assert widths and min(widths) > 0
        browser.close()
    assert not errors and all(url.startswith(("file:", "data:")) for url in asked)


def test_a_report_shows_the_least_presence_in_force(tmp_path: Path) -> None:
    root, model = (
        write_refer_dataset(tmp_path / "root", 1, 1),
        save_export(tmp_path / "model", tiny_scoring_predictor()),
    )
    call = ["tools/test.py", model, "--data-root", root, "--benchmark", "refcoco:val"]
    for option, expected in ((["--min-presence", 0.25], 0.25), ([], None)):
        out = tmp_path / str(expected)
        run_tool(*call, *option, "--out", out)
        settings = json.loads((out / "metrics.json").read_text())["made_with"]["settings"]
        assert settings.get("min_presence") == expected and "zoom" not in settings
        assert ("min_presence 0.25" in (out / "report/refcoco_val.html").read_text()) == bool(expected)
