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
    <out>/gseval/, ref_l4/, dlc_bench/, gar_bench/     benchmarks of others, about at most 100 held-out images each
    <out>/llava/choices.json                           questions of these kinds about the training images
    <out>/pairs_{train,val}.jsonl                      the same object in two images, by a region in one
    <out>/places_train.jsonl                           where objects are, and what is somewhere: no kinds, no colours
    <out>/requests_train.jsonl                         up to twelve requests an image for objects relative to regions
    <out>/{same,nearest,beside,around}_train.jsonl     with lessons: many requests of one kind, or about one region
    <out>/scenes.json                                  all knowledge: objects of each image, query of each sentence
    <out>/image_text/{train,val}/00000.tar ...         with image_text: images with captions, as img2dataset has them
    <out>/text/{train,val}/00000.jsonl                 with image_text: descriptions of images that are not shown

Splits go by image. Of 15 images 12 are train, and there is one of each of these:

* `val`: as train;
* `testA`: crowded: one kind occurs at least three times, so that kind and colour are often not enough;
* `testB`: new combinations: every image has an object of a (kind, colour) pair that train, val and testA never show,
  not even unreferenced (24 of the 200 pairs, a fixed list), and most references are to such objects.

RefCOCOg, GranD-f and ReasonSeg call testA and testB both test. Panoptic, instances, Pix2Cap, SAM captions, OpenPSG,
RefCOCOg and Flickr captions and MUSE call all held-out images val. Osprey, LLaVA and the JSON Lines
of training (`*_train.jsonl`) contain only training images, perbench only held-out images.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pixel_sail.durable import leftovers_of, remove_leftovers_of, replaced_folder
from pixel_sail.errors import FileError, UserError
from pixel_sail.files import read_json
from pixel_sail.interrupts import how_far
from pixel_sail.locks import lock_beside, locked
from pixel_sail.scenes.draw import FOLDERS, draw_image
from pixel_sail.scenes.formats import IMAGES
from pixel_sail.scenes.render import STYLES
from pixel_sail.scenes.types import ImageRecord, Request
from pixel_sail.scenes.write import write_annotations
from pixel_sail.workers import MAX_WORKERS, in_order
from pixel_sail.writable import check_writable, writing_into

VERSION = 9  # raise it with every change that changes a byte of the output
LONG_SIDES_PX = (64, 4096)
# On the disk, measured and rounded up. A scene is about square; tars of captioned images hold it once more.
BYTES_PER_PIXEL, ANNOTATION_BYTES, LESSON_BYTES, CAPTION_BYTES = 0.5, 60_000, 11_000, 3_000


def request_of(
    images: int, seed: int, long_side_px: int, style: str = "day", image_text: bool = False, lessons: bool = False
) -> Request:
    request: Request = {"generator_version": VERSION, "images": images, "seed": seed, "long_side_px": long_side_px}
    if style != "day":
        request["style"] = style
    if image_text:
        request["image_text"] = True
    if lessons:
        request["lessons"] = True
    return request


def stored_request(out: Path) -> Request | None:
    """The request that a complete scenes folder was made with; None where `out` is not such a folder."""
    try:
        return read_json(out / "scenes.json")["request"]
    except (UserError, KeyError, TypeError):
        return None


def generate(
    out: Path,
    images: int,
    seed: int,
    long_side_px: int = 192,
    workers: int | None = None,
    *,
    style: str = "day",
    image_text: bool = False,
    lessons: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> bool:
    """Write `images` scenes to `out`; return False if it holds them already. The same request gives the same
    bytes, for any number of workers.

    `workers`: processes, by default one a core; 1 stays in this process. `style`: one of STYLES. `image_text`: also
    tars of captioned images, and plain text. `lessons`: also many requests of one kind. `out` is complete or absent at
    any moment. A complete folder of the same request is left unchanged. `overwrite` replaces a scenes folder of another
    request, or one that is not complete any more, but nothing else.

    Raises FileError where `out` holds something else, cannot be written or is too small, UserError for numbers out of
    range, Busy if another process is writing `out`.
    """
    out, request = Path(out), request_of(images, seed, long_side_px, style, image_text, lessons)
    _check(request, workers)
    lock = lock_beside(out)
    if _is_complete(out, request, overwrite) and not lock.exists() and not leftovers_of(out):
        return False
    check_writable(out.absolute().parent, images * _bytes_per_image(request))
    with locked(lock, f"the folder {out}"):
        remove_leftovers_of(out)
        if _is_complete(out, request, overwrite):
            return False
        records: list[ImageRecord] = []
        undone = how_far(lambda: _undone(len(records), images))
        with undone, writing_into(out), replaced_folder(out) as partial_folder:
            for folder in FOLDERS:
                (partial_folder / folder).mkdir(parents=True)
            for record in _draw_all(partial_folder, request, workers, progress):
                records.append(record)
            write_annotations(partial_folder, records, request)
    return True


def _check(request: Request, workers: int | None) -> None:
    low, high = LONG_SIDES_PX
    sizes = request["images"] >= 1 and request["seed"] >= 0 and low <= request["long_side_px"] <= high
    if not sizes or request.get("style", "day") not in STYLES:
        raise UserError(
            f"need images >= 1, seed >= 0, long_side_px from {low} to {high}, a style of {STYLES}; got {request}"
        )
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise UserError(f"need 1 to {MAX_WORKERS} workers, got {workers}")


def _bytes_per_image(request: Request) -> int:
    pixels = round(BYTES_PER_PIXEL * request["long_side_px"] ** 2)
    lessons = LESSON_BYTES if request.get("lessons") else 0
    captioned = pixels + CAPTION_BYTES if request.get("image_text") else 0
    return pixels + ANNOTATION_BYTES + lessons + captioned


def _undone(drawn: int, images: int) -> str:
    return (
        f"{drawn} of {images} images were drawn, and none is kept, because the folder is written as a whole; "
        "the same command starts again"
    )


def _is_complete(out: Path, request: Request, overwrite: bool) -> bool:
    """Whether `out` already holds the request. FileError where it holds something that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    stored = stored_request(out)
    if stored is None:
        raise FileError(f"{out} exists and is not a scenes folder; choose another folder")
    if stored != request:
        problem = f"holds scenes of another request: {stored}"
    elif (left := _images_in(out)) != request["images"]:
        problem = f"has {left} of its {request['images']} images"
    else:
        return True
    if not overwrite:
        raise FileError(f"{out} {problem}; choose another folder or overwrite it (--overwrite)")
    return False


def _images_in(out: Path) -> int:
    return sum(1 for _ in (out / IMAGES).glob("scenes_*.jpg"))


def _draw_all(folder: Path, request: Request, workers: int | None, progress: bool) -> Iterator[ImageRecord]:
    draw = partial(
        draw_image,
        folder,
        seed=request["seed"],
        long_side_px=request["long_side_px"],
        style=request.get("style", "day"),
        lessons=request.get("lessons", False),
    )
    images = request["images"]
    workers = min(workers or os.cpu_count() or 1, images)
    drawn = in_order(draw, range(images), workers if workers > 1 else 0)
    with closing(drawn):
        yield from tqdm(drawn, total=images, unit="image", desc="scenes", disable=None if progress else True)
