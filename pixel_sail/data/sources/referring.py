"""Referring expressions grouped by image, and the Samples made of them; REFER and gRefCOCO share this."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.errors import DatasetError, UnknownSplit
from pixel_sail.data.limits import MAX_SENTENCES
from pixel_sail.data.masks import unite
from pixel_sail.data.sources.coco import COCO_2014_FOLDERS, CocoInstances, image_folder
from pixel_sail.data.sources.entries import id_member, member, refuse_nothing
from pixel_sail.data.sources.folders import Folders
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import EntrySource
from pixel_sail.data.templates import Templates
from pixel_sail.data.text import printable
from pixel_sail.types import RLE, BadSample, NoPixels, Sample


@dataclass(frozen=True)
class Ref:
    """One ref, as in the annotation file."""

    ref_id: int
    image_id: int
    annotation_ids: tuple[int, ...]  # empty: nothing in the image matches
    split: str
    sentences: tuple[tuple[int, str], ...]  # (sent_id, expression)
    contradiction: str = ""  # of the ref in itself, which makes it unusable


@dataclass(frozen=True)
class Referent:
    """What one or more expressions of an image refer to."""

    ref_id: int
    targets: int  # objects united in the mask
    mask: RLE | None  # None: no target
    sentences: tuple[tuple[int, str], ...]  # (sent_id, expression)


@dataclass(frozen=True)
class ReferredImage:
    key: str  # of its Samples
    image_id: int
    path: Path
    size_hw: tuple[int, int]
    referents: tuple[Referent, ...]


@dataclass(frozen=True)
class Referring:
    """One split of one dataset."""

    name: str
    split: str
    images: Sequence[ReferredImage]  # by image id
    problems: tuple[str, ...]  # one line for each ref or sentence that was left out, and why


def read_referring(
    name: str, split: str, root: Path, files: tuple[Path, ...], read: Callable[[], Referring]
) -> Referring:
    """What `read()` gives for these annotation `files`, kept where they are large (see `kept_entries`)."""
    problems, folders = list[str](), Folders()
    for folder in COCO_2014_FOLDERS:
        folders.watch(root / folder)

    def read_images() -> Sequence[ReferredImage]:
        referring = read()
        problems.extend(referring.problems)
        return referring.images

    images = kept_entries(f"{name}/{split}", files, folders, ReferredImage, problems, read_images)
    return Referring(name, split, images, tuple(problems))


def read_refs(values: Any, path: Path, what: str, parse: Callable[[dict[str, Any], str], Ref]) -> list[Ref]:
    """`parse(ref, where)` of each ref of an annotation file, which is a list of `what`. Raises DatasetError."""
    if not isinstance(values, list):
        raise DatasetError(f"{path} is not a list of {what}: it holds a {type(values).__name__}")
    refs, sentences = [], 0
    for number, ref in enumerate(values):
        try:
            refs.append(parse(ref, f"its entry {number}"))
        except BadSample as error:
            raise DatasetError(f"{path} is not a list of {what}: {error}") from None
        sentences += len(refs[-1].sentences)  # a pickle may have one list of them in many places
        if sentences > MAX_SENTENCES:
            raise DatasetError(f"{path} has more than {MAX_SENTENCES:,} expressions; no more are read")
    return refs


def sentences_of(ref: dict[str, Any], where: str) -> tuple[tuple[int, str], ...]:
    """The (sent_id, expression) of a ref in an annotation file. Raises BadSample."""
    return tuple(
        (id_member(sentence, "sent_id", where), member(sentence, "sent", str, where).strip())
        for sentence in member(ref, "sentences", list, where)
    )


def collect(
    refs: list[Ref], refs_path: Path, instances_path: Path, root: Path, name: str, split: str, crowds: bool = True
) -> Referring:
    """Groups the refs of a split by image and makes their masks. Bad refs and empty expressions go into `problems`.

    `crowds`: annotations of crowds are part of a target; else they are left out, and a ref of crowds alone has none.
    Masks are made here, and not when a Sample is drawn, because a bad ref would then take the whole image with it, and
    the count of problems would depend on the draw. Raises UnknownSplit, and DatasetError for missing files.
    """
    chosen = [ref for ref in refs if ref.split == split]
    if not chosen:
        raise UnknownSplit(f"{refs_path} has no split {split!r}; it has {sorted({ref.split for ref in refs})!r:.200}")
    coco, folder = CocoInstances.read(instances_path), image_folder(root)
    referents: dict[int, list[Referent]] = defaultdict(list)
    problems: list[str] = []
    contents = {ref.ref_id: ref for ref in chosen}
    twice = {ref.ref_id for ref in chosen if ref != contents[ref.ref_id]}
    for ref in chosen:
        where = f"{name}/{split}/ref={ref.ref_id}"
        try:
            if ref.ref_id in twice:
                raise BadSample(f"{where}: {refs_path} has different refs with this id")
            referents[ref.image_id].append(_referent(ref, coco, crowds, where, problems))
        except BadSample as error:
            problems.append(printable(str(error)))
    images = [
        ReferredImage(
            key=f"{name}/{split}/image={image_id}",
            image_id=image_id,
            path=folder / coco.image(image_id).file_name,
            size_hw=coco.image(image_id).size_hw,
            referents=tuple(of_image),
        )
        for image_id, of_image in sorted(referents.items(), key=lambda pair: (isinstance(pair[0], str), pair[0]))
        if of_image
    ]
    refuse_nothing(images, refs_path, problems)
    return Referring(name, split, tuple(images), tuple(problems))


def _referent(ref: Ref, coco: CocoInstances, crowds: bool, where: str, problems: list[str]) -> Referent:
    try:
        image = coco.image(ref.image_id)
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from None
    if ref.contradiction:
        raise BadSample(f"{where}: {ref.contradiction}")
    problems.extend(f"{where}: sentence {sent_id} is empty" for sent_id, text in ref.sentences if not text)
    sentences = tuple((sent_id, text) for sent_id, text in ref.sentences if text)
    if not sentences:
        raise BadSample(f"{where}: no expression is left")
    left_out: list[str] = []
    try:
        kept = [number for number in ref.annotation_ids if crowds or not coco.is_crowd(number, ref.image_id)]
        pieces = [mask for number in kept if (mask := _object(coco, number, ref.image_id, left_out))]
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from None
    if kept and not pieces:
        raise NoPixels(f"{where}: {left_out[-1]}")
    problems += [f"{where}: {line}" for line in left_out]
    return Referent(ref.ref_id, len(pieces), unite(pieces, image.size_hw) if pieces else None, sentences)


def _object(coco: CocoInstances, annotation_id: int, image_id: int, left_out: list[str]) -> RLE | None:
    """The mask of an annotation; None if it has no pixel, with a line in `left_out`. Raises BadSample."""
    try:
        return coco.mask(annotation_id, image_id, left_out)
    except NoPixels as error:
        left_out.append(str(error))
        return None


class ReferringSource(EntrySource[ReferredImage]):
    """Samples of one image, with up to `expressions` turns each (see `pixel_sail.data.sources.Source`)."""

    def __init__(self, referring: Referring, templates: Templates, expressions: int) -> None:
        super().__init__(referring.images, list(referring.problems))
        self._templates = templates
        self._expressions = expressions

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` draws different refs first, then further sentences of the same refs if there is room."""
        image = self._entries[index]
        drawn = draw_expressions(image.referents, self._expressions, rng)
        return Sample(
            key=image.key,
            image=image.path,
            turns=tuple(self._templates.turn(expression, referent.targets, rng) for referent, expression in drawn),
            masks=tuple(referent.mask for referent, _ in drawn if referent.mask is not None),
        )


def draw_expressions(
    referents: tuple[Referent, ...], count: int, rng: np.random.Generator
) -> list[tuple[Referent, str]]:
    """Up to `count` pairs, without replacement; every referent comes once before any comes twice."""
    first: list[tuple[Referent, str]] = []
    further: list[tuple[Referent, str]] = []
    for i in rng.permutation(len(referents)):
        texts = [referents[i].sentences[j][1] for j in rng.permutation(len(referents[i].sentences))]
        first.append((referents[i], texts[0]))
        further.extend((referents[i], text) for text in texts[1:])
    return (first + [further[i] for i in rng.permutation(len(further))])[:count]
