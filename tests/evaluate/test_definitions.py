"""docs/benchmarks.md names every benchmark and every definition; the report has the definitions of its scores."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

from pixel_sail.evaluate import runner
from pixel_sail.evaluate.benchmark import BenchmarkKind

PAGE = (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")
kinds = pytest.mark.parametrize("kind", runner.BENCHMARKS, ids=lambda kind: kind.names.prefixes[0])


def named_on_the_page(score: str) -> bool:
    """`pr@0.6` is covered by "`pr@0.5` to `pr@0.9`"."""
    return f"`{score}`" in PAGE or (score.startswith("pr@") and "`pr@0.5` to `pr@0.9`" in PAGE)


@kinds
def test_the_page_names_the_benchmark_and_its_definitions(kind: BenchmarkKind) -> None:
    assert kind.definitions, "a benchmark says what its scores are"
    assert [name for name in (*kind.names.prefixes, *kind.names.tasks) if f"`{name}`" not in PAGE] == []
    for definition in kind.definitions:
        assert [score for score in definition.scores if not named_on_the_page(score)] == []
        assert definition.source in PAGE, definition.source


@kinds
def test_a_score_of_a_benchmark_has_one_definition(kind: BenchmarkKind) -> None:
    for name in (*kind.names.prefixes, *kind.names.tasks):
        scores = [score for definition in kind.definitions if definition.of(name) for score in definition.scores]
        assert len(scores) == len(set(scores)) > 0


def test_the_report_has_the_definitions_of_its_scores_only() -> None:
    results = {
        "refcoco:val": {"ciou": 50.0, "giou": 40.0, "cases": 9},
        "refcoco:testA": {"ciou": 51.0},
        "grefcoco:val": {"giou": None},
        "my_scores": {"ciou": 1.0},
    }
    defined = runner.definitions(results)
    assert {name: set(texts) for name, texts in defined.items()} == {
        "refcoco:val": {"ciou", "giou"},
        "refcoco:testA": {"ciou"},
        "grefcoco:val": {"giou"},
    }
    assert "LAVT" in defined["refcoco:val"]["giou"] and "GRES" in defined["grefcoco:val"]["giou"]
    text = runner.definitions_text(results)
    assert max(map(len, text.splitlines())) <= runner.TABLE_COLUMNS
    first, second = text.replace("\n      ", " ").splitlines()
    assert first.startswith("  refcoco:val ciou, giou; refcoco:testA ciou: each sentence is a case;")
    assert second.startswith("  grefcoco:val giou: as in referring segmentation, with cases without a target")
