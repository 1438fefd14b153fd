"""The source jsonl: the example of docs/jsonl.md, every form of mask and region, and a message for every mistake."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from source_fixtures import SIZE, assert_mask, box_mask, box_polygon, box_rle, box_runs, draw_sample, open_named

from pixel_sail.config import build_config
from pixel_sail.data import check
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.shards import open_shards
from pixel_sail.data.write_shards import make_shards
from pixel_sail.types import BadSample


def write_lines(root, *lines, split="train"):
    """A folder of the source with one image: masks/box.png is box_mask(5, 5)."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(root / "images/a.png")
    Image.fromarray(box_mask(5, 5).astype(np.uint8) * 255).save(root / "masks/box.png")
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def line(question="Segment it.", answer="[SEG]", masks=("box.png",), **more):
    return {"image": "a.png", "conversations": [{"question": question, "answer": answer}], "masks": list(masks)} | more


def asked(regions, question="<Prompt0>?"):
    return line(question, "Yes.", (), regions=regions)


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    first, others = re.findall(r"```json\n(.*?)```", (REPOSITORY / "docs/jsonl.md").read_text(), re.DOTALL)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("desk", "street"):
        Image.new("RGB", (64, 48), "grey").save(tmp_path / f"images/{name}.png")
    Image.fromarray(np.eye(48, 64, dtype=np.uint8) * 255).save(tmp_path / "masks/mug.png")
    (tmp_path / "train.jsonl").write_text(" ".join(first.split()) + "\n" + others)
    tool(monkeypatch, "prepare_data.py", "check", "--root", tmp_path, "--source", "jsonl")
    assert "found    jsonl:train                        3 samples, 3 decoded\n" in capsys.readouterr().out
    source = open_named(tmp_path, "jsonl")
    desk, street, choice = (draw_sample(source, index) for index in range(3))
    assert (len(desk.masks), len(street.masks), len(choice.masks)) == (1, 2, 0)
    assert_mask(desk.masks[0], np.eye(48, 64, dtype=bool))
    box = np.zeros((48, 64), dtype=bool)
    box[10:18, 40:56] = True  # x, y, width, height
    assert_mask(desk.prompts[0], box)
    point = np.zeros((48, 64), dtype=bool)
    point[10, 12] = True
    assert_mask(choice.prompts[0], point)
    assert choice.key == "train.jsonl:3" and choice.image == tmp_path / "images/street.png"
    tool(monkeypatch, "inspect_data.py", "--source", "jsonl", "--root", tmp_path, "--out", tmp_path / "drawn")
    text = (tmp_path / "drawn/jsonl_train.txt").read_text()
    assert text.count("<vision>") == text.count("[SEG]") == 3 and ">><Prompt1>.<|endoftext|><<" in text


def test_every_form_of_a_mask(tmp_path):
    forms = [box_polygon(0, 5), box_rle(10, 5), box_runs(20, 5), "box.png", "masks/box.png"]
    write_lines(tmp_path, line("Segment all.", " ".join(["[SEG]"] * 5), forms))
    for rle, (x, y) in zip(draw_sample(open_named(tmp_path, "jsonl")).masks, [(0, 5), (10, 5), (20, 5)], strict=False):
        assert_mask(rle, box_mask(x, y))
    for rle in draw_sample(open_named(tmp_path, "jsonl")).masks[3:]:
        assert_mask(rle, box_mask(5, 5))


def test_the_nth_seg_takes_the_nth_mask_over_all_answers(tmp_path):
    entry = line(masks=[box_rle(0, 0), box_rle(10, 0), box_rle(20, 0)])
    entry["conversations"] = [
        {"question": "Two?", "answer": "[SEG] then [SEG]"},
        {"question": "Words?", "answer": "None."},
        {"question": "One?", "answer": "[SEG]"},
    ]
    sample = draw_sample(open_named(write_lines(tmp_path, entry), "jsonl", count=1))  # all turns, in their order
    assert [turn.question for turn in sample.turns] == ["Two?", "Words?", "One?"]
    for x, rle in zip((0, 10, 20), sample.masks, strict=True):
        assert_mask(rle, box_mask(x, 0))


def test_regions_keep_their_numbers(tmp_path):
    regions = {"7": [5, 10, 15, 5], "2": [39, 29], "0": box_rle(0, 0), "11": "box.png", "3": box_polygon(20, 20)}
    write_lines(tmp_path, asked(regions, "<Prompt7> <Prompt2> <Prompt0> <Prompt11> <Prompt3>?"))
    prompts = open_named(tmp_path, "jsonl").sample(0, np.random.default_rng(0)).prompts
    assert list(prompts) == [0, 2, 3, 7, 11]
    rows, columns = np.nonzero(decode_mask(prompts[7]))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (5, 19, 10, 14)
    assert np.argwhere(decode_mask(prompts[2])).tolist() == [[29, 39]]
    for k, (x, y) in {0: (0, 0), 11: (5, 5), 3: (20, 20)}.items():
        assert_mask(prompts[k], box_mask(x, y))


def test_text_alone_and_a_byte_order_mark(tmp_path):
    talk = {"image": None, "conversations": [{"question": "Où?", "answer": "Ici."}]}
    write_lines(tmp_path, talk)
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\n\n")
    sample = draw_sample(open_named(tmp_path, "jsonl"))
    assert sample.image is None and sample.turns[0].answer == "Ici."
    path.write_bytes(json.dumps(talk, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(DatasetError, match=r"train.jsonl, line \d+: the text is not UTF-8 .*; .* convert it: iconv"):
        open_named(tmp_path, "jsonl")


READING = [
    ('{"image": "a.png"', "not valid JSON: Expecting"),
    ("[1, 2]", "[1, 2] is no object {...}; one line is one image"),
    ({"image": "a.png"}, "it has no 'conversations'"),
    ({"image": "a.png", "conversations": []}, "its 'conversations' are empty"),
    ({"conversations": [{"question": "a", "answer": "b"}]}, "it has no 'image'; write null for"),
    (line(image="b.png"), "no image {root}/b.png or {root}/images/b.png"),
    (line(image=3), "its 'image' is 3; expected str"),
    (line(question=" "), "conversation 0: its question is empty"),
    (line(answer=""), "conversation 0: its answer is empty"),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "a"}]}, "conversation 0: it has no 'question'"),
    (line(question="Is it [SEG]?"), "conversation 0: [SEG] stands in the question"),
    (line(answer="<vision> [SEG]"), "conversation 0: the text contains <vision>, which is reserved"),
    (line(answer="[SEG] [SEG]"), "its answers have 2 [SEG], but 'masks' has 1; each needs its own"),
    (line(answer="Yes."), "its answers have 0 [SEG], but 'masks' has 1"),
    (line(masks=["c.png"]), "mask 0: no mask file {root}/c.png or {root}/masks/c.png"),
    (line() | {"masks": "box.png"}, "its 'masks' are 'box.png'; expected a list"),
    (asked({}), "<Prompt0> is named, but 'regions' has no \"0\""),
    (asked({"0": [1, 1], "1": [2, 2]}), "region 1 is drawn, but no question or answer names <Prompt1>"),
    (asked([[1, 1]]), "its 'regions' are [[1, 1]]; expected {"),
    (asked({"Prompt0": [1, 1]}), 'no region can be called "Prompt0"; write the K of <PromptK>, "0" to "14"'),
    (asked({"15": [1, 1]}, "<Prompt15>?"), 'no region can be called "15"'),
    (line(image=None), "it has masks or regions, but no image"),
]
DECODING = [
    (line(masks=[{"size": [7, 9], "counts": "a"}]), "mask 0: the mask is of size [7, 9], the image is [30, 40]"),
    (line(masks=["other.png"]), "mask 0: {root}/masks/other.png is 9 x 7 pixels, the image 40 x 30 (width x height)"),
    (line(masks=["torn.png"]), "mask 0: cannot decode the mask file {root}/masks/torn.png"),
    (line(masks=["black.png"]), "mask 0 has no pixel"),
    (line(masks=[[1, 1, 9, 1, 9, 9]]), "mask 0: [1, 1, 9, 1, 9, 9] is one polygon; write a list of polygons"),
    (line(masks=[[[1, 1, 9, 1]]]), "mask 0, polygon 0: [1, 1, 9, 1] is no polygon"),
    (line(masks=[[[1, 1, 9, 1, 9, 9], [1, 1, 9, 1]]]), "mask 0, polygon 1: [1, 1, 9, 1] is no polygon"),
    (line(masks=[box_rle(0, 0) | {"counts": "zz"}]), "mask 0: the run lengths do not fill 30 x 40 pixels"),
    (
        asked({"0": [5, 5, 40, 30]}),
        "region 0: the box [5, 5, 40, 30] reaches from (5, 5) to (45, 35), beyond the image",
    ),
    (asked({"0": [5, 5, 0, 3]}), "region 0: [5, 5, 0, 3] is no box [x, y, width, height]"),
    (asked({"0": [40, 3]}), "region 0: the point (40, 3) of <Prompt0> is outside the image of 40 x 30 pixels"),
    (asked({"0": [1, 2, 3]}), "region 0: [1, 2, 3] has 3 numbers; a box has 4"),
    (asked({"0": "black.png"}), "region 0 has no pixel"),
    (asked({"0": [5, 5, 5, 5], "1": box_rle(5, 5)}, "<Prompt0> <Prompt1>?"), "regions 0 and 1 are the same pixels"),
    (line(image="turned.jpg"), "{root}/images/turned.jpg is stored turned (EXIF orientation 6)"),
    (line(image="torn.png"), "cannot decode the image {root}/images/torn.png"),
]


def write_mistakes(root, *mistakes):
    """A good line, and one with each mistake: the number of the line is that of the mistake + 2."""
    write_lines(root, line(), *mistakes)
    Image.new("L", (9, 7), 255).save(root / "masks/other.png")
    Image.new("L", SIZE[::-1], 0).save(root / "masks/black.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1], "grey").save(root / "images/turned.jpg", exif=exif)
    for name in ("masks/torn.png", "images/torn.png"):
        (root / name).write_bytes(b"\x89PNG no more")
    return root


def test_every_mistake_is_one_message_with_file_and_line(tmp_path, monkeypatch, capsys):
    mistakes = [*READING, *DECODING]
    write_mistakes(tmp_path, *(wrong for wrong, _ in mistakes))
    finding = check.check_source(tmp_path, "jsonl", "train", 3)
    assert (finding.samples, finding.decoded, finding.left_out) == (1 + len(DECODING), 1, ())
    messages = {int(re.match(rf"{tmp_path}/train\.jsonl:(\d+):", message)[1]): message for message in finding.errors}
    assert len(messages) == len(finding.errors) == len(mistakes)  # one each
    for number, (_, expected) in enumerate(mistakes, start=2):
        assert expected.replace("{root}", str(tmp_path)) in messages[number], messages[number]
        assert "\n" not in messages[number]
    with pytest.raises(SystemExit, match="error: 1 of them cannot be used as they are"):
        tool(monkeypatch, "prepare_data.py", "check", "--root", tmp_path, "--source", "jsonl")
    printed = capsys.readouterr().out
    assert printed.count("cannot be used: ") == 21 and f"{len(mistakes) - 20} more; --problems" in printed
    assert open_named(tmp_path, "jsonl").problems == list(finding.errors[: len(READING)])


@pytest.mark.parametrize("mistake", [wrong for wrong, _ in DECODING], ids=[text[:40] for _, text in DECODING])
def test_training_refuses_what_the_check_refuses(tmp_path, mistake):
    source = open_named(write_mistakes(tmp_path, mistake), "jsonl")
    with pytest.raises(BadSample, match=r"^.*train\.jsonl:2: "):
        source.sample(1, np.random.default_rng(0))


def test_nothing_usable_and_other_names(tmp_path, monkeypatch, capsys):
    write_lines(tmp_path, "{", "[]")
    with pytest.raises(DatasetError, match=r"(?s)nothing of .*train.jsonl can be used:\n.*:1: not.*\n.*:2: \[\] is"):
        open_named(tmp_path, "jsonl")
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="can be used: it is empty"):
        open_named(tmp_path, "jsonl")
    write_lines(tmp_path, line(), split="clinic")
    tool(monkeypatch, "prepare_data.py", "check", "--root", tmp_path, "--source", "jsonl", "--split", "clinic")
    assert "found    jsonl:clinic" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: nothing of jsonl is under"):
        tool(monkeypatch, "prepare_data.py", "check", "--root", tmp_path, "--source", "jsonl", "--split", "clinics")
    assert len(open_named(tmp_path, "jsonl", "clinic")) == 1


def test_it_goes_into_shards_and_comes_back(tmp_path):
    root = write_lines(tmp_path / "mine", line(), asked({"0": [5, 5, 5, 5]}))
    values = {
        "run": {"dir": "unused"},
        "model": {"base": "unused"},
        "data": {"root": "unused", "mixture": [{"source": "jsonl", "root": str(root)}]},
        "train": {"steps": 1, "batch_size": 1},
    }
    config = build_config(values, "test")
    make_shards(config, tmp_path / "shards", samples=2)
    stored = open_shards(tmp_path / "shards", config.data)
    source, rng = open_named(root, "jsonl"), np.random.default_rng(0)
    samples = {sample.key: sample for sample in (stored.sample(index, rng) for index in range(2))}
    for index in range(2):
        sample = source.sample(index, rng)
        again = samples[sample.key]
        assert (again.turns, again.masks, again.prompts) == (sample.turns, sample.masks, sample.prompts)
        assert again.image == sample.image.read_bytes()


@pytest.mark.parametrize(
    "form", ["1", "L", "grey 1", "16 bit", "RGB", "P", "RGBA", "LA", "P transparent", "alpha alone"]
)
def test_mask_files_of_every_kind(tmp_path, form):
    mask = box_mask(5, 5)
    byte = mask.astype(np.uint8)
    image = {
        "1": lambda: Image.fromarray(mask),
        "L": lambda: Image.fromarray(byte * 255),
        "grey 1": lambda: Image.fromarray(byte),
        "16 bit": lambda: Image.fromarray(byte.astype(np.uint16)),
        "RGB": lambda: Image.fromarray(np.stack([byte * 0, byte * 9, byte * 0], axis=2)),
        "P": lambda: palette(byte),
        "RGBA": lambda: Image.fromarray(np.stack([byte * 0 + 255] * 3 + [byte * 255], axis=2), "RGBA"),
        "LA": lambda: Image.fromarray(np.stack([byte * 0 + 200, byte * 255], axis=2), "LA"),
        "P transparent": lambda: palette(byte),
        "alpha alone": lambda: Image.fromarray(np.stack([byte * 0] * 3 + [byte * 255], axis=2), "RGBA"),
    }[form]()
    image.save(tmp_path / "mask.png", **({"transparency": 0} if form == "P transparent" else {}))
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask.png", "here"), mask)
    with pytest.raises(BadSample, match="^here: no mask file"):
        read_mask_file(tmp_path / "none.png", "here")


def palette(byte):
    image = Image.fromarray(byte, "L").convert("P")
    image.putpalette([0, 0, 0, 200, 30, 30] + [9] * 750)
    image.frombytes(byte.tobytes())
    return image


def tool(monkeypatch, name, *args):
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")


def several(**more):
    turn = {"question": "<Prompt0> in the second?", "answer": "[SEG]"}
    entry = {"images": ["a.png", "b.png"], "conversations": [turn], "masks": [[[0, 0, 4, 0, 4, 3, 0, 3]]]}
    places = {"mask_images": [1], "region_images": {"0": 0}}
    return entry | {"regions": {"0": box_rle(5, 5)}} | places | more


def test_several_images(tmp_path):
    """Each mask and region is of the size of its image; a shard gives the same sample back."""
    write_lines(tmp_path, several(), line())
    Image.new("RGB", (9, 7)).save(tmp_path / "images/b.png")
    source = open_named(tmp_path, "jsonl")
    assert source.problems == [] and len(source) == 2
    sample, single = draw_sample(source, 0), draw_sample(source, 1)
    assert sample.images == (tmp_path / "images/a.png", tmp_path / "images/b.png") == source.images(0)
    assert (sample.mask_images, sample.prompt_images) == ((1,), {0: 0})
    assert tuple(sample.masks[0]["size"]) == (7, 9) and tuple(sample.prompts[0]["size"]) == SIZE
    assert (single.images, single.mask_images, single.prompt_images) == ((tmp_path / "images/a.png",), (), {})
    config = build_config(
        {
            "run": {"dir": str(tmp_path / "run")},
            "model": {"base": "base"},
            "data": {"root": str(tmp_path), "mixture": [{"source": "jsonl"}], "workers": 0},
            "train": {"steps": 1, "batch_size": 1},
        },
        "test",
    )
    make_shards(config, tmp_path / "shards", 2, 2)
    stored = [open_shards(tmp_path / "shards", config.data).sample(i, None) for i in range(2)]
    (back,) = [other for other in stored if len(other.images) == 2]
    assert (back.turns, back.masks, back.prompts) == (sample.turns, sample.masks, sample.prompts)
    assert (back.mask_images, back.prompt_images) == (sample.mask_images, sample.prompt_images)
    assert back.images == tuple(path.read_bytes() for path in sample.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "a.png"}, "it has 'image' and 'images'; give one of them"),
        ({"images": []}, "its 'images' are []; expected the names of 1 to 64 files"),
        ({"images": ["a.png", 3]}, "its 'images' are ['a.png', 3]; expected the names"),
        ({"images": ["a.png", "c.png"]}, "no image"),
        (
            {"mask_images": [2]},
            "its 'mask_images' are [2]; expected for each of the 1 masks the number of its image, 0",
        ),
        ({"mask_images": None}, "its 'mask_images' are None; expected for each of the 1 masks"),
        ({"mask_images": [True]}, "its 'mask_images' are [True]; expected"),
        ({"region_images": {"1": 0}}, "its 'region_images' are {'1': 0}; expected for the K of each region the number"),
        ({"region_images": {"0": -1}}, "its 'region_images' are {'0': -1}; expected"),
    ],
)
def test_what_is_wrong_with_several_images(tmp_path, change, message):
    write_lines(tmp_path, several(**change), line())
    Image.new("RGB", (9, 7)).save(tmp_path / "images/b.png")
    (problem,) = open_named(tmp_path, "jsonl").problems
    assert message in problem and "train.jsonl:1: " in problem
