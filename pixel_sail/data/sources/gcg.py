"""Grounded caption generation (GCG): the four datasets of GLaMM's GranD-f (arXiv 2311.03356), in its folder layout.

<root>/GranDf/annotations/train/{GranDf_HA_GCG_train, OpenPsgGCG_{split}, RefCOCOg_GCG_{split},
                                 flickr_mergedGT_GCG_{split}}.json
<root>/GranDf/annotations/val_test/{val,test}_gcg_coco_{caption,mask}_gt.json      what grand_f is scored on
<root>/GranDf_HA_images/{train,val_test}/*.jpg, and the images of COCO and Flickr30k
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.coco import ImageFinder, read_json
from pixel_sail.data.sources.entries import member, read_entries, refuse_nothing
from pixel_sail.data.sources.grounded import GroundedImage, GroundedSource, Phrase, caption_member, find_phrase
from pixel_sail.types import BadSample

GRAND_F, OPEN_PSG, REFCOCOG, FLICKR = NAMES = ("grand_f", "open_psg", "refcocog_gcg", "flickr_gcg")
SPLITS = {name: ("train", "val") for name in NAMES} | {GRAND_F: ("train", "val", "test")}
FOLDERS = (
    "GranDf_HA_images/train",
    "GranDf_HA_images/val_test",
    *ImageFinder.FOLDERS,
    "images/flickr30k",
    "flickr30k",
    "flickr_30k",
)
_FILES = {
    OPEN_PSG: "OpenPsgGCG_{}.json",
    REFCOCOG: "RefCOCOg_GCG_{}.json",
    FLICKR: "flickr_mergedGT_GCG_{}.json",
    GRAND_F: "GranDf_HA_GCG_{}.json",
}


def annotation_file(root: Path, name: str, split: str) -> Path:
    """Where the captions of a dataset are expected."""
    annotations = root / "GranDf" / "annotations"
    if name == GRAND_F and split != "train":
        return annotations / "val_test" / f"{split}_gcg_coco_caption_gt.json"
    return annotations / "train" / _FILES[name].format(split)


def open_gcg(root: Path, name: str, split: str) -> GroundedSource:
    """One Sample an image. Raises DatasetError; what cannot be used is listed in `.problems`."""
    problems: list[str] = []
    images = read_gcg(root, name, split, problems)
    return GroundedSource(images, problems, annotation_file(root, name, split))


def read_gcg(root: Path, name: str, split: str, problems: list[str]) -> list[GroundedImage]:
    """Every image with its caption and all phrases that are annotated. Raises DatasetError."""
    if split not in SPLITS[name]:
        raise DatasetError(f"{name} has the splits {', '.join(SPLITS[name])}, got {split!r}")
    path, where, finder = annotation_file(root, name, split), f"{name}/{split}", ImageFinder(root, FOLDERS)
    if name == FLICKR:
        return _read_flickr(path, where, finder, problems)
    if name == GRAND_F and split != "train":
        return _read_caption_and_masks(path, where, finder, problems)
    parse = _referred if name == REFCOCOG else _grounded
    return read_entries(path, where, lambda entry, key: parse(entry, key, finder), problems)


def _grounded(entry: Any, key: str, finder: ImageFinder) -> GroundedImage:
    """GranD-f and OpenPSG: {file_name, height, width, caption, groundings: {phrase: {token_positives, rle_masks}}}."""
    caption = caption_member(entry, key)
    phrases = []
    for text, grounding in member(entry, "groundings", dict, key).items():
        where = f"{key}: the phrase {text!r}"
        span = _span(member(grounding, "token_positives", list, where), where)
        # The positions count from before or after the quotation marks around some captions: the words decide.
        found = span if caption[slice(*span)].lower() == text.lower() else find_phrase(caption, text.strip(), span[0])
        phrases.append(Phrase(text, found, tuple(member(grounding, "rle_masks", list, where))))
    size = (member(entry, "height", int, key), member(entry, "width", int, key))
    return GroundedImage(key, finder.find(member(entry, "file_name", str, key), key), size, caption, tuple(phrases))


def _referred(entry: Any, key: str, finder: ImageFinder) -> GroundedImage:
    """RefCOCOg: {id: {img_file_name, caption, refs: [{sentence, segmentation}]}}; where a phrase stands is not said."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise BadSample(f"{key}: expected an object with one member, the id of the image")
    (values,) = entry.values()
    caption = caption_member(values, key)
    phrases = []
    for number, ref in enumerate(member(values, "refs", list, key)):
        where = f"{key}: ref {number}"
        text = member(ref, "sentence", str, where).strip()
        phrases.append(Phrase(text, find_phrase(caption, text), (member(ref, "segmentation", object, where),)))
    image = finder.find(member(values, "img_file_name", str, key), key)
    return GroundedImage(key, image, None, caption, tuple(phrases))


def _read_flickr(path: Path, name: str, finder: ImageFinder, problems: list[str]) -> list[GroundedImage]:
    """Flickr30k: COCO-like, with `caption` on the images and `tokens_positive`, `sam_mask` on the annotations."""
    images, annotations = _coco_like(path, name, problems)

    def parse(image: dict[str, Any], key: str) -> GroundedImage:
        caption = caption_member(image, key)
        before = image["caption"].index(caption)  # the positions count from the start of the text in the file
        phrases = []
        for number, one in enumerate(annotations[image.get("id")]):
            where = f"{key}: annotation {number}"
            spans = member(one, "tokens_positive", list, where)
            start, stop = (place - before for place in _span(spans[0] if spans else [], where))
            span = (start, stop) if 0 <= start < stop <= len(caption) else None
            text = caption[start:stop] if span else str(spans)
            phrases.append(Phrase(text, span, (member(one, "sam_mask", object, where),)))
        return _image(image, caption, phrases, key, finder)

    return _parse_images(images, path, name, parse, problems)


def _read_caption_and_masks(path: Path, name: str, finder: ImageFinder, problems: list[str]) -> list[GroundedImage]:
    """GranD-f val and test: `labels`, the phrases of a caption, and in a second file their masks in the same order."""
    mask_path = path.with_name(path.name.replace("caption", "mask"))
    images, captions = _coco_like(path, name, problems)
    known, masks = _coco_like(mask_path, name, problems)
    known_of = {image.get("id"): image for image in known}

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
            text = str(label).strip()
            ahead = find_phrase(caption[after:], text)  # the second "a cup" is the second one in the caption
            span = (ahead[0] + after, ahead[1] + after) if ahead else find_phrase(caption, text)
            after = span[1] if span else after
            phrases.append(Phrase(text, span, (member(mask, "segmentation", object, key),)))
        return _image({**known_of.get(image_id, {}), **image}, caption, phrases, key, finder)

    return _parse_images(images, path, name, parse, problems)


def _parse_images(
    images: list[dict[str, Any]],
    path: Path,
    name: str,
    parse: Callable[[dict[str, Any], str], GroundedImage],
    problems: list[str],
) -> list[GroundedImage]:
    parsed = []
    for image in images:
        try:
            parsed.append(parse(image, f"{name}/image={image.get('id')}"))
        except BadSample as error:
            problems.append(str(error))
    refuse_nothing(parsed, path, problems)
    return parsed


def _image(known: dict[str, Any], caption: str, phrases: list[Phrase], key: str, finder: ImageFinder) -> GroundedImage:
    """Of what a COCO-like file says about an image; the images of GranD-f are named by their id."""
    sides = (known.get("height"), known.get("width"))
    size = sides if all(isinstance(side, int) for side in sides) else None
    image = finder.find(str(known.get("file_name", f"{known.get('id')}.jpg")), key)
    return GroundedImage(key, image, size, caption, tuple(phrases))


def _coco_like(
    path: Path, name: str, problems: list[str]
) -> tuple[list[dict[str, Any]], dict[Any, list[dict[str, Any]]]]:
    """The images of a file, and the annotations of each image by its id. Raises DatasetError."""
    values = read_json(path)
    images, annotations = (values.get(part) if isinstance(values, dict) else None for part in ("images", "annotations"))
    for found in (images, annotations):
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise DatasetError(f"{path} is not a COCO-like file: it needs the lists images and annotations")
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if not annotation.get("ignore"):
            by_image[annotation.get("image_id")].append(annotation)
    ignored = len(annotations) - sum(map(len, by_image.values()))
    if ignored:
        problems.append(f"{name}: {ignored} annotations of {path.name} are marked to be ignored and left out")
    return images, by_image


def _span(positions: Any, where: str) -> tuple[int, int]:
    if not isinstance(positions, list) or len(positions) != 2 or not all(isinstance(at, int) for at in positions):
        raise BadSample(f"{where}: the positions {positions!r} are not [first character, one past the last]")
    return positions[0], positions[1]
