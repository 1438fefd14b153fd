"""The drawn examples of the demo: each task once, on images that the page accepts."""

from __future__ import annotations

from pixel_sail.scenes.demo_examples import drawn_examples
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
