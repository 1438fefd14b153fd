"""The demo: strokes become regions, and the page gives what the Python API gives."""

from __future__ import annotations

import io
import os
import runpy
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor
from tiny_predictor import tiny_predictor

from pixel_sail.errors import UserError
from pixel_sail.serve import demo
from pixel_sail.serve.demo import (
    COLOURS,
    _FewUploads,
    build_page,
    check_upload,
    painted_regions,
    respond,
    serve,
    shown_error,
)
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import draw_answers

TOOL = Path(__file__).resolve().parents[2] / "tools" / "demo.py"
RED, GREEN, BLUE = (ImageColor.getrgb(COLOURS[name]) for name in ("red", "green", "blue"))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


def layer(*strokes: tuple[slice, slice, tuple[int, ...], int], size_hw: tuple[int, int] = (40, 60)) -> np.ndarray:
    """(H, W, 4) uint8: rectangles of (rows, columns, colour, alpha)."""
    drawn = np.zeros((*size_hw, 4), dtype=np.uint8)
    for rows, columns, colour, alpha in strokes:
        drawn[rows, columns] = (*colour, alpha)
    return drawn


def painting() -> dict:
    background = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    background[..., 3] = 255
    return {"background": background, "layers": [layer((slice(5, 20), slice(10, 30), GREEN, 255))], "composite": None}


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[rows, columns] = True
    return mask


def test_a_colour_is_a_region() -> None:
    almost_red = (RED[0] - 20, RED[1] + 15, RED[2] + 9)
    regions = painted_regions(
        [
            layer(
                (slice(0, 4), slice(0, 6), RED, 255),
                (slice(30, 34), slice(50, 60), almost_red, 200),  # the same colour elsewhere: the same region
                (slice(10, 20), slice(10, 30), BLUE, 255),
                (slice(36, 40), slice(0, 9), BLUE, 90),  # the soft edge of a stroke
            ),
            layer((slice(10, 20), slice(20, 40), GREEN, 255)),  # over half of the blue region
        ]
    )
    assert sorted(regions) == [0, 1, 2]  # red, green, blue are <Prompt0>, <Prompt1>, <Prompt2>
    red = rectangle(slice(0, 4), slice(0, 6)) | rectangle(slice(30, 34), slice(50, 60))
    for k, expected in enumerate(
        (red, rectangle(slice(10, 20), slice(20, 40)), rectangle(slice(10, 20), slice(10, 20)))
    ):
        assert (regions[k] == expected).all(), k
    assert painted_regions([]) == {} and painted_regions([layer()]) == {}


@pytest.mark.parametrize("ask", [False, True])
def test_it_answers_as_the_python_api_does(predictor: Predictor, ask: bool) -> None:
    image = Image.fromarray(painting()["background"]).convert("RGB")
    regions = {1: rectangle(slice(5, 20), slice(10, 30))}
    if ask:
        lines, expected = ["What is\n<Prompt1>?"], predictor.chat(image, ["What is\n<Prompt1>?"], regions)
        shown, words = respond(predictor, painting(), " What is\n<Prompt1>?\n", ask)
    else:
        lines = ["the red mug", "what is left of <Prompt1>"]
        expected = predictor.segment(image, lines, regions)
        shown, words = respond(predictor, painting(), "\n the red mug\n\nwhat is left of <Prompt1> ", ask)
    captions = [f"{line}: {answer.text}" for line, answer in zip(lines, expected, strict=True)]
    assert words == "\n".join(captions)
    assert shown.tobytes() == draw_answers(image, regions, captions, [answer.masks for answer in expected]).tobytes()


def test_a_transparent_image_is_put_on_white(predictor: Predictor) -> None:
    clear = painting() | {"background": np.zeros((40, 60, 4), dtype=np.uint8), "layers": []}
    white = painting() | {"background": np.full((40, 60, 4), 255, dtype=np.uint8), "layers": []}
    assert respond(predictor, clear, "mug", False)[0].tobytes() == respond(predictor, white, "mug", False)[0].tobytes()


@pytest.mark.parametrize(
    ("painted", "text", "message"),
    [
        (None, "mug", "there is no image"),
        ({"background": None, "layers": [], "composite": None}, "mug", "there is no image"),
        (painting(), " \n ", "there is nothing to answer"),
        (painting(), "<region> and <region>", "the question has 2 <region> and 1 regions"),
    ],
)
def test_errors_say_what_is_wrong(predictor: Predictor, painted: dict | None, text: str, message: str) -> None:
    for ask in (False, True):
        with pytest.raises(ValueError, match=message):
            respond(predictor, painted, text, ask)


def test_the_page_over_http(predictor: Predictor, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[demo]'")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    files = {}
    for name, pixels in (("background", painting()["background"]), ("layer", painting()["layers"][0])):
        files[name] = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(files[name])
    page = build_page(predictor, [str(files["background"])])
    _, url, _ = serve(page, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False, download_files=str(tmp_path))
        sent = {
            "background": handle_file(files["background"]),
            "layers": [handle_file(files["layer"])],
            "composite": None,
        }
        for name, ask in (("/segment", False), ("/ask", True)):
            shown, words = client.predict(sent, "what is <Prompt1>", api_name=name)
            expected, expected_words = respond(predictor, painting(), "what is <Prompt1>", ask)
            assert words == expected_words
            assert Image.open(shown).convert("RGB").tobytes() == expected.tobytes()
        with pytest.raises(AppError, match="nothing to answer"):
            client.predict(sent, " ", api_name="/ask")
    finally:
        page.close()


@pytest.mark.parametrize("ask", [False, True])
def test_too_much_is_refused(predictor: Predictor, ask: bool) -> None:
    for painted, text, message in (
        (painting(), "x" * 2001, "2,001 characters; at most 2,000"),
        (painting() | {"layers": [layer(size_hw=(41, 60))]}, "mug", "the paint does not fit the image"),
        (painting() | {"layers": [layer()] * 9}, "mug", "at most 8 layers"),
    ):
        with pytest.raises(UserError, match=message):
            respond(predictor, painted, text, ask)
    with pytest.raises(UserError, match="17 lines; at most 16"):
        respond(predictor, painting(), "mug\n" * 17, False)


def test_uploads_are_looked_at_before_they_are_decoded(tmp_path: Path) -> None:
    image, data = Image.fromarray(painting()["background"]), io.BytesIO()
    image.save(data, "PNG")
    check_upload(data.getvalue())
    bomb = io.BytesIO()
    Image.new("1", (5000, 5000)).save(bomb, "PNG")
    os.mkfifo(tmp_path / "pipe")
    for upload, message in (
        (data.getvalue()[:200], "cannot decode the image"),
        (b"<svg onload=alert(1)>", "cannot decode the image"),
        (b"", "cannot decode the image"),
        (bomb.getvalue(), "5000 x 5000 pixels; at most 20,000,000"),
        (data.getvalue() + bytes(8 * 2**20), "8,388,608 are accepted"),
        (tmp_path / "pipe", "is a named pipe"),
    ):
        with pytest.raises(UserError, match=message):
            check_upload(upload)


HTML = "<img src=x onerror=alert(1)>"


def test_a_text_is_never_html(predictor: Predictor, tmp_path: Path) -> None:
    """An error of gradio is shown as HTML; a text box and an image are not."""
    with pytest.raises(UserError) as error:
        check_upload(tmp_path / f"{HTML}.png")
    assert "<" not in shown_error(error.value) and "&lt;img src=x onerror" in shown_error(error.value)
    _, words = respond(predictor, painting(), HTML, True)
    assert HTML in words


def test_uploads_that_nobody_asks_about_are_forgotten() -> None:
    kept = _FewUploads()
    for number in range(40):
        kept[str(number)] = SimpleNamespace(background=b"x", layers=[], composite=None)
    kept["large"] = SimpleNamespace(background=bytes(9 * 2**20), layers=[], composite=None)
    assert list(kept) == [str(number) for number in range(24, 40)]


def test_the_page_has_limits(predictor: Predictor, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[demo]'")
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    torn = tmp_path / "torn.png"
    Image.fromarray(painting()["background"]).save(torn)
    torn.write_bytes(torn.read_bytes()[:300])
    monkeypatch.setattr(demo, "respond", lambda *_: (_ for _ in ()).throw(UserError(f"no {HTML}")))
    page = build_page(predictor)
    _, url, _ = serve(page, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False, download_files=str(tmp_path))
        sent = {"background": handle_file(torn), "layers": [], "composite": None}
        with pytest.raises(AppError, match="cannot decode the image"):
            client.predict(sent, "mug", api_name="/segment")
        Image.fromarray(painting()["background"]).save(torn)
        with pytest.raises(AppError, match="no &lt;img"):
            client.predict(sent | {"background": handle_file(torn)}, "mug", api_name="/segment")
        for path in (secret, "/etc/passwd", Path(demo.__file__)):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{url}gradio_api/file={path}")
        assert page.max_file_size == 8 * 2**20 and page.share is False and page.allowed_paths == []
    finally:
        page.close()


def test_without_gradio_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "nowhere"])
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[demo\]'"):
        runpy.run_path(str(TOOL), run_name="__main__")
