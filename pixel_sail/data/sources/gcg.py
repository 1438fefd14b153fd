"""Grounded caption generation (GCG): the four datasets of GLaMM's GranD-f (arXiv 2311.03356), in its folder layout.

The images are GranD-f's own, COCO's and Flickr30k's: GLaMM's folders and the usual ones are searched.
"""

from __future__ import annotations

import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import UnknownSplit
from pixel_sail.data.files import read_json
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, parse_usable, read_entries, records, refuse_nothing, size_member
from pixel_sail.data.sources.grounded import (
    GroundedImage,
    GroundedSource,
    Phrase,
    caption_member,
    find_phrase,
    with_disjoint_phrases,
)
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.text import refuse_text
from pixel_sail.types import BadSample

GRAND_F, OPEN_PSG, REFCOCOG, FLICKR = NAMES = ("grand_f", "open_psg", "refcocog_gcg", "flickr_gcg")
SPLITS = {name: ("train", "val") for name in NAMES} | {GRAND_F: ("train", "val", "test")}
FOLDERS = (
    "GranDf_HA_images/train",
    "GranDf_HA_images/val_test",
    "GranDf/GranDf_HA_images/train",  # where GLaMM's loader looks; its documentation has the two above
    "GranDf/GranDf_HA_images/val_test",
    *ImageFinder.FOLDERS,
    "coco_2017/train2017",
    "coco_2014/train2014",
    "images/flickr30k",
    "flickr30k",
    "flickr_30k",
    "flikcr_30k/train",  # GLaMM's spelling
)
_TRAIN, _VAL_TEST = "GranDf/annotations/train", "GranDf/annotations/val_test"
_FILES = {
    GRAND_F: ExpectedFile(f"{_TRAIN}/GranDf_HA_GCG_train.json", splits=("train",)),
    OPEN_PSG: ExpectedFile(f"{_TRAIN}/OpenPsgGCG_{{split}}.json"),
    REFCOCOG: ExpectedFile(f"{_TRAIN}/RefCOCOg_GCG_{{split}}.json"),
    FLICKR: ExpectedFile(f"{_TRAIN}/flickr_mergedGT_GCG_{{split}}.json"),
}
_HELD_OUT_CAPTIONS, _HELD_OUT_MASKS = (
    ExpectedFile(f"{_VAL_TEST}/{{split}}_gcg_coco_{part}_gt.json", splits=("val", "test"))
    for part in ("caption", "mask")
)


def annotation_file(root: Path, name: str, split: str) -> Path:
    """Where the captions of a dataset are expected."""
    file = _HELD_OUT_CAPTIONS if name == GRAND_F and split != "train" else _FILES[name]
    return file.path(root, split)


def open_gcg(name: str, root: Path, split: str, data: DataConfig) -> GroundedSource:
    """One Sample per image. Raises DatasetError; unusable images and phrases are listed in `.problems`."""
    finder, problems, path = ImageFinder(root, FOLDERS), list[str](), annotation_file(root, name, split)
    files = (path, _HELD_OUT_MASKS.path(root, split)) if name == GRAND_F and split != "train" else (path,)

    def read() -> list[GroundedImage]:
        return with_disjoint_phrases(_read(root, name, split, finder, problems), path, problems)

    images = kept_entries(f"{name}/{split}", files, finder.asked, GroundedImage, problems, read)
    return GroundedSource(images, problems)


def read_gcg(root: Path, name: str, split: str, problems: list[str]) -> list[GroundedImage]:
    """Every image with its caption and all phrases that are annotated. Raises DatasetError."""
    return _read(root, name, split, ImageFinder(root, FOLDERS), problems)


def _read(root: Path, name: str, split: str, finder: ImageFinder, problems: list[str]) -> list[GroundedImage]:
    if split not in SPLITS[name]:
        raise UnknownSplit(f"{name} has the splits {', '.join(SPLITS[name])}, got {split!r}")
    path, where = annotation_file(root, name, split), f"{name}/{split}"
    if name == FLICKR:
        return _read_flickr(path, where, finder, problems)
    if name == GRAND_F and split != "train":
        return _read_captions_and_masks(path, _HELD_OUT_MASKS.path(root, split), where, finder, problems)
    parse = _referred if name == REFCOCOG else _grounded
    return read_entries(path, where, lambda entry, key: parse(entry, key, finder, problems), problems)


def _grounded(entry: Any, key: str, finder: ImageFinder, problems: list[str]) -> GroundedImage:
    """GranD-f and OpenPSG: {file_name, height, width, caption, groundings: {phrase: {token_positives, rle_masks}}}.

    A phrase that is not grounded (null) or whose grounding is malformed goes into `problems`.
    """
    caption = caption_member(entry, key)

    def parse(item: tuple[str, Any], where: str) -> Phrase:
        text, grounding = item
        refuse_text(text, where)
        if grounding is None:
            raise BadSample(f"{where}: it is not grounded (null)")
        span = _span(member(grounding, "token_positives", list, where), where)
        # The positions count from before or after the quotation marks around some captions: the words decide.
        if caption[slice(*span)].lower() != text.lower():
            span = find_phrase(caption, text, near=span[0])
        return Phrase(text, span, tuple(member(grounding, "rle_masks", list, where)))

    items = member(entry, "groundings", dict, key).items()
    phrases = parse_usable(((item, f"{key}: the phrase {item[0]!r}") for item in items), parse, problems)
    size = size_member(entry, key)
    return GroundedImage(key, finder.find(member(entry, "file_name", str, key), key), size, caption, tuple(phrases))


def _referred(entry: Any, key: str, finder: ImageFinder, problems: list[str]) -> GroundedImage:
    """RefCOCOg: {id: {img_file_name, caption, refs: [{sentence, segmentation}]}}, without the places of the phrases."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise BadSample(f"{key}: expected an object with one member, the id of the image")
    (values,) = entry.values()
    caption = caption_member(values, key)

    def parse(ref: Any, where: str) -> Phrase:
        text = member(ref, "sentence", str, where).strip()
        return Phrase(text, find_phrase(caption, text), (member(ref, "segmentation", object, where),))

    refs = enumerate(member(values, "refs", list, key))
    phrases = parse_usable(((ref, f"{key}: ref {number}") for number, ref in refs), parse, problems)
    image = finder.find(member(values, "img_file_name", str, key), key)
    return GroundedImage(key, image, None, caption, tuple(phrases))


def _read_flickr(path: Path, name: str, finder: ImageFinder, problems: list[str]) -> list[GroundedImage]:
    """Flickr30k: COCO-like, with `caption` on the images and `tokens_positive`, `sam_mask` on the annotations."""
    images, annotations = _coco_like(path, name, problems)

    def parse(image: dict[str, Any], key: str) -> GroundedImage:
        caption = caption_member(image, key)
        before = image["caption"].index(caption)  # the positions count from the start of the text in the file

        def parse_phrase(annotation: Any, where: str) -> Phrase:
            spans = member(annotation, "tokens_positive", list, where)
            start, stop = (place - before for place in _span(spans[0] if spans else [], where))
            span = (start, stop) if 0 <= start < stop <= len(caption) else None
            text = caption[start:stop] if span else reprlib.repr(spans)
            return Phrase(text, span, (member(annotation, "sam_mask", object, where),))

        numbered_annotations = enumerate(annotations[image.get("id")])
        keys = ((annotation, f"{key}: annotation {number}") for number, annotation in numbered_annotations)
        phrases = parse_usable(keys, parse_phrase, problems)
        return _image(image, caption, phrases, key, finder)

    return _parse_images(images, path, name, parse, problems)


def _read_captions_and_masks(
    path: Path, mask_path: Path, name: str, finder: ImageFinder, problems: list[str]
) -> list[GroundedImage]:
    """GranD-f val and test: `labels`, the phrases of a caption, and in a second file their masks in the same order."""
    images, captions = _coco_like(path, name, problems)
    mask_images, masks = _coco_like(mask_path, name, problems)
    mask_image_of = {image.get("id"): image for image in mask_images}

    def parse(image: dict[str, Any], key: str) -> GroundedImage:
        image_id = image.get("id")
        if len(captions[image_id]) != 1:
            raise BadSample(f"{key}: it has {len(captions[image_id])} captions in {path}, expected one")
        caption = caption_member(captions[image_id][0], key)
        labels = member(captions[image_id][0], "labels", list, key)
        if len(labels) != len(masks[image_id]):
            raise BadSample(f"{key}: {len(labels)} phrases in {path}, {len(masks[image_id])} masks in {mask_path}")
        phrases, after = [], 0
        for label, mask in zip(labels, masks[image_id], strict=True):
            text = member({"label": label}, "label", str, key).strip()
            ahead = find_phrase(caption[after:], text)  # the second "a cup" is the second one in the caption
            span = (ahead[0] + after, ahead[1] + after) if ahead else find_phrase(caption, text)
            after = span[1] if span else after
            phrases.append(Phrase(text, span, (mask.get("segmentation"),)))
        return _image({**mask_image_of.get(image_id, {}), **image}, caption, phrases, key, finder)

    return _parse_images(images, path, name, parse, problems)


def _parse_images(
    images: list[dict[str, Any]],
    path: Path,
    name: str,
    parse: Callable[[dict[str, Any], str], GroundedImage],
    problems: list[str],
) -> list[GroundedImage]:
    times = Counter(image.get("id") for image in images)

    def parse_one(image: dict[str, Any], key: str) -> GroundedImage:
        if times[image.get("id")] > 1:
            raise BadSample(f"{key}: {times[image.get('id')]} images have this id, so their phrases are not known")
        return parse(image, key)

    keys = ((image, f"{name}/image={image.get('id')}") for image in images)
    parsed = parse_usable(keys, parse_one, problems)
    refuse_nothing(parsed, path, problems)
    return parsed


def _image(entry: dict[str, Any], caption: str, phrases: list[Phrase], key: str, finder: ImageFinder) -> GroundedImage:
    """From the entry of an image in a COCO-like file; an image without a file name is named by its id."""
    size = size_member(entry, key) if {"height", "width"} & set(entry) else None
    path = finder.find(member({"file_name": f"{entry['id']}.jpg", **entry}, "file_name", str, key), key)
    return GroundedImage(key, path, size, caption, tuple(phrases))


def _coco_like(
    path: Path, name: str, problems: list[str]
) -> tuple[list[dict[str, Any]], dict[Any, list[dict[str, Any]]]]:
    """The images of a file, and the annotations of each image by its id. Raises DatasetError."""
    values, what = read_json(path), "a COCO-like file with the lists images and annotations"
    images = records(values, "images", ("id",), path, what)
    annotations = records(values, "annotations", ("image_id",), path, what)
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if not annotation.get("ignore"):
            by_image[annotation.get("image_id")].append(annotation)
    ignored = len(annotations) - sum(map(len, by_image.values()))
    if ignored:
        problems.append(f"{name}: {ignored} annotations of {path.name} are marked to be ignored and left out")
    return images, by_image


def _span(positions: Any, where: str) -> tuple[int, int]:
    if not isinstance(positions, list) or len(positions) != 2 or not all(type(at) is int for at in positions):
        raise BadSample(
            f"{where}: the positions {reprlib.repr(positions)} are not [first character, one past the last]"
        )
    return positions[0], positions[1]


RECORDS = tuple(
    SourceRecord(
        name=name,
        splits=SPLITS[name],
        files=(_FILES[name], _HELD_OUT_CAPTIONS, _HELD_OUT_MASKS) if name == GRAND_F else (_FILES[name],),
        sample="an image",
        turn="a request for a caption; its phrases are tagged `<p> phrase </p> [SEG]`",
        open=partial(open_gcg, name),
        image_folders=FOLDERS,
    )
    for name in NAMES
)
