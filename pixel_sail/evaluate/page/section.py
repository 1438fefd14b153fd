"""What a report says of one benchmark: scores, scores by group, an IoU histogram, and cases to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from pixel_sail.evaluate.case_result import FLAWS, CaseResult
from pixel_sail.evaluate.page import html
from pixel_sail.evaluate.page.breakdown import BINS, GroupScores, breakdown, group_scores, iou_histogram
from pixel_sail.evaluate.page.picks import EVENLY_SPACED, pick
from pixel_sail.evaluate.show import shown
from pixel_sail.serve.visualize import SheetRow, panels
from pixel_sail.types import BadSample

CASES_OF_A_SET = 12
CELL_PX = 200  # width of a shown image
SETS = (EVENLY_SPACED, "best", "worst", "right", "wrong", *FLAWS)
MAX_TEXT = 600  # characters of a text that is shown


def section(name: str, results: Sequence[CaseResult], facts: Mapping[str, Any]) -> str:
    """The HTML of a benchmark. `facts`: what the scores were made with and when, as plain values."""
    parts = [f'<section id="{escape(name)}"><h2>{escape(name)}</h2>']
    parts.append(f'<p class="pale">{escape(_in_words(facts))}</p>')
    histogram = iou_histogram(results)
    if histogram:
        labels = [f"{i / BINS:.1f}" for i in range(BINS)]
        chart = html.bars(histogram, labels, "number of cases by IoU")
        parts.append(f"<h3>Cases by IoU, where something is there</h3>{chart}")
    tables = [_group_table(grouping, groups) for grouping, groups in breakdown(results).items()]
    overall = group_scores("all", results)
    if overall.flaws:
        tables.append(_flaw_table(overall))
    if tables:
        parts.append(f'<div class="columns">{"".join(tables)}</div>')
    picked = [(_case(results[i]), sets) for i, sets in pick(results, CASES_OF_A_SET).items()]
    return "\n".join([*parts, cards(picked, SETS), "</section>"])


def _in_words(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, ""))


def _group_table(grouping: str, groups: Sequence[GroupScores]) -> str:
    columns = [
        (title, values)
        for title, values in (
            ("cIoU", [group.ciou for group in groups]),
            ("gIoU", [group.giou for group in groups]),
            ("right", [group.right for group in groups]),
        )
        if any(value is not None for value in values)
    ]
    head = [grouping, "cases", *(title for title, _ in columns)]
    rows = [
        [group.name, f"{group.cases:,}", *(_percentage(values[i]) for _, values in columns)]
        for i, group in enumerate(groups)
    ]
    return html.table(head, rows)


def _flaw_table(overall: GroupScores) -> str:
    rows = [[flaw, _percentage(share)] for flaw, share in overall.flaws.items()]
    meanings = html.details("what these mean", html.listing([(flaw, FLAWS[flaw]) for flaw in overall.flaws]))
    return f"<div>{html.table(['flaw', '% of cases'], rows)}{meanings}</div>"


def cards(shown: Sequence[tuple[str, Sequence[str]]], order: Sequence[str]) -> str:
    """Cases to look at. `shown`: the HTML of each and the sets that it is in; `order`: the sets, each with a button."""
    used = [name for name in order if any(name in sets for _, sets in shown)]
    buttons = "".join(f'<button type="button" data-set="{name}">{name}</button>' for name in used)
    inner = "\n".join(
        f'<div class="card" data-sets="{escape(json.dumps(list(sets)))}">{case}</div>' for case, sets in shown
    )
    return f'<nav aria-label="which cases">{buttons}</nav><div class="cards">{inner}</div>'


def images_of(result: CaseResult) -> list[tuple[str, Image.Image]]:
    """(what it shows, image) of a case: image, target and prediction, or one image beside which texts stand.

    Empty where the image cannot be shown: a file of predictions is scored without any.
    """
    try:
        row = shown(result)
    except BadSample:
        return []
    if isinstance(row, SheetRow):
        return panels(row, CELL_PX)
    width = min(row.image.width, 2 * CELL_PX)
    return [("", row.image.resize((width, max(1, round(row.image.height * width / row.image.width)))))]


def figures_of(images: Sequence[tuple[str, Image.Image]], result: CaseResult) -> str:
    """The HTML of what `images_of` gave."""
    if not images:
        return f'<p class="pale">the image cannot be shown: {text(result.image.name)}</p>'
    return "".join(html.figure(image, note) for note, image in images)


def verdict(result: CaseResult) -> str:
    """Right or wrong, and the flaw of the mask; HTML."""
    mark = {True: '<b class="right">right</b>', False: '<b class="wrong">wrong</b>', None: ""}[result.right]
    flaw = result.overlap.flaw if result.overlap else None
    return f"{mark}: {escape(flaw)}" if flaw else mark


def text(value: str) -> str:
    """A text as HTML, cut if it is very long."""
    return escape(value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]} ...")


def _case(result: CaseResult) -> str:
    figures = figures_of(images_of(result), result)
    lines = [f"<b>{text(result.question)}</b>"]
    if result.answer and (result.right_answer or result.overlap is None):
        lines.append(f'<span class="pale">model:</span> {text(result.answer)}')
    if result.right_answer:
        lines.append(f'<span class="pale">right:</span> {text(result.right_answer)}')
    lines.append(verdict(result))
    return f'<div class="images">{figures}</div>{"".join(f"<p>{line}</p>" for line in lines if line)}'


def _percentage(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
