"""Draws a whole dataset: exact masks and unambiguous texts, in the formats of the real datasets.

    <out>/images/train2014/scenes_000000000001.jpg ...
    <out>/refcoco/instances.json, refs(unc).p          one object an expression
    <out>/refcocog/instances.json, refs(umd).p         the same with longer expressions
    <out>/grefcoco/instances.json, grefs(unc).json     none, one or several objects an expression
    <out>/annotations/panoptic_{train,val}2017.json    all objects, and the background; with a folder of PNGs each
    <out>/pix2cap/pix2cap_coco_{train,val}.json        the same with descriptions
    <out>/sam_captions/{train,val}.json                descriptions of some objects
    <out>/osprey/osprey_*.json, llava/train.json       questions about regions, and about whole images
    <out>/perbench/STBench_*.json                      descriptions, multiple-choice questions, requests
    <out>/perbench_train/STBench_*.json                the same about the training images
    <out>/annotations/instances_{train,val}2017.json   all objects
    <out>/GranDf/annotations/{train,val_test}/*.json   captions whose phrases have masks, in four formats
    <out>/muse/MUSE_*.json                             questions that several objects answer
    <out>/reason_seg/ReasonSeg/{train,val,test}/       questions that need reasoning: some hundred images, their JSONs
    <out>/pixmmvp/                                     pairs of images that differ in one property (at most 150)
    <out>/llava/choices.json                           questions of these kinds about the training images
    <out>/scenes.json                                  all knowledge: objects of each image, query of each sentence

Splits go by image. Of 15 images 12 are train, and there is one of each of these:

* `val`: as train;
* `testA`: crowded: one kind occurs at least three times, so that kind and colour are often not enough;
* `testB`: new combinations: every image has an object of a (kind, colour) pair that train, val and testA never show,
  not even unreferenced (24 of the 200 pairs, a fixed list), and most references are to such objects.

RefCOCOg, GranD-f and ReasonSeg call testA and testB both test. Panoptic, instances, Pix2Cap, SAM captions, OpenPSG,
RefCOCOg and Flickr captions and MUSE call all held-out images val. Osprey and LLaVA contain only training images,
perbench only held-out images.
"""

import json
import os
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from tqdm import tqdm

from pixel_sail.durable import replaced_folder
from pixel_sail.scenes.draw import FOLDERS, draw_image
from pixel_sail.scenes.render import STYLES
from pixel_sail.scenes.types import ImageRecord, Request
from pixel_sail.scenes.write import write_annotations

VERSION = 6  # raise it with every change that changes a byte of the output


def request_of(images: int, seed: int, long_side_px: int, style: str = "day") -> Request:
    request: Request = {"generator_version": VERSION, "images": images, "seed": seed, "long_side_px": long_side_px}
    if style != "day":
        request["style"] = style
    return request


def stored_request(out: Path) -> Request | None:
    """The request that a complete scenes folder was made with; None where `out` is not such a folder."""
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
    """Write `images` scenes to `out`. The same request gives the same bytes, for any number of workers.

    `workers`: processes, by default one a core; 1 stays in this process. `style`: one of STYLES. `out` is complete or
    absent at any moment. A complete folder of the same request is left unchanged. `overwrite` replaces a scenes folder
    of another request, but nothing else.

    Raises FileExistsError where `out` holds something else, ValueError for numbers out of range.
    """
    out, request = Path(out), request_of(images, seed, long_side_px, style)
    if style not in STYLES or images < 1 or seed < 0 or long_side_px < 64:
        raise ValueError(f"need images >= 1, seed >= 0, long_side_px >= 64, a style of {STYLES}; got {request}")
    if _is_complete(out, request, overwrite):
        return
    with replaced_folder(out) as partial_folder:
        for folder in FOLDERS:
            (partial_folder / folder).mkdir(parents=True)
        records = _draw_all(partial_folder, request, workers, progress)
        write_annotations(partial_folder, records, request)


def _is_complete(out: Path, request: Request, overwrite: bool) -> bool:
    """Whether `out` already holds the request. FileExistsError where it holds something that must not be replaced."""
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


def _draw_all(folder: Path, request: Request, workers: int | None, progress: bool) -> list[ImageRecord]:
    draw = partial(
        draw_image,
        folder,
        seed=request["seed"],
        long_side_px=request["long_side_px"],
        style=request.get("style", "day"),
    )
    images = request["images"]
    workers = min(workers or os.cpu_count() or 1, images)
    bar = partial(tqdm, total=images, unit="image", desc="scenes", disable=not progress)
    if workers == 1:
        return list(bar(map(draw, range(images))))
    with Pool(workers) as pool:
        return list(bar(pool.imap(draw, range(images), chunksize=8)))
