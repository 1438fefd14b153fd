"""The process that runs pycocoevalcap and Java: the digits of before, and every way in which it can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixel_sail.evaluate import captions

pytestmark = pytest.mark.skipif(captions.missing_requirement() is not None, reason=str(captions.missing_requirement()))
PREDICTIONS, REFERENCES = ["a red mug", "where dogs é run"], [["a red mug on"], ["the dogs run"]]
METEOR, CIDER = 38.189310760961625, 365.7569799542646  # as pycocoevalcap, called in the process itself, gave them
JAVA = """#!{python}
import os, sys, time
open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
is_meteor = any("meteor" in argument for argument in sys.argv[1:])
{body}
"""
TOKENIZE = """
if not is_meteor:
    print(open(sys.argv[-1]).read().lower(), end="")
    sys.exit()
"""


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program called java in front; it writes its process ids to tmp_path/pids."""

    def put(body: str) -> None:
        file = tmp_path / "bin/java"
        file.parent.mkdir()
        file.write_text(JAVA.format(python=sys.executable, pids=str(tmp_path / "pids"), body=body))
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(captions, "START_S", 60.0)
    monkeypatch.setattr(captions.tempfile, "tempdir", None)
    return put


def alive(tmp_path: Path) -> list[int]:
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and state(pid) != "Z"]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_digits_of_before_in_a_german_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With commas asked for in every way that Java knows, and without a trace beside the package's jars."""
    import pycocoevalcap

    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-Duser.language=de -Duser.country=DE")
    folders = [folder for folder, _, _ in os.walk(next(iter(pycocoevalcap.__path__))) if "__pycache__" not in folder]
    before = [os.stat(folder).st_mtime_ns for folder in folders]
    scores = captions.caption_scores(PREDICTIONS, REFERENCES, ("meteor", "cider"))
    assert scores == {"meteor": METEOR, "cider": CIDER}
    assert [os.stat(folder).st_mtime_ns for folder in folders] == before


def test_java_that_does_not_start(tmp_path: Path, java) -> None:
    java("sys.exit('Error: could not create the Java Virtual Machine')")
    scores = captions.caption_scores(PREDICTIONS, REFERENCES, ("meteor", "cider"))
    assert (scores["meteor"], scores["cider"]) == (None, None)
    for name in ("meteor", "cider"):
        assert (
            "tokenizer failed" in scores["problems"][name] and "could not create the Java" in scores["problems"][name]
        )
    assert not os.listdir(tmp_path / "temporary")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("print('0,5', flush=True)", "could not convert string to float"),
        ("sys.exit('no memory')", "no memory"),
    ],
)
def test_meteor_that_fails_leaves_cider(java, answer: str, problem: str) -> None:
    """In the process itself, its lock would be waited for without end."""
    java(f"{TOKENIZE}\nfor line in sys.stdin:\n    {answer}\n")
    scores = captions.caption_scores(PREDICTIONS, REFERENCES, ("meteor", "cider"))
    assert scores["meteor"] is None and scores["cider"] == pytest.approx(CIDER)
    assert list(scores["problems"]) == ["meteor"] and problem in scores["problems"]["meteor"]


def test_java_that_hangs_is_ended(tmp_path: Path, java, monkeypatch: pytest.MonkeyPatch) -> None:
    java(f"{TOKENIZE}\ntime.sleep(600)")
    monkeypatch.setattr(captions, "START_S", 4.0)
    scores = captions.caption_scores(PREDICTIONS, REFERENCES)
    assert scores["meteor"] is None and "did not end within" in scores["problems"]["meteor"]
    assert not os.listdir(tmp_path / "temporary")
    assert not (tmp_path / "pids").exists() or not alive(tmp_path)


def test_nothing_outlives_the_process_that_asked(tmp_path: Path, java) -> None:
    java(f"{TOKENIZE}\ntime.sleep(600)")
    code = "from pixel_sail.evaluate.captions import caption_scores; caption_scores(['a'], [['a']])"
    with subprocess.Popen([sys.executable, "-c", code]) as asking:
        wait_for(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 3)
        assert os.listdir(tmp_path / "temporary")
        asking.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(tmp_path) and not os.listdir(tmp_path / "temporary"))


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_full_temporary_disk_is_a_problem_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions.tempfile, "tempdir", "/nowhere/at/all")
    scores = captions.caption_scores(PREDICTIONS, REFERENCES)
    assert scores["meteor"] is None and "/nowhere/at/all" in scores["problems"]["meteor"]
