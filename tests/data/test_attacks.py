"""Small files that claim much, names that lead out of the root, and what is no file at all."""

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, edit_instances, edit_refs
from every_source import write_every_source
from PIL import Image
from source_fixtures import SIZE, draw_sample, open_named, write_images, write_json

from pixel_sail.config import build_config
from pixel_sail.data import image, limits
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import image_size, load_image, upright
from pixel_sail.data.inside import inside
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import check_rle, from_coco
from pixel_sail.data.shards import decode_sample, encode_sample, open_shards, with_bytes
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.unpickle import load_plain_pickle
from pixel_sail.data.verify_shards import verify_shards
from pixel_sail.data.write_shards import make_shards
from pixel_sail.errors import UserError
from pixel_sail.files import parse_json, parse_npy
from pixel_sail.tokens import prompt_names
from pixel_sail.types import BadSample, Sample, Turn

MEGABYTE = 2**20
DOORS = {"files.py", "durable.py", "locks.py", "data/image.py", "data/shards.py", "data/verify_shards.py"}
DOORS |= {"data/write_shards.py", "data/source_table.py", "data/sources/unpickle.py"}  # the last: /proc/self/statm
DOORS |= {"data/sources/kept.py"}  # files of our own
DOORS |= {"data/sources/anywhere.py"}  # those too, and files that state_of has looked at


@pytest.fixture
def little(monkeypatch):
    """Asserts that a test takes less than 100 MB and 5 seconds."""
    tracemalloc.start()
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * MEGABYTE and time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # in KiB


# --- the doors --------------------------------------------------------------------------------------------------------


def test_files_are_opened_at_the_doors_alone():
    opened = set()
    package = REPOSITORY / "pixel_sail"
    for path in [package / "config.py", package / "yaml_file.py", *(package / "data").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                ours = name.startswith(("files.", "yaml_file."))
                if not ours and (
                    name in ("open", "np.load", "os.open") or name.endswith((".read_bytes", ".read_text", ".open"))
                ):
                    opened.add(str(path.relative_to(package)))
    assert opened <= DOORS | {"data/sources/__init__.py"}, opened - DOORS  # the latter calls record.open


def _oddities(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    return {kind: folder / kind for kind in ("pipe", "zero", "folder", "loop")} | {"long": folder / ("x" * 300)}


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "loop", "long"])
def test_what_is_no_file_is_refused_and_not_read_for_ever(tmp_path, little, kind):
    path = _oddities(tmp_path / "odd")[kind]
    for read in (
        *(load_image, lambda path: image_size(path, "k"), lambda path: image_size(path, "k", orient=True)),
        *(lambda path: read_mask_file(path, "k"), load_plain_pickle),
        lambda path: with_bytes(Sample("k", path, (Turn("a", "b"),))),
    ):
        with pytest.raises(UserError, match="named pipe|a device|a folder|cannot read|no .*file"):
            read(path)
    assert upright(path) == path


@pytest.mark.parametrize("name", ["refcoco", "muse", "jsonl", "reason_seg", "mapillary", "perbench_mcq"])
def test_annotations_that_are_no_files(tmp_path, little, name):
    _, file = write_every_source(tmp_path)[name]
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    with pytest.raises(DatasetError, match="is a named pipe"):
        open_named(tmp_path, name)


def test_a_split_whose_name_is_too_long_for_a_file(tmp_path):
    with pytest.raises(DatasetError, match="cannot read .*File name too long"):
        open_named(tmp_path, "jsonl", "x" * 300)


# --- images -----------------------------------------------------------------------------------------------------------


def _png(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_images_that_claim_more_pixels_than_may_be(tmp_path, little):
    path = tmp_path / "bomb.png"
    for sides in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (13_500, 13_500)):
        path.write_bytes(_png(*sides))
        for read in (load_image, lambda path: image_size(path, "k"), lambda path: read_mask_file(path, "k")):
            with pytest.raises(BadSample, match=r"has more than 180,000,000 pixels; save a smaller copy"):
                read(path)
    with pytest.raises(BadSample, match="180,000,000 pixels"):
        load_image(path.read_bytes())


def test_images_that_need_a_program_are_not_opened(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n")
    with pytest.raises(BadSample, match="cannot decode the image"):
        load_image(path)
    with Image.open(path) as opened:  # which Pillow would
        assert opened.format == "EPS"


def test_a_cut_image_is_never_decoded_in_part():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        whole, expected = file.getvalue(), load_image(file.getvalue()).tobytes()
        for stop in range(0, len(whole), 7):
            with contextlib.suppress(BadSample):
                assert load_image(whole[:stop]).tobytes() == expected, (kind, stop)


def test_a_mask_as_jpeg_is_refused(tmp_path):
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png", "JPEG")
    with pytest.raises(BadSample, match="k: the mask file .*mask.png is a JPEG, .*; save masks as PNG"):
        read_mask_file(tmp_path / "mask.png", "k")


def test_label_maps_with_a_value_that_is_no_class(tmp_path):
    write_every_source(tmp_path)
    for name, file, value in [
        ("ade20k", "ade20k/annotations/training/a.png", 151),
        ("mapillary", "mapillary/training/v2.0/labels/a.png", 2),
    ]:
        for unknown in (value, 255):
            labels = np.ones(SIZE, dtype=np.uint8)
            labels[0, 0] = unknown
            Image.fromarray(labels).save(tmp_path / file)
            source = open_named(tmp_path, name)
            if unknown == 255:
                draw_sample(source)
                continue
            with pytest.raises(BadSample, match=f"has the value {value}, which stands for no class"):
                draw_sample(source)


def test_a_grey_panoptic_png_is_refused(tmp_path):
    write_every_source(tmp_path)
    Image.fromarray(np.ones(SIZE, dtype=np.uint8)).save(tmp_path / "annotations/panoptic_train2017/9.png")
    with pytest.raises(BadSample, match="is of mode L; the number of a segment is in the three colours"):
        draw_sample(open_named(tmp_path, "panoptic_category"))


# --- masks ------------------------------------------------------------------------------------------------------------

HUGE = {
    "an RLE of a huge image": ({"size": [60_000, 60_000], "counts": "PPYo1"}, 60_000, "at most 180,000,000"),
    "an uncompressed one": ({"size": [60_000, 60_000], "counts": [3_600_000_000]}, 60_000, "at most 180,000,000"),
    "polygons in it": ([[0, 0, 50_000, 0, 50_000, 50_000]], 60_000, "at most 180,000,000"),
    "continuation bytes": ({"size": [30, 30], "counts": "o" * 3_000_000}, 30, "the run lengths do not fill"),
    "more of them": ({"size": [30, 30], "counts": "o" * 5_000_000}, 30, "at most .* 4,000,000 characters"),
    "numbers": ({"size": [30, 30], "counts": [0] * 4_000_001}, 30, "at most 4,000,000"),
    "huge runs": ({"size": [30, 30], "counts": [10**300, -(10**300)]}, 30, "do not fill"),
    "many polygons": ([[0, 0, 1, 0, 1, 1]] * 10_001, 30, "10,001 polygons; at most 10,000"),
    "many points": ([[0.0, 0.0, 9.0, 0.0] * 120_000], 30, "outline is .* pixels long; at most 2,000,000"),
    "a zigzag": ([[0, 0, 9000, 9000, 0, 9000, 9000, 0] * 100], 9000, "outline is .* long; at most 2,000,000"),
    "far away": ([[1e300, 0, 5, 5, 0, 5]], 30, "lies far outside"),
}


@pytest.mark.parametrize("name", HUGE)
def test_masks_that_would_fill_the_memory(little, name):
    segmentation, side, message = HUGE[name]
    with pytest.raises(BadSample, match=message) as error:
        from_coco(segmentation, side, side, "k")
    assert len(str(error.value)) < 500
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        with pytest.raises(BadSample, match=message):
            check_rle(segmentation, (side, side), "k")


def test_sizes_of_annotations_are_limited_before_anything_is_drawn(tmp_path, little):
    write_images(tmp_path / "images", "a.jpg")
    entry = {"image_name": "a.jpg", "object_annotations": [{"caption": "A cup.", "segmentation": {}}]}
    entry["object_annotations"][0]["segmentation"] = {"size": [60_000, 60_000], "counts": "PPYo1"}
    write_json(tmp_path / "sam_captions/train.json", [entry])
    with pytest.raises(UserError, match="at most 180,000,000"):
        draw_sample(open_named(tmp_path, "sam_captions"))


def test_limits_of_polygons_of_reason_seg(tmp_path, little):
    _, file = write_every_source(tmp_path)["reason_seg"]
    zigzag = [[0, 0], [900_000, 900_000]] * 1000
    for shapes, message in [
        ([{"label": "target", "points": zigzag}], "outline is .* at most 2,000,000"),
        ([{"label": "target", "points": [[0, 0], [9, 0], [9, 9]]}] * 10_001, "at most 10,000 are drawn"),
    ]:
        write_json(tmp_path / file, {"text": ["What?"], "is_sentence": True, "shapes": shapes})
        with pytest.raises(DatasetError, match=message):
            open_named(tmp_path, "reason_seg")


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "jsonl", "muse", "osprey_conversation", "refcoco_captions"])
@pytest.mark.parametrize(
    ("text", "message"), [("x" * 60_000, "60,00. characters; at most 50,000"), ("a \ud83d cup", "half a char")]
)
def test_texts_that_nothing_can_take(tmp_path, name, text, message):
    _, file = write_every_source(tmp_path)[name]
    path = tmp_path / file
    if name == "refcoco_captions":
        path = tmp_path / "refcoco/refs(unc).p"
        refs = pickle.loads(path.read_bytes())
        for ref in refs:
            ref["sentences"] = [{"sent_id": 1, "sent": text}]
        path.write_bytes(pickle.dumps(refs))
    else:
        old = (
            "What is <region1>?" if name.startswith("osprey") else "What is hot?" if name == "muse" else "It is [SEG]."
        )
        old = "What is it?" if name == "llava" else old
        escaped = json.dumps(text)[1:-1]
        path.write_text(path.read_text().replace(old, escaped))
    with pytest.raises(DatasetError, match=message) as error:
        open_named(tmp_path, name)
    assert str(error.value).encode() and len(str(error.value)) < 2500


def test_a_conversation_of_a_million_turns(tmp_path):
    write_images(tmp_path / "images", "a.png")
    lines = {"image": "a.png", "conversations": [{"question": "a", "answer": "b"}] * 1001}
    (tmp_path / "train.jsonl").write_text(json.dumps(lines))
    with pytest.raises(DatasetError, match="1,001 turns; at most 1,000 are read"):
        open_named(tmp_path, "jsonl")


def test_a_prompt_of_thousands_of_digits_is_a_number_too_large():
    assert prompt_names("<Prompt3> <Prompt" + "9" * 5000 + ">") == [3, 10**9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"id": 1, "id": 2}', "the key 'id' twice"),
        ('[{"a": {"b": [], "b": {}}}]', "the key 'b' twice"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_meant(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    assert parse_json('{"id": 1, "id": 1}') == {"id": 1}


# --- names that lead out of the root ----------------------------------------------------------------------------------

OUTSIDE = ("../secret.jpg", "a/../../secret.jpg", "{outside}/secret.jpg", "/etc/passwd")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_image_outside_of_the_root_is_never_opened(tmp_path, name):
    root = tmp_path / "root"
    write_images(tmp_path, "secret.jpg")
    write_images(root / "images/a", "x.jpg")
    name = name.format(outside=tmp_path)
    for folders in (ImageFinder.FOLDERS, (*ImageFinder.FOLDERS, "")):
        with pytest.raises(BadSample, match=r"^k: the file name .* leads out of the dataset's folder"):
            ImageFinder(root, folders).find(name, "k")
    lines = {"image": name, "conversations": [{"question": "a", "answer": "b [SEG]"}], "masks": [name]}
    (root / "train.jsonl").write_text(json.dumps(lines) + "\n" + json.dumps(lines | {"image": "a/x.jpg"}))
    with pytest.raises(
        DatasetError, match=r"(?s):1: the file name .* leads out.*:2: mask 0: the file name .* leads out"
    ):
        open_named(root, "jsonl")


def test_coco_panoptic_and_referring_names_stay_inside(dataset):
    def change(values):
        for entry in values["images"]:
            entry["file_name"] = "../../../secret.jpg"

    edit_instances(dataset, change)
    with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
        open_named(dataset, "refcoco")


def test_a_panoptic_png_stays_inside(tmp_path):
    _, file = write_every_source(tmp_path)["panoptic_category"]
    path = tmp_path / file
    path.write_text(path.read_text().replace('"9.png"', '"../9.png"'))
    with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
        open_named(tmp_path, "panoptic_category")


def test_links_that_the_user_made_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere", "a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/images").symlink_to(tmp_path / "elsewhere")
    assert ImageFinder(tmp_path / "root").find("a.jpg", "k") == tmp_path / "root/images/a.jpg"
    for name in ("a\0b", "\ud800.jpg"):
        with pytest.raises(BadSample, match="can be the name of no file"):
            inside(name, "k")
    with pytest.raises(BadSample, match="File name too long"):
        ImageFinder(tmp_path / "root").find("x" * 300, "k")


def test_what_is_no_image_does_not_go_into_shards(tmp_path):
    (tmp_path / "a.jpg").symlink_to("/etc/passwd")
    with pytest.raises(BadSample, match="k: cannot read the image .*a.jpg: cannot decode"):
        with_bytes(Sample("k", tmp_path / "a.jpg", (Turn("a", "b"),)))


# --- pickles and arrays -----------------------------------------------------------------------------------------------

PICKLES = {
    "a memo of billions": b"\x80\x02]r\xff\xff\xff\x7f.",
    "the same as text": b"]p99999999999\n.",
    "a claimed size": b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"a.",
    "a claimed text": b"\x80\x04\x8d" + (10**12).to_bytes(8, "little") + b"a.",
    "tuples of tuples": b"\x80\x02N" + b"".join(bytes([0x71, i, 0x68, i, 0x86]) for i in range(200)) + b".",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_would_grow(dataset, little, name):
    (dataset / "refcoco/refs(unc).p").write_bytes(PICKLES[name])
    with pytest.raises(DatasetError, match="is no usable pickle|is not a complete pickle|is not a list of REFER refs"):
        open_named(dataset, "refcoco")
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_pickle_whose_refs_are_one_ref_in_many_places(dataset, monkeypatch):
    monkeypatch.setattr("pixel_sail.data.sources.referring.MAX_SENTENCES", 1000)
    edit_refs(dataset, lambda refs: refs.__setitem__(slice(None), [refs[0]] * 600))
    with pytest.raises(DatasetError, match="more than 1,000 expressions"):
        open_named(dataset, "refcoco")


def test_different_refs_with_one_id_are_left_out(dataset):
    def change(refs):
        refs.append(refs[0] | {"sentences": [{"sent_id": 1, "sent": "another thing"}]})
        refs.append(dict(refs[1]))  # the same once more does no harm

    edit_refs(dataset, change)
    source = open_named(dataset, "refcoco")
    assert [problem.split(": ")[1].partition(" has ")[2] for problem in source.problems] == [
        "different refs with this id"
    ] * 2


def test_arrays_that_claim_more_than_they_have(little):
    def npy(header):
        text = header.encode() + b" " * (117 - len(header)) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text

    good = np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4))
    file = io.BytesIO()
    np.save(file, good)
    np.testing.assert_array_equal(parse_npy(file.getvalue()), good)
    for header, message in {
        "{'descr': '<f2', 'fortran_order': False, 'shape': (1000000, 1000000)}": "claims .* and has 0",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (-1, -5)}": "claims",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}": "no plain numbers",
        "{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (3,)}": "no plain numbers",
        "{": "header|npy|parse|Cannot",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_npy(npy(header))
    with pytest.raises(ValueError):
        parse_npy(b"\x93NUMPY\x01\x00")


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(dataset, tmp_path):
    values = {
        "run": {"dir": "unused"},
        "model": {"base": "unused"},
        "data": {"root": str(dataset), "mixture": [{"source": "refcoco"}]},
        "train": {"steps": 1, "batch_size": 1},
    }
    config = build_config(values, "test")
    make_shards(config, tmp_path / "shards", samples=3)
    return tmp_path / "shards", config


def _reseal(root, change):
    """Changes 000000.index.json, and makes shards.json agree."""
    index = json.loads((root / "000000.index.json").read_text())
    data = json.dumps(change(index) or index).encode()
    (root / "000000.index.json").write_bytes(data)
    values = json.loads((root / "shards.json").read_text())
    values["shards"][0] |= {"index_bytes": len(data), "index_sha256": hashlib.sha256(data).hexdigest()}
    (root / "shards.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(shards=5),
        lambda v: v.update(shards=[None]),
        lambda v: v.update(problems=[1]),
        lambda v: v.update(request=None),
        lambda v: v["request"].pop("experts"),
        lambda v: v["request"].update(experts={"a": 3}),
        lambda v: v["request"]["data"].update(hide=None),
        lambda v: v["request"]["data"].update(exclude=5),
        lambda v: v["shards"][0].update(file="../000000.tar"),
        lambda v: v["shards"][0].update(file="/etc/passwd"),
        lambda v: v["shards"][0].update(index="../x.json"),
        lambda v: v["shards"][0].update(samples=-1),
        lambda v: v["shards"][0].update(samples=True),
        lambda v: v["shards"][0].update(bytes=10**30),
        lambda v: v["shards"][0].update(extra=1),
        lambda v: v["shards"].append(v["shards"][0]),
        lambda v: v.update(version=[]),
    ],
)
def test_an_edited_shards_json(shards, change):
    root, config = shards
    values = json.loads((root / "shards.json").read_text())
    change(values)
    (root / "shards.json").write_text(json.dumps(values))
    for read in (lambda: open_shards(root, config.data), lambda: verify_shards(root)):
        try:
            read()
        except DatasetError as error:
            assert "shards.json" in str(error)
        else:
            assert read is not None and "exclude" in str(values["request"]), "was read"


@pytest.mark.parametrize(
    "text",
    ["[]", "5", "null", '{"version": 1', '{"version": 1}', "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe\0"],
)
def test_a_shards_json_of_something_else(shards, text):
    root, config = shards
    (root / "shards.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=r"shards\.json"):
        open_shards(root, config.data)


def _span(index, n, *values):
    index["samples"][0]["members"]["json"] = list(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i["samples"].pop(),
        lambda i: i.update(samples=3),
        lambda i: [1],
        lambda i: i["samples"][0].pop("members"),
        lambda i: i["samples"][0].update(key=5),
        lambda i: i["samples"][0].update(key="\ud800"),
        lambda i: i["samples"][0]["members"].pop("json"),
        lambda i: _span(i, 0, -1, 5, 0),
        lambda i: _span(i, 0, 512, 10**18, 0),
        lambda i: _span(i, 0, 10**30, 1, 0),
        lambda i: _span(i, 0, 512, 1.5, 0),
        lambda i: _span(i, 0, 512, True, 0),
        lambda i: _span(i, 0, 512),
        lambda i: i["samples"][1]["members"].update(json=i["samples"][0]["members"]["json"]),
    ],
)
def test_an_edited_index_of_a_shard(shards, little, change):
    root, config = shards
    _reseal(root, change)
    source = open_shards(root, config.data)
    with pytest.raises(DatasetError, match=r"000000\.index\.json"):
        source.sample(0, np.random.default_rng(0))


def test_stored_samples_of_other_contents(shards):
    root, config = shards
    sample = open_shards(root, config.data).sample(0, np.random.default_rng(0))
    members = encode_sample(sample)
    good = json.loads(members["json"])
    torn = {"size": [60_000, 60_000], "counts": "PPYo1"}
    for change in (
        *(
            {"turns": 5},
            {"turns": [{}]},
            {"turns": [{"question": 1, "answer": "b"}]},
            {"masks": [torn]},
            {"masks": [5]},
        ),
        *({"masks": [{"size": [9, 9], "counts": "1"}]}, {"prompts": []}, {"prompts": {"x": torn}}, {"image": "gif"}),
        *({"image": []}, {"key": 5}, {"dropped_turns": "x"}, {"dropped_turns": float("inf")}),
    ):
        with pytest.raises(BadSample, match="^here: "):
            decode_sample(members | {"json": json.dumps(good | change).encode()}, "here")
    for data in (b"[]", b"5", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(BadSample, match="^here: "):
            decode_sample(members | {"json": data}, "here")
    with pytest.raises(BadSample, match="^here: "):
        decode_sample(members | {"masks.npy": b"\x93NUMPY\x01\x00"}, "here")
    assert decode_sample(members) == sample


def test_the_limits_are_named_in_one_place():
    assert image.MAX_IMAGE_PIXELS == limits.MAX_IMAGE_PIXELS
    page = (REPOSITORY / "docs/add_a_dataset.md").read_text()
    for value in (limits.MAX_IMAGE_PIXELS, limits.MAX_TEXT_CHARACTERS, limits.MAX_TURNS, limits.MAX_OUTLINE_PX):
        assert f"{value:,}" in page
