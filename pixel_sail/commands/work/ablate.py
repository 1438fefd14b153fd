"""What `pixel-sail ablate` does: the runs of a plan one after the other, and the table."""

from __future__ import annotations

import argparse
import time

from pixel_sail.interrupts import Stopped
from pixel_sail.studies.ablation.plan import Plan, Run, load_plan
from pixel_sail.studies.ablation.plots import write_plots
from pixel_sail.studies.ablation.runs import RunFailed, execute, finished_scores
from pixel_sail.studies.ablation.table import markdown, results_of, write_results
from pixel_sail.studies.plotting import why_no_plots
from pixel_sail.writable import check_writable


def run(arguments: argparse.Namespace) -> None:
    plan = load_plan(arguments.config)
    for run in plan.runs:
        run.check_same()  # before hours are spent, and before a table mixes two configs
    check_writable(plan.config.dir)
    if not arguments.table:
        run_all(load_plan(arguments.config, arguments.only), plan)
    print(write(plan))


def run_all(chosen: Plan, plan: Plan) -> None:
    """Do all runs of `chosen`; runs that other processes work on come last. `plan` has the runs of the table.

    A failed run does not stop the others. RunFailed is raised at the end, with the messages of all failed runs.
    """
    todo = [run for run in chosen.runs if finished_scores(run, plan.config) is None]
    print(f"{plan.config.dir}: {len(chosen.runs) - len(todo)} of {len(chosen.runs)} runs are finished", flush=True)
    failures: list[str] = []
    try:
        for wait in (False, True):
            todo = [run for run in todo if not attempt(run, plan, wait, failures)]
    except Stopped as stopped:
        done = sum(finished_scores(run, plan.config) is not None for run in chosen.runs)
        inside = f"{stopped}; " if str(stopped) else ""
        message = f"{inside}{done} of {len(chosen.runs)} runs are finished; the same command goes on"
        raise Stopped(stopped.number, message) from None
    if failures:
        raise RunFailed(f"{len(failures)} runs failed; repeat the command to try them again.\n" + "\n".join(failures))


def attempt(run: Run, plan: Plan, wait: bool, failures: list[str]) -> bool:
    """Do one run. Returns True if it is finished or has failed, False if another process works on it."""
    started = time.monotonic()
    print(f"{run.name}: {run.folder}/log.txt", flush=True)
    try:
        if not execute(run, plan.config, wait):
            print(f"{run.name}: another process works on it; later", flush=True)
            return False
    except RunFailed as error:
        failures.append(str(error))
        print(error, flush=True)
        return True
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"{run.name}: done in {minutes}:{seconds:02d}", flush=True)
    write(plan)
    return True


def write(plan: Plan) -> str:
    """Write the table and plots of the finished runs. Returns the table and the paths as text."""
    results, folder = results_of(plan), plan.config.dir
    write_results(results, folder)
    finished = [run for run in plan.runs if finished_scores(run, plan.config) is not None]
    plots = [] if why_no_plots() else write_plots(results, finished, folder)
    written = [folder / "ablation.md", folder / "ablation.json", *plots]
    return "\n".join([markdown(results), *filter(None, [why_no_plots()]), f"written: {', '.join(map(str, written))}"])
