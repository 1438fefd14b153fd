"""What a user may give to a Predictor: images of any kind, a run in place of its export, turns that came before."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_export import save_export
from tiny_predictor import tiny_predictor

from pixel_sail.data.image import load_image
from pixel_sail.errors import UserError, WeightsError
from pixel_sail.serve.images import as_image
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import Sample, Turn

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)


def _file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"])
def test_a_pil_image_is_what_its_file_is(mode: str, tmp_path: Path) -> None:
    rgba = Image.fromarray(PIXELS)
    grey = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200)
    image = grey if mode == "I;16" else rgba.convert("RGB").convert(mode) if mode in "P1" else rgba.convert(mode)
    path = tmp_path / "image.png"
    path.write_bytes(_file(image))
    expected = np.asarray(load_image(path))
    for given in (image, path, str(path), path.read_bytes()):
        found = as_image(given)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 1), (24, 40, 3), (24, 40, 4)])
def test_an_array_is_the_image_of_its_pixels(shape: tuple[int, ...]) -> None:
    array = np.ascontiguousarray(PIXELS[..., : shape[2]] if len(shape) == 3 else PIXELS[..., 0])
    found = np.asarray(as_image(array))
    if shape[-1] == 3:
        np.testing.assert_array_equal(found, array)
    elif shape[-1] == 4:  # over white, as Pillow rounds
        share = array[..., 3:].astype(float) / 255
        np.testing.assert_allclose(found, array[..., :3] * share + 255 * (1 - share), atol=1)
    else:
        np.testing.assert_array_equal(found, np.repeat(array.reshape(24, 40, 1), 3, axis=2))
    np.testing.assert_array_equal(np.asarray(as_image(array[:, ::-1])), found[:, ::-1])  # a view


def test_a_photo_is_turned_and_a_pil_image_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(PIXELS[..., :3]).save(path, exif=exif)
    assert as_image(path).size == as_image(path.read_bytes()).size == (24, 40)
    with Image.open(path) as image:
        assert as_image(image).size == (40, 24)


@pytest.mark.parametrize(
    "image, message",
    [
        ("https://example.org/a.jpg", "is an address; nothing is fetched"),
        ("data:image/png;base64,AAAA", "is an address"),
        ("nowhere.jpg", "nowhere.jpg"),
        (b"no image", "image"),
        (np.zeros((4, 4, 3)), r"values of float64.*255 \* array"),
        (np.zeros((4, 4, 3), dtype=np.int64), "values of int64; an image has uint8$"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((0, 8), dtype=np.uint8), r"shape \(0, 8\)"),
        (Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "mode F: floating-point"),
        (7, "not int"),
    ],
)
def test_what_is_no_image_is_refused(image: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_image(image)


def test_a_predictor_takes_them_all(tmp_path: Path) -> None:
    predictor, path = tiny_predictor(), tmp_path / "image.png"
    path.write_bytes(_file(Image.fromarray(PIXELS[..., :3])))
    array = PIXELS[..., :3]
    expected, *others = (
        predictor.segment(image, "the red mug")[0]
        for image in (path, str(path), path.read_bytes(), array, Image.fromarray(array))
    )
    for answer in others:
        assert answer.text == expected.text
        assert all(np.array_equal(*pair) for pair in zip(answer.masks, expected.masks, strict=True))


def test_a_conversation_is_read_as_in_training() -> None:
    encoder = tiny_predictor().encoder
    turns = (Turn("What is red?", "There is none."), Turn("Segment the ball.", "There is none."))
    trained = encoder.encode(Sample("a", None, turns), 0).input_ids.tolist()
    asked = encoder.question_ids(turns[1].question, [(turns[0].question, turns[0].answer)])
    assert trained == asked + encoder.text_ids(encoder.chat.answer(turns[1].answer)) + encoder.end_ids
    assert encoder.question_ids("What is red?") == trained[: len(encoder.question_ids("What is red?"))]


def test_history_reaches_the_model_with_its_regions() -> None:
    predictor, image = tiny_predictor(), Image.fromarray(PIXELS[..., :3])
    region = np.zeros((24, 40), dtype=bool)
    region[4:12, 4:12] = True
    asked: list[list[int]] = []
    encode = predictor.encoder.question_ids
    predictor.encoder.question_ids = lambda *turns: asked.append(encode(*turns)) or asked[-1]
    predictor.chat(image, "And <Prompt0>?", [region], history=[("What is <region>?", "There is none.")])
    assert asked == [encode("And <Prompt0>?", [("What is <Prompt0>?", "There is none.")])]


def test_a_run_stands_for_its_export(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000004").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"has no export/: tools/export.py .*step_00000004 writes one"):
        Predictor.from_pretrained(run)
    save_export(run / "export")
    image = Image.fromarray(PIXELS[..., :3])
    texts = [Predictor.from_pretrained(folder).segment(image, "the mug")[0].text for folder in (run, run / "export")]
    assert texts[0] == texts[1]
