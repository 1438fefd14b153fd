"""Datasets in the layouts of the Hugging Face hub, on the hub or in a local folder. See docs/hf.md.

`datasets` downloads them once and maps them into memory. They are not streamed: a run asks for any row at any moment,
so that its samples are the same for any number of processes and after a resume (data/mixture.py), and a stream of
`datasets` gives rows in their order only.
"""

from __future__ import annotations

import os
import reprlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixel_sail.config import ConfigError, DataConfig, HfColumns, MixtureEntry
from pixel_sail.data.errors import DatasetError, UnknownSplit
from pixel_sail.data.files import exists
from pixel_sail.data.image import image_size
from pixel_sail.data.inside import inside
from pixel_sail.data.limits import MAX_TURNS
from pixel_sail.data.masks import area_px
from pixel_sail.data.sources.entries import refuse_tokens
from pixel_sail.data.sources.jsonl import check_masks, check_regions, decode_shape, read_turn
from pixel_sail.data.sources.record import SourceRecord
from pixel_sail.data.sources.region_turns import RegionTurn, compose
from pixel_sail.data.templates import Templates
from pixel_sail.types import RLE, BadSample, Sample, Turn

if TYPE_CHECKING:
    from datasets import Dataset

NAME = "hf"
CONVERSATIONS = ("conversations", "messages", "texts")  # the first of these that is there, if no text column is named
# What a message is called by whom; those of others, such as "system", are not read.
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")
_PAIRS = (("question", "answer"), ("user", "assistant"))
_MARKER = "<image>"


class HfSource:
    """One Sample for each row (see `pixel_sail.data.sources.Source`). A row is read and checked when it is drawn."""

    def __init__(self, rows: Dataset, name: str, columns: HfColumns, folders: tuple[Path, ...], data: DataConfig):
        """`name` begins every key. `folders`: below one of them an image file must be; relative names are in the first.

        Raises DatasetError for a missing column.
        """
        self.problems: list[str] = []
        self._name, self._folders = name, folders
        self._columns = columns = _complete(columns, rows.column_names, name)
        self._rows = rows.select_columns(sorted(columns.used())).with_format("arrow")
        self._templates, self._count = Templates.of(data), data.expressions_per_image

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return f"{self._name}/row={index}"

    def image(self, index: int) -> Path | bytes | None:
        """Raises BadSample for a cell that is no image."""
        return self._image(self._row(index), self.key(index))

    def image_name(self, index: int) -> Path | None:
        """What the dataset calls the image file; None without an image. Raises DatasetError if it calls it nothing."""
        from pyarrow import ListScalar, StructScalar

        cell = self._rows[index].column(self._columns.image)[0] if self._columns.image else None
        if isinstance(cell, ListScalar) and cell.is_valid:
            cell = cell.values[0] if len(cell.values) else None
        if cell is None or not cell.is_valid:
            return None
        name = (cell["path"] if isinstance(cell, StructScalar) else cell).as_py()  # without reading the bytes
        if not isinstance(name, str) or not name:
            raise DatasetError(
                f"{self.key(index)}: its image has no file name, so that data.exclude cannot tell which image it is"
            )
        return Path(name)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` draws expressions and their wording. Raises BadSample, naming the row, for what cannot be used."""
        row, where = self._row(index), self.key(index)
        image = self._image(row, where)
        shapes = self._shapes(row, where)
        if image is None and shapes:
            raise BadSample(f"{where}: it has masks, but no image")
        size = image_size(image, where) if shapes else (0, 0)
        if self._columns.expression:
            return compose(where, image, self._expressions(row, shapes, size, where, rng))
        turns = self._turns(row, where)
        check_masks(turns, shapes, where)
        check_regions(turns, {}, where)
        return Sample(where, image, turns, tuple(_mask(s, size, f"{where}: mask {n}") for n, s in enumerate(shapes)))

    def _row(self, index: int) -> dict[str, Any]:
        """As it is stored: images are their bytes or paths, not decoded."""
        return self._rows[index].to_pylist()[0]

    def _image(self, row: dict[str, Any], where: str) -> Path | bytes | None:
        cell = row[self._columns.image] if self._columns.image else None
        if isinstance(cell, list):
            if len(cell) > 1:
                raise BadSample(f"{where}: it has {len(cell)} images; a sample has one")
            cell = cell[0] if cell else None
        return None if cell is None else self._file(cell, f"{where}: its {self._columns.image!r}")

    def _file(self, cell: Any, where: str) -> Path | bytes:
        """An image in a cell: bytes, the name of a file, or both, of which the bytes count."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str):
            raise BadSample(f"{where} is {reprlib.repr(cell)}; expected an image or the name of its file")
        path = Path(os.path.normpath(cell))
        if path.is_absolute() and any(path.is_relative_to(folder) for folder in self._folders):
            return path  # as `datasets` itself wrote it
        return self._folders[0] / inside(cell, where)

    def _shapes(self, row: dict[str, Any], where: str) -> list[Any]:
        """Of the masks, for `decode_shape`; None for an expression that names nothing."""
        if self._columns.masks is None:
            return []
        cell = row[self._columns.masks]
        if cell is None and not self._columns.expression:
            return []
        cells = cell if isinstance(cell, list) and not _is_polygons(cell) else [cell]
        return [self._shape(cell, f"{where}: mask {number}") for number, cell in enumerate(cells)]

    def _shape(self, cell: Any, where: str) -> Any:
        if isinstance(cell, dict) and "counts" in cell:
            counts = cell["counts"]
            return cell | {"counts": counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts}
        return cell if cell is None or isinstance(cell, list) else self._file(cell, where)

    def _expressions(
        self, row: dict[str, Any], shapes: list[Any], size_hw: tuple[int, int], where: str, rng: np.random.Generator
    ) -> list[RegionTurn]:
        cell = row[self._columns.expression]
        expressions = [_text(text, f"{where}: its {self._columns.expression!r}") for text in _listed(cell)]
        if len(expressions) != len(shapes) or not shapes:
            raise BadSample(f"{where}: it has {len(expressions)} expressions and {len(shapes)} masks; each has its own")
        turns = []
        for n in rng.permutation(len(shapes))[: self._count].tolist():
            refuse_tokens(expressions[n], f"{where}: expression {n}")
            turn = self._templates.turn(expressions[n], int(shapes[n] is not None), rng)
            masks = () if shapes[n] is None else (decode_shape(shapes[n], size_hw, f"{where}: mask {n}"),)
            turns.append(RegionTurn(turn.question, turn.answer, masks=masks))
        return turns

    def _turns(self, row: dict[str, Any], where: str) -> tuple[Turn, ...]:
        columns = self._columns
        if columns.question:
            asked, answered = _listed(row[columns.question]), _listed(row[columns.answer])
            if len(asked) != len(answered):
                raise BadSample(f"{where}: it has {len(asked)} questions and {len(answered)} answers")
            pairs = list(zip(asked, answered, strict=True))
        else:
            pairs = _conversation(row[columns.conversation], f"{where}: its {columns.conversation!r}")
        if not 1 <= len(pairs) <= MAX_TURNS:
            raise BadSample(f"{where}: it has {len(pairs):,} questions; expected 1 to {MAX_TURNS:,}")
        named = [(_text(asked, f"{where}: question {n}"), answer) for n, (asked, answer) in enumerate(pairs)]
        return tuple(
            read_turn({"question": asked.replace(_MARKER, ""), "answer": answer}, f"{where}: turn {n}")
            for n, (asked, answer) in enumerate(named)
        )


def open_hf(entry: MixtureEntry, data: DataConfig) -> HfSource:
    """The dataset of an entry: `path`, or the local folder `root`.

    Raises ConfigError without the package, DatasetError for a dataset that cannot be opened and for missing columns.
    """
    folder = Path(entry.path or entry.root or data.root)
    is_local = exists(folder)
    if entry.path is None and not is_local:
        raise DatasetError(f"no folder {folder}; a dataset of the hub is named by `path`")
    path = entry.path or str(folder)
    rows, folders = _load(path, entry, is_local)
    name = f"{NAME}/{folder.resolve().name if is_local else path}"
    name += f"/{entry.subset}" if entry.subset else ""
    return HfSource(rows, f"{name}/{entry.split}", entry.columns or HfColumns(), folders, data)


def _load(path: str, entry: MixtureEntry, is_local: bool) -> tuple[Dataset, tuple[Path, ...]]:
    """The rows, and the folders in which their images may be."""
    try:
        import datasets
    except ImportError:
        raise ConfigError("source hf needs the package datasets: pip install 'pixel_sail[hf]'") from None
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = (Path(path).absolute(), Path(path).resolve()) if is_local else ()
    folders += (Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
    files = {entry.split.partition("[")[0]: entry.files} if entry.files else None
    try:
        if is_local and any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json")):
            rows = datasets.load_from_disk(path)
        else:
            rows = datasets.load_dataset(path, entry.subset, split=entry.split, data_files=files)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _refused(path, entry, is_local, error) from None
    if isinstance(rows, dict) and entry.split not in rows:
        raise UnknownSplit(f"{path} has no split {entry.split!r}; it has {', '.join(rows)}")
    return rows[entry.split] if isinstance(rows, dict) else rows, folders


def _refused(path: str, entry: MixtureEntry, is_local: bool, error: Exception) -> DatasetError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    cause = error.__cause__ or error.__context__
    if type(error).__name__ == "DatasetGenerationError" and cause is not None:  # "An error occurred", and no more
        reason = f"{reason}: {str(cause).strip().splitlines()[0]}"
    if "unknown split" in reason.lower():
        return UnknownSplit(f"{path} has no split {entry.split!r}: {reason}")
    hint = "" if is_local else "; it is no local folder either. Check the name, the network, and HF_HUB_OFFLINE"
    return DatasetError(f"the dataset {path} cannot be opened: {reason}{hint}")


def _complete(columns: HfColumns, there: list[str], name: str) -> HfColumns:
    """With a text column, if none is named. Raises DatasetError for a column that is not there."""
    if not (columns.conversation or columns.question or columns.expression):
        column = next((column for column in CONVERSATIONS if column in there), None)
        if column is None:
            raise DatasetError(
                f"{name}: it has none of the columns {', '.join(CONVERSATIONS)}; it has {', '.join(there)}. Say in "
                "`columns` which of them hold conversation, or question and answer, or expression and masks"
            )
        columns = columns.model_copy(update={"conversation": column})
    missing = sorted(columns.used() - set(there))
    if missing:
        hint = "; write `image: null` in `columns` for texts alone" if missing == [columns.image] else ""
        raise DatasetError(f"{name}: it has no column {missing[0]!r}; it has {', '.join(there)}{hint}")
    return columns


def _conversation(cell: Any, where: str) -> list[tuple[Any, Any]]:
    """Questions and answers of a list of messages, or of pairs. Raises BadSample."""
    messages = _listed(cell)
    if not all(isinstance(message, dict) for message in messages):
        raise BadSample(f"{where} is {reprlib.repr(cell)}; expected a list of messages")
    for asks, answers in _PAIRS:
        if messages and all(asks in message and answers in message for message in messages):
            return [(message[asks], message[answers]) for message in messages]
    said = [(message.get("from") or message.get("role"), message) for message in messages]
    said = [(speaker, message) for speaker, message in said if speaker in _ASKS + _ANSWERS]
    for number, (speaker, _) in enumerate(said):
        if speaker not in (_ASKS, _ANSWERS)[number % 2]:
            raise BadSample(f"{where}: message {number} is from {speaker!r}; question and answer must alternate")
    if len(said) % 2 or not said:
        raise BadSample(f"{where}: it has {len(said)} messages of user and assistant; expected pairs")
    texts = [message.get("value") or message.get("content") for _, message in said]
    return list(zip(texts[::2], map(partial(_text, where=where), texts[1::2]), strict=True))


def _text(value: Any, where: str) -> str:
    """A text, or the text parts of a message. Raises BadSample."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        value = "\n".join(part["text"] for part in value if isinstance(part.get("text"), str) and part["text"])
    if not isinstance(value, str):
        raise BadSample(f"{where} is {reprlib.repr(value)}; expected a text")
    return value


def _mask(shape: Any, size_hw: tuple[int, int], where: str) -> RLE:
    mask = decode_shape(shape, size_hw, where)
    if area_px(mask) == 0:
        raise BadSample(f"{where} has no pixel")
    return mask


def _listed(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


def _is_polygons(cell: list[Any]) -> bool:
    """Whether a list is one mask, as a list of polygons, and not a list of masks."""
    return bool(cell) and isinstance(cell[0], list) and bool(cell[0]) and isinstance(cell[0][0], int | float)


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "validation", "test"),
        files=(),
        sample="a row",
        turn="a question and its answer, or an expression, with masks; see [docs/hf.md](../docs/hf.md)",
        open_entry=open_hf,
        image_folders=(),
    ),
)
