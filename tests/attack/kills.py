"""Every long tool is killed (or asked to stop) at a random moment, and the same command repeated.

The result must be that of an undisturbed call, byte for byte, with no other file in the folder of the case: that is the
folder of the results and its parents.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from attack import outcome, process
from attack.outcome import Undamaged
from attack.targets import Command
from attack.trees import EXPERT_TRAINING, Workshop, write_config
from conftest import write_refer_dataset

TIMEOUT_S = 300.0
_SHOWN_LINES = 30
FIRST_MOMENT_S = 0.15  # after a tool has begun: before, Python is still importing the module that handles signals
_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}


@dataclass(frozen=True)
class LongTool:
    name: str
    tree: str
    command: Command
    processes: int = 1


@dataclass(frozen=True)
class Trial:
    tool: LongTool
    number: int  # signal
    after_s: float  # since the tool began
    duration_s: float  # of an undisturbed call
    problem: str  # empty if all is well
    output: str
    interrupted: bool  # False: it was over before


TOOLS = (
    LongTool("train", "train", ("tools/train.py", "tiny.yaml", "data.workers=1")),
    LongTool("train, 2 processes", "train", ("tools/train.py", "tiny.yaml"), processes=2),
    LongTool("prepare_data", "nothing", ("tools/prepare_data.py", "scenes", "--out", "made/root", "--images", 30,
             "--long-side", 96, "--workers", 2)),
    LongTool("make_shards", "train", ("tools/make_shards.py", "tiny.yaml", "--out", "made/shards", "--samples", 1000,
             "--samples-per-shard", 50, "--workers", 2)),
    LongTool("cache_expert", "expert", ("tools/cache_expert.py", "tiny.yaml", "--expert", "vit", "--batch", 2)),
    LongTool("test", "score", ("tools/test.py", "run/export", "--benchmark", "refcoco:val", "--data-root", "root",
             "--out", "made/scores", "--device", "cpu")),
    LongTool("train_expert", "expert_training", ("tools/train_expert.py", "expert.yaml")),
    LongTool("export", "score", ("tools/export.py", "run/checkpoints/step_00000003", "--out", "made/published")),
    LongTool("convert", "language_model", ("tools/convert.py", "language-model", "lm", "--out", "made/converted",
             "--max-side-px", "64")),
)  # fmt: skip


def run_kills(folder: Path, count: int, seed: int, numbers: tuple[int, ...]) -> Iterator[Trial]:
    """`count` trials, shared out over the tools; the signals take turns."""
    rng, workshop, good = random.Random(seed), Workshop(folder / "trees"), {}
    for index in range(count):
        tool = TOOLS[index % len(TOOLS)]
        if tool.name not in good:
            good[tool.name] = _undisturbed(tool, folder, workshop)
        number = numbers[(index // len(TOOLS) + index) % len(numbers)]
        moment = rng.random()
        trial = _try(tool, folder, workshop, *good[tool.name], number, moment)
        while not trial.interrupted and not trial.problem and moment > 0.05:  # it was over already
            moment /= 2
            trial = _try(tool, folder, workshop, *good[tool.name], number, moment)
        yield trial


def _try(
    tool: LongTool, folder: Path, workshop: Workshop, good: Undamaged, duration_s: float, number: int, moment: float
) -> Trial:
    first_s = 0.0 if number == signal.SIGKILL else FIRST_MOMENT_S
    after_s = first_s + moment * max(0.0, duration_s - first_s)
    with tempfile.TemporaryDirectory(dir=folder, prefix="kill_") as place:
        tree = _tree(tool, workshop, Path(place) / "tree")
        running = process.start(tool.command, tree, tool.processes, limited=False)
        running.wait_until_ready()
        time.sleep(after_s)
        running.send(number)
        stopped = running.finish(TIMEOUT_S)
        problem = _stop_problem(stopped, number)
        repeated = process.start(tool.command, tree, tool.processes, limited=False).finish(TIMEOUT_S)
        if not problem:
            problem = _result_problem(repeated, good, tree, number)
        output = f"{stopped.output}\n--- the same command again\n{repeated.output}"
        return Trial(tool, number, after_s, duration_s, problem, output, stopped.status != 0)


def _stop_problem(stopped: process.Finished, number: int) -> str:
    if stopped.status is None:
        return f"did not end within {TIMEOUT_S:.0f} s"
    if number != signal.SIGKILL and "Traceback (most recent call last)" in stopped.output:
        return "a traceback"
    if stopped.status not in (0, _STATUS[number]):
        return f"exit status {stopped.status}"
    return ""


def _result_problem(repeated: process.Finished, good: Undamaged, tree: Path, number: int) -> str:
    results, expected = outcome.results_of(tree, []).files, good.first.files
    if number != signal.SIGKILL:  # a run that is asked to stop saves at that step, and another checkpoint is kept
        both = results.keys() & expected.keys()
        results, expected = (
            {name: digest for name, digest in files.items() if name in both or "/checkpoints/step_" not in name}
            for files in (results, expected)
        )
    left = sorted(results.keys() - expected.keys())
    gone = sorted(expected.keys() - results.keys())
    steady = [name for name, digest in expected.items() if good.second.files.get(name) == digest]
    other = sorted(name for name in steady if name not in gone and results[name] != expected[name])
    problems = (("left behind", left), ("not there", gone), ("other bytes", other))
    problem = "; ".join(f"{what}: {', '.join(names[:4])}" for what, names in problems if names)
    # A call that was stopped after its last file has all its results: the next may refuse to overwrite them.
    if problem and repeated.status != 0:
        return f"the same command again ends with {repeated.status}; {problem}"
    return problem


def _undisturbed(tool: LongTool, folder: Path, workshop: Workshop) -> tuple[Undamaged, float]:
    results, seconds = [], []
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=folder, prefix="good_") as place:
            tree = _tree(tool, workshop, Path(place) / "tree")
            running = process.start(tool.command, tree, tool.processes, limited=False)
            running.wait_until_ready()
            began = time.monotonic()
            done = running.finish(TIMEOUT_S)
            assert done.status == 0, f"undisturbed {tool.name} fails:\n{done.output}"
            seconds.append(time.monotonic() - began)
            results.append(outcome.results_of(tree, []))
    return Undamaged(*results), min(seconds)


def _tree(tool: LongTool, workshop: Workshop, tree: Path) -> Path:
    """A tree in which the tool still has all its work to do."""
    if tool.tree == "nothing":
        tree.mkdir()
    elif tool.tree == "train":
        write_refer_dataset(tree / "root", train=6)
        changes = {"steps": 14, "save_every": 3, "keep_checkpoints": 2}
        write_config(tree / "tiny.yaml", train=changes, evaluate={"benchmarks": ["refcoco:val"], "every": 6})
    elif tool.tree == "expert":
        workshop.copy("cached_expert", tree)
        shutil.rmtree(tree / "cache")
        shutil.rmtree(tree / "root")
        write_refer_dataset(tree / "root", train=120)
    elif tool.tree == "score":
        workshop.copy("finished_run", tree)
        shutil.rmtree(tree / "scores")
        shutil.rmtree(tree / "root")
        write_refer_dataset(tree / "root", val=12)
    else:
        workshop.copy(tool.tree, tree)
        shutil.rmtree(tree / "expert_run", ignore_errors=True)
        if tool.tree == "expert_training":
            write_expert_config(tree / "expert.yaml", steps=4, save_every=1, log_every=1)
    return tree


def write_expert_config(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump(EXPERT_TRAINING | changes))


def kill_table(trials: list[Trial], numbers: tuple[int, ...]) -> str:
    """Markdown: a row for each tool."""
    sent = " or ".join(signal.Signals(number).name for number in numbers)
    rows = [f"| {sent} | calls | ended by it | undisturbed, s | whole and equal afterwards |", "| --- " * 5 + "|"]
    for tool in TOOLS:
        if own := [trial for trial in trials if trial.tool == tool]:
            rows.append(f"| {tool.name} | {_counts(own)} |")
    return "\n".join([*rows, f"| **all** | {_counts(trials)} |"]) + "\n"


def _counts(trials: list[Trial]) -> str:
    seconds = "" if len({trial.tool for trial in trials}) > 1 else f"{trials[0].duration_s:.1f}"
    ended, good = (sum(values) for values in zip(*((t.interrupted, not t.problem) for t in trials), strict=True))
    return f"{len(trials)} | {ended} | {seconds} | {good} of {len(trials)}"


def shown_trial(trial: Trial) -> str:
    """A bad trial for the report."""
    name = signal.Signals(trial.number).name
    head = f"[{trial.tool.name}] {name} after {trial.after_s:.2f} of {trial.duration_s:.2f} s: {trial.problem}"
    lines = [line for line in trial.output.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join([head, *(f"    | {line[:220]}" for line in lines[-_SHOWN_LINES:])])
