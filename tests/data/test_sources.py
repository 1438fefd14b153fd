import json
import pickle
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import COLOURS, edit_instances, edit_refs, write_refer_dataset

from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import area_px, decode_mask
from pixel_sail.data.sources import open_source
from pixel_sail.data.sources.cases import read_benchmark
from pixel_sail.data.templates import ANSWERS, ANSWERS_NONE, ANSWERS_SEVERAL, QUESTIONS, question


def _open(root, source="refcoco", split="train", **options):
    data = DataConfig(root=root, mixture=[MixtureEntry(source=source, split=split)], **options)
    return open_source(data.mixture[0], data)


def _samples(source, seed=0):
    return [source.sample(i, np.random.default_rng(seed + i)) for i in range(len(source))]


def test_one_sample_is_one_image_with_masks_in_the_order_of_its_answers(dataset):
    source = _open(dataset, expressions_per_image=4, questions=["{expression}"])
    assert len(source) == 3 and source.problems == []
    for i, sample in enumerate(_samples(source)):
        assert sample.key == source.key(i) == f"refcoco/train/image={10 + i}"
        assert len(sample.turns) == 4 == len(sample.masks)
        pixels = np.asarray(load_image(sample.image)).astype(int)
        for turn, mask in zip(sample.turns, sample.masks, strict=True):
            assert turn.answer in ANSWERS and turn.answer.count("[SEG]") == 1
            channel = next(c for c, name in enumerate(("red", "green", "blue")) if name in turn.question)
            inside = pixels[decode_mask(mask)]
            assert (inside[:, channel] > inside.sum(axis=1) / 2).mean() > 0.85  # the mask lies on the named object


def test_different_refs_come_before_second_sentences_and_none_comes_twice(dataset):
    for expressions, per_ref in ((2, [1, 1]), (3, [1, 1, 1]), (5, [1, 2, 2]), (50, [2, 2, 2])):
        source = _open(dataset, expressions_per_image=expressions, questions=["{expression}"])
        for sample in _samples(source):
            texts = [turn.question for turn in sample.turns]
            assert len(set(texts)) == len(texts)
            colours = [text.replace("the ", "").split()[0] for text in texts]
            assert sorted(Counter(colours).values()) == per_ref
            assert len(set(colours[:3])) == min(3, expressions)


def test_a_sample_follows_from_its_index_and_rng_alone(dataset):
    source = _open(dataset, expressions_per_image=2)
    assert _samples(source) == _samples(_open(dataset, expressions_per_image=2))
    drawn = {tuple(turn.question for turn in source.sample(0, np.random.default_rng(s)).turns) for s in range(20)}
    assert len(drawn) > 10
    single = _open(dataset, expressions_per_image=1, questions=["{expression}"])
    drawn = {single.sample(0, np.random.default_rng(s)).turns[0].question for s in range(40)}
    assert drawn == {f"the {c} one" for c in COLOURS} | {f"{c} thing" for c in COLOURS}  # every sentence of every ref


def test_default_questions_vary_and_the_blind_one_hides_the_expression(dataset):
    asked = [turn.question for s in range(20) for turn in _open(dataset).sample(0, np.random.default_rng(s)).turns]
    assert all(any(question(e, q) in asked for e in ("the red one", "red thing")) for q in QUESTIONS)
    hidden = [turn.question for sample in _samples(_open(dataset, hide="text")) for turn in sample.turns]
    assert set(hidden) <= {question("it", q) for q in QUESTIONS}


def test_own_templates_replace_the_defaults_and_are_checked(dataset):
    source = _open(dataset, "grefcoco", questions=["? {expression}"], answers=["! [SEG]"])
    turns = [turn for sample in _samples(source) for turn in sample.turns]
    assert {turn.answer for turn in turns if "zebra" not in turn.question} == {"! [SEG]"}
    assert {turn.answer for turn in turns if "zebra" in turn.question} <= set(ANSWERS_NONE)
    for wrong in ({"questions": ["no place"]}, {"answers": ["[SEG] and [SEG]"]}, {"answers": []}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}: each template holds .* exactly once"):
            _open(dataset, **wrong)


def test_braces_in_an_expression_are_only_text():
    assert question("the {expression} {0} shirt") == "Can you segment the {expression} {0} shirt in this image?"
    assert question("cup", '{"find": "{expression}"}') == '{"find": "cup"}'


def test_grefcoco_unites_several_objects_and_answers_absent_ones_without_a_mask(dataset):
    for sample in _samples(_open(dataset, "grefcoco", questions=["{expression}"])):
        answers = {turn.question: turn.answer for turn in sample.turns}
        assert set(answers) == {"everything", "all things", "the zebra"}
        assert "[SEG]" not in answers["the zebra"] and len(sample.masks) == 2
        assert {answers["everything"], answers["all things"]} <= set(ANSWERS_SEVERAL)
    cases = {c.sentence: c for c in read_benchmark(dataset, "grefcoco:train").cases if c.image_id == 10}
    single = {c.sentence: c for c in read_benchmark(dataset, "refcoco:train").cases if c.image_id == 10}
    pieces = [decode_mask(single[name].mask) for name in ("the red one", "the green one")]  # the blue one is a crowd
    np.testing.assert_array_equal(decode_mask(cases["everything"].mask), np.logical_or.reduce(pieces))
    assert cases["the zebra"].mask is None


def _edit_grefs(root, change):
    path = root / "grefcoco/grefs(unc).json"
    refs = json.loads(path.read_text())
    change({ref["ref_id"]: ref for ref in refs})
    path.write_text(json.dumps(refs))


def test_grefcoco_leaves_crowds_out_of_its_targets(dataset):
    """Annotation 102 is a crowd. RefCOCO keeps it; for gRefCOCO a ref of crowds alone has no target."""
    _edit_grefs(dataset, lambda refs: refs[110].update(ann_id=[112]))
    cases = {(c.image_id, c.sentence): c for c in read_benchmark(dataset, "grefcoco:train").cases}
    single = {c.sentence: c for c in read_benchmark(dataset, "refcoco:train").cases if c.image_id == 10}
    objects = [decode_mask(single[name].mask) for name in ("the red one", "the green one")]
    np.testing.assert_array_equal(decode_mask(cases[10, "everything"].mask), np.logical_or(*objects))
    assert area_px(single["the blue one"].mask) > 0
    assert cases[11, "everything"].mask is None
    assert read_benchmark(dataset, "grefcoco:train").problems == ()
    texts = [
        turn for sample in _samples(_open(dataset, "grefcoco", questions=["{expression}"])) for turn in sample.turns
    ]
    assert sum(turn.question in ("everything", "all things") and "[SEG]" in turn.answer for turn in texts) == 4


def test_grefcoco_refs_that_contradict_themselves_are_listed(dataset):
    def spoil(refs):
        refs[100]["no_target"] = True
        refs[101]["no_target"] = False
        refs[110]["ann_id"] = []
        del refs[111]["no_target"]

    _edit_grefs(dataset, spoil)
    read = read_benchmark(dataset, "grefcoco:train")
    assert read.problems == (
        "grefcoco/train/ref=100: it says no_target and has the annotations [100, 101, 102]",
        "grefcoco/train/ref=101: it says no_target: False and has no annotation (ann_id [-1])",
        "grefcoco/train/ref=110: it says no_target: False and has no annotation (ann_id [])",
    )
    assert {case.ref_id for case in read.cases} == {111, 120, 121}


def test_an_object_without_pixels_is_left_out_of_a_ref_of_several(dataset):
    path = dataset / "grefcoco/instances.json"
    values = json.loads(path.read_text())
    by_id = {annotation["id"]: annotation for annotation in values["annotations"]}
    by_id[100]["segmentation"] = [[1, 1, 5, 5]]
    by_id[110]["segmentation"] = [[1, 1], *by_id[110]["segmentation"]]
    path.write_text(json.dumps(values))
    read = read_benchmark(dataset, "grefcoco:train")
    assert [re.sub(r", polygon 0.*", "", problem) for problem in read.problems] == [
        "grefcoco/train/ref=100: grefcoco: annotation 100 of image 10",
        "grefcoco/train/ref=110: grefcoco: annotation 110 of image 11",
    ]
    single = {(c.image_id, c.sentence): c.mask for c in read_benchmark(dataset, "refcoco:train").cases}
    masks = {c.image_id: c.mask for c in read.cases if c.sentence == "everything"}
    assert masks[10] == single[10, "the green one"]
    both = [decode_mask(single[11, name]) for name in ("the red one", "the green one")]
    np.testing.assert_array_equal(decode_mask(masks[11]), np.logical_or(*both))


def test_ids_of_another_type_are_an_error_that_says_so(dataset):
    edit_refs(dataset, lambda refs: [ref.update(image_id=str(ref["image_id"])) for ref in refs])
    with pytest.raises(
        DatasetError, match=r"nothing of .*refs\(unc\).p can be used; first: refcoco/train/ref=100: image '10' is"
    ):
        _open(dataset)


def test_two_annotations_with_one_id_are_named_at_each_ref(dataset):
    """The last one won: a small target became another object's mask."""

    def spoil(values):
        values["annotations"].append(values["annotations"][1] | {"id": 100})
        values["images"].append(values["images"][1] | {"file_name": "other.png"})

    edit_instances(dataset, spoil)
    problems = _open(dataset).problems
    assert len(problems) == 1 + 3
    assert re.fullmatch(
        "refcoco/train/ref=100: .*annotation 100 of image 10: .* has several annotations with this id", problems[0]
    )
    assert all(re.fullmatch("refcoco/train/ref=11.: .* has several images with the id 11", p) for p in problems[1:])


def test_cases_are_every_sentence_with_those_of_an_image_side_by_side(dataset):
    edit_refs(dataset, lambda refs: refs.reverse())
    cases = read_benchmark(dataset, "refcoco:val").cases
    assert [case.image_id for case in cases] == [13] * 6 + [14] * 6 + [15] * 6
    assert len({(case.ref_id, case.sent_id) for case in cases}) == 18
    assert all(case.size_hw == (48, 64) == tuple(case.mask["size"]) and case.image.is_file() for case in cases)


def test_both_image_layouts_are_found_and_a_wrong_one_is_explained(tmp_path):
    nested = write_refer_dataset(tmp_path / "nested", images="images/mscoco/images/train2014")
    assert all(case.image.is_file() for case in read_benchmark(nested, "refcoco:val").cases)
    wrong = write_refer_dataset(tmp_path / "wrong", images="train2014")
    with pytest.raises(DatasetError, match="wrong/images/train2014 or .*wrong/images/mscoco/images/train2014"):
        _open(wrong)


def test_bad_annotations_are_listed_with_their_ref_and_the_others_stay(dataset):
    def spoil_instances(values):
        by_id = {a["id"]: a for a in values["annotations"]}
        by_id[100]["segmentation"] = [[1, 1, 5, 5]]  # four numbers
        by_id[101]["segmentation"] = [[0, 0, 0, 0, 0, 0]]  # encloses nothing
        by_id[110]["image_id"] = 12

    def spoil_refs(refs):
        by_id = {ref["ref_id"]: ref for ref in refs}
        by_id[111]["sentences"][0]["sent"] = "  "
        by_id[112]["sentences"] = []
        by_id[120]["image_id"] = 99

    edit_instances(dataset, spoil_instances)
    edit_refs(dataset, spoil_refs)
    source = _open(dataset, expressions_per_image=50, questions=["{expression}"])
    expected = [
        "ref=100: refcoco: annotation 100 of image 10, polygon 0: [1, 1, 5, 5] is no polygon",
        "ref=101: refcoco: annotation 101 of image 10: the mask has no pixel",
        "ref=110: refcoco: annotation 110 of image 11: not in ",
        "ref=111: sentence 1110 is empty",
        "ref=112: no expression is left",
        "ref=120: image 99 is not in ",
    ]
    assert len(source.problems) == len(expected)
    for problem, start in zip(source.problems, expected, strict=True):
        assert problem.startswith(f"refcoco/train/{start}"), problem
    assert [len(sample.turns) for sample in _samples(source)] == [2, 1, 4]
    assert read_benchmark(dataset, "refcoco:train").problems == tuple(source.problems)


def test_unusable_files_and_names_are_explained(dataset):
    with pytest.raises(ConfigError, match="unknown source 'refcoca'; known: refcoco, refcoco\\+, refcocog, grefcoco"):
        _open(dataset, "refcoca")
    with pytest.raises(DatasetError, match="no dataset refcocog under .*refcocog/instances.json and one of"):
        _open(dataset, "refcocog")
    with pytest.raises(DatasetError, match="has no split 'testC'; it has .'train', 'val'."):
        _open(dataset, split="testC")
    for name in ("refcoco", "refcoca:val"):
        with pytest.raises(DatasetError, match=f"unknown benchmark '{name}': write dataset:split"):
            read_benchmark(dataset, name)
    refs = dataset / "refcoco" / "refs(unc).p"
    refs.write_bytes(pickle.dumps([{"ref_id": 1}], 2))
    with pytest.raises(DatasetError, match="is not a list of REFER refs: its entry 0: it has no 'image_id'"):
        _open(dataset)
    instances = dataset / "grefcoco" / "instances.json"
    instances.write_text(json.dumps({"images": []}))
    with pytest.raises(DatasetError, match="is not a COCO instances file: no 'annotations'"):
        _open(dataset, "grefcoco")
    instances.write_text("{")
    with pytest.raises(DatasetError, match="grefcoco/instances.json is not valid JSON"):
        _open(dataset, "grefcoco")
    instances.unlink()
    with pytest.raises(DatasetError, match="no file .*grefcoco/instances.json"):
        _open(dataset, "grefcoco")


def test_the_other_ref_files_are_read_too(dataset):
    shutil.copytree(dataset / "refcoco", dataset / "refcocog")
    (dataset / "refcocog" / "refs(unc).p").rename(dataset / "refcocog" / "refs(umd).p")
    assert len(_open(dataset, "refcocog")) == 3
    assert _open(dataset, "refcocog").key(0) == "refcocog/train/image=10"


def test_real_annotations(real_data):
    root = real_data / "mini_coco"
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
    for split, images in (("train", 200), ("val", 40)):
        benchmark = read_benchmark(root, f"refcoco:{split}")
        assert benchmark.problems == ()
        assert len(benchmark.cases) == sum(len(ref["sentences"]) for ref in refs if ref["split"] == split)
        assert len({case.image_id for case in benchmark.cases}) <= images
        assert all(area_px(case.mask) for case in benchmark.cases)
    grefs = read_benchmark(root, "grefcoco:val")
    assert grefs.problems == () and any(c.mask is None for c in grefs.cases) and any(c.mask for c in grefs.cases)
