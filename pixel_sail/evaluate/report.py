"""metrics.json: the scores of one model, added benchmark by benchmark, also by several calls."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from pixel_sail.config import code_version
from pixel_sail.durable import differences, few
from pixel_sail.errors import UserError
from pixel_sail.evaluate import perbench, runner
from pixel_sail.evaluate.topics import is_drawn
from pixel_sail.weights.publish import read_metrics

DRAWN = "drawn scenes"  # the embedded dataset has the files of RefCOCO and others, and other images


class Report:
    """The scores in `<out>/metrics.json`. What is there already stays, if it was made with the same."""

    def __init__(
        self,
        out: Path | None,
        checkpoint: Path | None,
        made_with: dict[str, Any],
        names: Collection[str],
        data_root: Path,
    ) -> None:
        """`out`: None keeps the scores in memory. `made_with`: what they depend on, as plain JSON values.

        `names`: the benchmarks that will be added. Raises UserError if scores of others are there and were made with
        anything else.
        """
        self.path = None if out is None else out / runner.METRICS
        self._checkpoint = checkpoint
        self._made_with = {name: value for name, value in made_with.items() if name != "checkpoint"}
        self.scores: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}  # benchmark -> when, by which code and on which data it was scored
        self._data = {"data": DRAWN} if is_drawn(data_root) else {}
        if self.path is None or not self.path.exists():
            return
        earlier = read_metrics(self.path)
        changes = self._changes(earlier)
        if not changes:
            self.scores, self.runs = earlier["benchmarks"], earlier.get("runs", {})
            return
        others = [name for name in earlier["benchmarks"] if name not in {*names, perbench.KIND}]
        if others:
            raise UserError(
                f"{self.path} has the scores of {', '.join(others)}, which were made with something else: "
                f"{few(changes)}; give another --out, or delete that file if they are not needed"
            )

    def add(self, name: str, scores: dict[str, Any]) -> None:
        """Writes the scores of a benchmark, and the overall scores of PerBench once its tasks are there."""
        self.scores = {**self.scores, name: scores}
        self.scores.pop(perbench.KIND, None)
        overall = perbench.overall(self.scores)
        if overall is not None:
            self.scores[perbench.KIND] = overall
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.runs = {**self.runs, name: {"date": now, "commit": code_version(), **self._data}}
        if self.path is not None:
            folder = self.path.parent
            runner.write_metrics(folder, self._checkpoint, self.scores, made_with=self._made_with, runs=self.runs)

    def facts(self, name: str) -> dict[str, Any]:
        """When, by which code and with which settings a benchmark was scored, for people to read."""
        run, settings = self.runs[name], self._made_with.get("settings", {})
        return {
            "scored": run["date"],
            "commit": (run["commit"] or "")[:10],
            **({"data": run["data"]} if "data" in run else {}),
            "first images": self._made_with.get("max_images"),
            **{name: value for name, value in settings.items() if value != "none"},
        }

    def _changes(self, earlier: dict[str, Any]) -> list[str]:
        """In words, how what the earlier scores were made with differs; empty if it does not."""
        before = earlier.get("made_with")
        if not isinstance(before, dict):
            return ["it does not say what"]
        checkpoint = None if self._checkpoint is None else str(self._checkpoint)
        now = {"checkpoint": checkpoint, **self._made_with}
        return differences({"checkpoint": earlier.get("checkpoint"), **before}, now)
