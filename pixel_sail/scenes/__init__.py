"""The embedded dataset: drawn scenes with exact masks and unambiguous texts, in the formats of the real datasets.

    <out>/images/train2014/scenes_000000000001.jpg ...
    <out>/refcoco/instances.json, refs(unc).p          one object an expression
    <out>/refcocog/instances.json, refs(umd).p         the same with longer expressions
    <out>/grefcoco/instances.json, grefs(unc).json     none, one or several objects an expression
    <out>/annotations/panoptic_{train,val}2017.json    with a folder of PNGs each: all objects, and the background
    <out>/pix2cap/pix2cap_coco_{train,val}.json        the same with descriptions
    <out>/sam_captions/{train,val}.json                descriptions of some objects
    <out>/osprey/osprey_*.json, llava/train.json       questions about regions, and about whole images
    <out>/perbench/STBench_*.json                      descriptions, multiple-choice questions, requests
    <out>/perbench_train/STBench_*.json                the same of the training images
    <out>/annotations/instances_{train,val}2017.json   all objects
    <out>/GranDf/annotations/{train,val_test}/*.json   captions whose phrases have masks, in four formats
    <out>/muse/MUSE_*.json                             questions that several objects answer
    <out>/reason_seg/ReasonSeg/{train,val,test}/       what must be reasoned out; some hundred images and their JSONs
    <out>/pixmmvp/                                     pairs of images that differ in what is asked (150 at most)
    <out>/llava/choices.json                           questions of these kinds about the training images
    <out>/scenes.json                                  all that is known: objects of each image, query of each sentence

RefCOCOg, GranD-f and ReasonSeg call testA and testB both test; panoptic, instances, Pix2Cap, SAM captions, OpenPSG,
RefCOCOg and Flickr captions and MUSE call all that is held out val; osprey and llava show only training images and
perbench only held-out ones.

Splits go by image: 12 of 15 are train, and one each is

* ``val``: as train;
* ``testA``: crowded: one kind occurs three times or more, so that kind and colour are often not enough;
* ``testB``: new combinations: every image has an object of a (kind, colour) pair that train, val and testA never show,
  not even unreferenced (24 of the 200 pairs, a fixed list), and the references are mostly to those.
"""

import json
import os
import shutil
import tempfile
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixel_sail.scenes.render import STYLES
from pixel_sail.scenes.write import FOLDERS, make_image, write_annotations

VERSION = 6  # raise it with every change that changes a byte of the output


def request_of(images: int, seed: int, long_side_px: int, style: str = "day") -> dict[str, Any]:
    """What determines the bytes of a dataset."""
    request = {"generator_version": VERSION, "images": images, "seed": seed, "long_side_px": long_side_px}
    return request if style == "day" else request | {"style": style}


def stored_request(out: Path) -> dict[str, Any] | None:
    """The request that a complete scenes folder was made with; None where ``out`` is not such a folder."""
    try:
        return json.loads((out / "scenes.json").read_text(encoding="utf-8"))["request"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def generate(
    out: Path,
    images: int,
    seed: int,
    long_side_px: int = 192,
    workers: int | None = None,
    *,
    style: str = "day",
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Writes ``images`` scenes to ``out``; the same request gives the same bytes, for any number of workers.

    ``workers``: processes, all cores by default; 1 stays in this process. ``style``: one of STYLES. The data is written
    to a temporary folder beside ``out`` that is renamed at the end: ``out`` is complete or absent. A complete folder of
    the same request is left as it is. ``overwrite`` replaces a scenes folder of another request, and only such one.

    Raises FileExistsError where ``out`` holds something else, ValueError for numbers out of range.
    """
    out, request = Path(out), request_of(images, seed, long_side_px, style)
    if style not in STYLES or images < 1 or seed < 0 or long_side_px < 64:
        raise ValueError(f"need images >= 1, seed >= 0, long_side_px >= 64, a style of {STYLES}; got {request}")
    if _is_reusable(out, request, overwrite):
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        for folder in FOLDERS:
            (scratch / folder).mkdir(parents=True)
        records = _draw_all(scratch, request, workers, progress)
        write_annotations(scratch, records, request)
        scratch.chmod(0o755)
        _move_into_place(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_reusable(out: Path, request: dict[str, Any], overwrite: bool) -> bool:
    """True: ``out`` is already the answer. False: it may be written. FileExistsError: it must not be touched."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    stored = stored_request(out)
    if stored == request:
        return True
    if stored is None:
        raise FileExistsError(f"{out} exists and is not a scenes folder; choose another folder")
    if not overwrite:
        raise FileExistsError(f"{out} holds scenes of another request: {stored}; choose another folder or overwrite it")
    return False


def _draw_all(folder: Path, request: dict[str, Any], workers: int | None, progress: bool) -> list[dict[str, Any]]:
    images = request["images"]
    make = partial(make_image, folder, seed=request["seed"], long_side_px=request["long_side_px"])
    make = partial(make, style=request.get("style", "day"))
    workers = min(workers or os.cpu_count() or 1, images)
    bar = partial(tqdm, total=images, unit="image", desc="scenes", disable=not progress)
    if workers == 1:
        return list(bar(map(make, range(images))))
    with Pool(workers) as pool:
        return list(bar(pool.imap(make, range(images), chunksize=8)))


def _move_into_place(scratch: Path, out: Path) -> None:
    """Renames, with the old folder out of the way only for the moment between two renames."""
    if not out.exists():
        scratch.rename(out)
        return
    old = scratch.with_name(scratch.name + "-old")
    out.rename(old)
    scratch.rename(out)
    shutil.rmtree(old)
