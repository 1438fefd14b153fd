"""The drawn examples of the demo: each task once, on images that the page accepts."""

from __future__ import annotations

import numpy as np

from pixel_sail.scenes.demo_examples import LONG_SIDE_PX, SEED, drawn_examples
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.layout import draw_scene
from pixel_sail.serve.demo.regions import drawn_regions, model_words
from pixel_sail.serve.demo.session import opened


def test_each_task_has_a_drawn_example() -> None:
    examples = drawn_examples()
    assert examples == drawn_examples()
    sizes = [opened(example.image, example.name).size_wh for example in examples]
    regions = [drawn_regions(example.shapes, size) for example, size in zip(examples, sizes, strict=True)]
    asked = [
        model_words(example.text, drawn)
        for example, drawn in zip(examples, regions, strict=True)
        if example.task == "ask"
    ]
    assert asked[:2] == ["What colour is <Prompt0>?", "Describe <Prompt0> in detail."]
    assert [len(example.text.splitlines()) > 1 for example in examples] == [False, True, False, False, False, False]


def test_the_last_example_names_a_kind_that_is_nowhere_in_its_image() -> None:
    *_, last = drawn_examples()
    index = int(last.name.removesuffix(".jpg").rpartition("_")[2]) - 1
    scene = draw_scene(index, LONG_SIDE_PX, np.random.default_rng([SEED, index]))
    named = [kind for kind in KINDS if kind in last.text.split()]
    assert len(named) == 1 and named[0] not in {thing.kind for thing in scene.things}
