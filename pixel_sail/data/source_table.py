"""The tables of data/README.md that follow from the records of the sources.

    python -m pixel_sail.data.source_table data/README.md

rewrites them, between two marker comments.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources import RECORDS, SourceRecord
from pixel_sail.data.sources.record import ExpectedFile

START = "<!-- sources: written by `python -m pixel_sail.data.source_table data/README.md` -->"
STOP = "<!-- end of sources -->"


def source_tables() -> str:
    """Markdown: what each source gives, where its files are, and where its images are searched."""
    turns = _grouped((record.name, f"{_splits(record)} | {record.sample} | {record.turn}") for record in RECORDS)
    files = _grouped((record.name, "<br>".join(map(_places, record.files))) for record in RECORDS if record.files)
    folders = _grouped((record.name, _folders(record)) for record in RECORDS if record.image_folders)
    return "\n".join(
        [
            "| sources (in `data.mixture`) | splits | a sample | a turn |",
            "| --- | --- | --- | --- |",
            *turns,
            "",
            "| sources | files under the data root |",
            "| --- | --- |",
            *files,
            "",
            "| sources | folders of images, in the order in which they are searched |",
            "| --- | --- |",
            *folders,
        ]
    )


def with_tables(page: str) -> str:
    """The page with the present tables between the markers. Raises DatasetError for a page without the markers."""
    before, start, rest = page.partition(START)
    _, stop, after = rest.partition(STOP)
    if not start or not stop:
        raise DatasetError(f"the page needs the lines\n{START}\n{STOP}")
    return f"{before}{START}\n\n{source_tables()}\n\n{STOP}{after}"


def rewrite(path: Path) -> None:
    """Brings the tables of a page up to date."""
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


def _grouped(cells: Iterable[tuple[str, str]]) -> list[str]:
    """A row for each distinct text, with the names of all sources that have it."""
    names_of: dict[str, list[str]] = {}
    for name, text in cells:
        names_of.setdefault(text, []).append(f"`{name}`")
    return [f"| {', '.join(names)} | {text} |" for text, names in names_of.items()]


def _folders(record: SourceRecord) -> str:
    return ", ".join(f"`{folder}`" if folder else "the data root itself" for folder in record.image_folders)


def _splits(record: SourceRecord) -> str:
    return ", ".join(record.splits) + (" only" if record.train_only else "")


def _places(file: ExpectedFile) -> str:
    places = " or ".join(f"`{place}`" for place in file.places)
    return places + (f" ({', '.join(file.splits)})" if file.splits else "")


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))
