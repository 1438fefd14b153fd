"""Draws the images that the next stages train on: those of the scratch run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pixel_sail.bench.gpu.checks import Report
from pixel_sail.config import REPOSITORY

IMAGES = 8000  # as `make scratch`


def run(report: Report) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "prepare_data.py"), "scenes", "--out", str(folder(report))]
    subprocess.run([*command, "--images", str(IMAGES), "--seed", "0"], check=True)
    report.number("images", IMAGES)


def folder(report: Report) -> Path:
    """Where they are. A stage that needs them fails without."""
    return report.folder / "images"
