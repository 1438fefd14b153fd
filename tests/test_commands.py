"""pixel-sail: its subcommands, their help, and the doors in tools/."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from forked import fork

from pixel_sail.command import importing, tool
from pixel_sail import released
from pixel_sail.commands import attend_segment, bench, convert, data, demo, front, grounding_emergence, predict, shards
from pixel_sail.commands import test as scoring
from pixel_sail.commands.work import convert as conversion
from pixel_sail.commands.work.grounding_emergence import READERS

HEAVY = {"torch", "transformers", "deepspeed", "numpy", "pydantic", "scipy", "PIL"}
# Prints the help of each subcommand in a fork of its own; then a line: {subcommand: [exit status, all modules]}.
ALL_HELPS = """
import contextlib, io, json, os, sys
from pixel_sail.commands.front import SUBCOMMANDS, main

def help_of(name, pipe):
    sys.argv[1:], printed = [name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main()
    except SystemExit as ended:
        os.write(pipe, json.dumps([ended.code, printed.getvalue(), sorted(sys.modules)]).encode())
    os._exit(0)

results = {}
for name in SUBCOMMANDS:
    read, write = os.pipe()
    if os.fork() == 0:
        help_of(name, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        results[name] = json.load(pipe)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str, list[str]]]:
    """Subcommand -> exit status, text, imported modules of its --help."""
    done = subprocess.run([sys.executable, "-c", ALL_HELPS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", front.SUBCOMMANDS)
def test_help_answers_before_anything_heavy_is_imported(name: str, helps) -> None:
    status, text, modules = helps[name]
    assert status == 0 and text.startswith(f"usage: pixel-sail {name} ")
    assert not HEAVY & set(modules)


def test_each_subcommand_has_a_module_and_each_tool_is_a_door_to_one() -> None:
    modules = {path.stem for path in Path(front.__file__).parent.glob("*.py")} - {"__init__", "front"}
    assert modules == {name.replace("-", "_") for name in front.SUBCOMMANDS}
    doors = [path.read_text() for path in (REPOSITORY / "tools").glob("*.py")]
    opened = [re.search(r"^from pixel_sail\.commands\.(\w+) import main$", door, re.MULTILINE)[1] for door in doors]
    assert sorted(opened) == sorted(modules - {"config"})
    assert all(door.endswith('\n\nif __name__ == "__main__":\n    main()\n') for door in doors)


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pixel-sail", *arguments])
    front.main()


def test_the_front_door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run_here(monkeypatch)
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in front.SUBCOMMANDS)
    assert max(map(len, listed.splitlines())) <= 100
    with pytest.raises(SystemExit) as ended:
        run_here(monkeypatch, "trian")
    assert ended.value.code == 2 and "no subcommand 'trian'; there are\n  train " in capsys.readouterr().err
    run_here(monkeypatch, "config", "train.lora.rank")
    assert capsys.readouterr().out == "train.lora.rank: int = 16\n    of the adapters\n"


@pytest.mark.parametrize("command", ["predict", "demo"])
def test_without_the_small_model_a_checkpoint_is_asked_for(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(released, "RELEASED", tmp_path / "no clone")
    arguments = {"predict": ["--image", "a.jpg", "--text", "mug", "--out", "out"], "demo": []}[command]
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit, match="2"):
        {"predict": predict, "demo": demo}[command]._parse()
    assert "give a checkpoint: the small model that comes along is not at" in capsys.readouterr().err


def test_it_is_installed_and_is_the_package_itself() -> None:
    assert '"pixel-sail = pixel_sail.commands.front:main"' in (REPOSITORY / "setup.py").read_text()
    done = subprocess.run([sys.executable, "-m", "pixel_sail", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("pixel-sail 0.") and done.returncode == 0


def test_what_help_lists_is_what_there_is() -> None:
    """Help does not import the modules that know it."""
    from pixel_sail import scenes
    from pixel_sail.bench.step import PRESETS
    from pixel_sail.data.sources import gcg, grefer, perbench, refer
    from pixel_sail.data.write_shards import MAX_SAMPLES
    from pixel_sail.evaluate import kinds, runner
    from pixel_sail.evaluate.gallery import MAX_SHOWN
    from pixel_sail.evaluate.pixfoundation.benchmark import KINDS
    from pixel_sail.studies.attend_segment import baseline, segmenters
    from pixel_sail.studies.attend_segment.adapters import FAMILIES

    assert (data.LONG_SIDES_PX, data.STYLES) == (scenes.LONG_SIDES_PX, scenes.STYLES)
    assert tuple(PRESETS) == bench.PRESETS and shards.MAX_SAMPLES == MAX_SAMPLES and scoring.MAX_SHOWN == MAX_SHOWN
    assert (tuple(conversion.BASES), tuple(conversion.DTYPES)) == (convert.BASES, convert.DTYPES)
    assert attend_segment.FAMILIES == FAMILIES and attend_segment.SEGMENTERS == segmenters.KINDS
    assert (attend_segment.PROMPT, attend_segment.FIELDS) == (baseline.PROMPT, baseline.FIELDS)
    assert attend_segment.BENCHMARKS == grounding_emergence.BENCHMARKS == tuple(READERS) == KINDS
    assert tuple(kind.names for kind in runner.BENCHMARKS) == kinds.KINDS
    assert kinds.REFERRING.prefixes == (*refer.NAMES, grefer.NAME) and kinds.PIXFOUNDATION.prefixes == KINDS
    assert kinds.PERBENCH.tasks == tuple(f"perbench:{task}" for task in perbench.FILES)
    assert f"{', '.join(gcg.NAMES)} (default {gcg.GRAND_F})" in kinds.GCG.help


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_during_the_imports_ends_it_quietly(number: int, status: int, tmp_path: Path) -> None:
    def main() -> None:
        try:
            with importing():
                os.kill(os.getpid(), number)
                time.sleep(60)
        except BaseException:  # as a library might
            print("swallowed", flush=True)

    assert fork(main, tmp_path / "log").finish() == (status, "")


@pytest.mark.parametrize(
    ("terminal", "rank", "quiet"),
    [(True, "0", None), (True, "1", "1"), (False, "0", "1")],
    ids=["shown", "rank", "file"],
)
def test_bars_of_others_are_for_one_terminal(terminal: bool, rank: str, quiet: str | None, monkeypatch) -> None:
    """transformers' bar of loaded weights follows this variable."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "to be removed again")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    tool(lambda: None)()
    assert os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == quiet
