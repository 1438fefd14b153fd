"""The demo in a browser: what a visitor does from an image to the files; and what the page keeps to itself."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from in_process import call_main
from PIL import Image
from tiny_predictor import tiny_predictor

from pixel_sail.commands import demo
from pixel_sail.data.masks import decode_mask
from pixel_sail.serve.demo.examples import FILE, Example, box
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.types import Turn

PATIENCE_MS = 240_000  # of a machine that trains a model meanwhile
QUESTION = "#ps-question textarea, #ps-question input"


LEFT = np.broadcast_to(np.arange(60) < 30, (40, 60)).copy()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A tiny model whose words are given: it finds the left half, or nothing; `asked` are the questions to it."""
    predictor = tiny_predictor(architecture={"clicks": True})
    real_chat, encoder, predictor.asked = predictor.chat, predictor.encoder, []

    def segment(image: Image.Image, phrases: list[str], regions: Any = ()) -> list[Answer]:
        return [Answer("There is none.", []) if phrase == "nothing" else Answer("[SEG]", [LEFT]) for phrase in phrases]

    def chat(image: Image.Image, question: str, regions: Any, history: Any, streamer: Any) -> list[Answer]:
        if "<Prompt2>" in question:
            return real_chat(image, question, regions, history=history, streamer=streamer)
        predictor.asked.append((question, regions, history))
        for ids in (encoder.question_ids(question), encoder.text_ids("It is [SEG].")):
            streamer.put(torch.tensor(ids))
        return [Answer("It is [SEG].", [LEFT])]

    predictor.segment, predictor.chat = segment, chat
    return predictor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "torn.png").write_bytes((folder / "photo.png").read_bytes()[:300])
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def url(predictor: Predictor, files: Path) -> Iterator[str]:
    """The address of the page."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[demo]'")
    from pixel_sail.serve.demo.page import build_page, serve

    image = (files / "photo.png").read_bytes()
    example = Example(image, "photo.png", "ask", "What `${1}` is this?", [box((9, 9, 30, 20))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(files / "gradio"))
        page = build_page(predictor, "<b>tiny</b>", "a test", [example])
        _, address, _ = serve(page, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
        yield address
        page.close()


def test_the_page_keeps_its_files_to_itself(url: str, files: Path) -> None:
    for path in (files / "secret.txt", "/etc/passwd", demo.__file__):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}gradio_api/file={path}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's Chromium of Debian; skips with the reason where either is absent."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright (pip install playwright)")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium (Debian's package chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = running.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(url: str, browser: Any) -> Iterator[Any]:
    """The page in a new tab. Neither an error of a script nor a request to another host passes."""
    page, errors, hosts = browser.new_page(viewport={"width": 1200, "height": 1400}), [], set()
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(url)
    page.wait_for_selector(".ps-stage.ps-none")
    yield page
    page.close()
    assert not errors and hosts <= {"127.0.0.1", None}


def choose(page: Any, file: Path) -> None:
    page.locator("#ps-upload input[type=file]").set_input_files(file)


def saved(page: Any, button: str) -> Path:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path())


def drag(page: Any, *shares_xy: tuple[float, float]) -> None:
    """The mouse over the canvas, at shares of its sides."""
    frame = page.locator("#ps-canvas canvas").bounding_box()
    at = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in shares_xy]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def test_phrases_become_masks_a_legend_and_files(page: Any, files: Path) -> None:
    page.click("#ps-segment")
    page.wait_for_selector("text=there is no image yet")
    choose(page, files / "torn.png")
    page.wait_for_selector("text=cannot decode the image")
    choose(page, files / "photo.png")
    page.wait_for_selector(".ps-stage:not(.ps-none)")
    assert page.locator(".ps-error").count() == 0
    page.fill("#ps-phrases textarea", "left <i>half</i>\nnothing")
    page.click("#ps-segment")
    page.wait_for_selector("#ps-found table")
    rows = page.locator("#ps-found tr").all_inner_texts()
    assert "left <i>half</i>" in rows[0] and "50.0 % of the image" in rows[0]
    assert "nothing found: “There is none.”" in rows[1]
    assert "answered in" in page.inner_text("#ps-found")
    coco = json.loads(saved(page, "#ps-coco").read_text())
    assert [entry["name"] for entry in coco["categories"]] == ["left <i>half</i>", "nothing"]
    assert decode_mask(coco["annotations"][0]["segmentation"])[:, :30].all() and len(coco["annotations"]) == 1
    assert zipfile.ZipFile(saved(page, "#ps-png")).namelist() == ["01_left_i_half_i_1.png"]
    before = page.get_attribute("#ps-shown img", "src")
    page.locator("#ps-opacity input[type=number]").fill("1")
    page.locator("#ps-opacity input[type=number]").blur()
    page.wait_for_function("old => document.querySelector('#ps-shown img').src !== old", arg=before)


def ask(page: Any, question: str) -> str:
    """The words of the answer."""
    before = page.locator(".ps-model > .ps-note").count()
    page.fill(QUESTION, question)
    page.click("#ps-ask")
    page.wait_for_function("n => document.querySelectorAll('.ps-model > .ps-note').length > n", arg=before)
    return page.locator(".ps-model").last.inner_text()


def test_a_drawn_region_is_asked_about(page: Any, predictor: Predictor, files: Path) -> None:
    choose(page, files / "photo.png")
    page.wait_for_selector(".ps-stage:not(.ps-none)")
    page.click("[data-tool=box]")
    drag(page, (0.1, 0.1), (0.5, 0.5))
    page.click("[data-region='1']")
    page.click("[data-tool=point]")
    drag(page, (0.9, 0.9))
    page.click("[data-act=undo]")  # region B is gone: "this" is region A
    page.click("role=tab[name='Ask']")
    assert re.fullmatch(r"It is\s+mask 1\.\s*\d+\.\d s", ask(page, "What is this?"))
    page.wait_for_selector("#ps-found td:has-text('50.0 % of the image')")
    question, regions, history = predictor.asked[-1]
    assert question == "What is <Prompt0>?" and list(regions) == [0] and history == []
    ys, xs = np.nonzero(regions[0])
    np.testing.assert_allclose((xs.min(), xs.max() + 1, ys.min(), ys.max() + 1), (6, 30, 4, 20), atol=1)
    assert ask(page, "And region C?").startswith("Region C is not in the image.")
    ask(page, "Is it red?")
    asked = [turn[0] for turn in predictor.asked[-1][2]]  # the conversation so far
    assert asked == ["What is <Prompt0>?", "And <Prompt2>?"]
    page.click("#ps-fresh")
    page.wait_for_selector(".ps-empty")
    page.click("[data-act=clear]")
    page.click("role=tab[name='Segment']")
    _an_example_brings_its_image_region_and_question(page)


def test_clicks_refine_the_mask_of_a_phrase(page: Any, predictor: Predictor, files: Path, monkeypatch) -> None:
    """A click inside and one outside, in the colours of their signs; a new phrase takes them off the image."""
    asked = []

    def answers(self: Any, conversations: list[list[Turn]], soft: bool = False) -> list[Answer]:
        asked.extend(conversations)
        return [Answer("[SEG]", [~LEFT])]

    monkeypatch.setattr("pixel_sail.serve.session.Session.answers", answers)
    choose(page, files / "photo.png")
    page.wait_for_selector(".ps-stage:not(.ps-none)")
    page.fill("#ps-phrases textarea", "mug\nball")
    page.click("#ps-segment")
    page.wait_for_selector("#ps-found td >> text=50.0 % of the image")
    page.click("#ps-refine")
    page.wait_for_selector("#ps-status >> text=there is no click yet")
    for tool, at in (("plus", (0.75, 0.5)), ("minus", (0.25, 0.5))):
        page.click(f"#ps-canvas [data-tool={tool}]")
        drag(page, at, (0.5, 0.5))  # a click stays where it began
    before = page.locator("#ps-shown img").get_attribute("src")
    page.click("#ps-refine")
    page.wait_for_function(f"document.querySelector('#ps-shown img').src !== {json.dumps(before)}")
    ((phrase, *turns),) = asked
    assert phrase.question == predictor.segment_questions(["mug"])[0] and phrase.answer == "[SEG]"
    clicks = [click for turn in turns for click in turn.clicks]
    assert [(round(click.x), round(click.y), click.positive) for click in clicks] == [(45, 20, True), (15, 20, False)]
    page.click("#ps-segment")
    page.wait_for_selector("#ps-status", state="hidden")
    page.wait_for_timeout(500)
    page.click("#ps-refine")
    page.wait_for_selector("#ps-status >> text=there is no click yet")


def _an_example_brings_its_image_region_and_question(page: Any) -> None:
    assert "<b>tiny</b>" in page.inner_text(".ps-title") and "a test" in page.inner_text(".ps-title")
    page.click(".ps-card")
    page.wait_for_selector("#ps-ask:visible")
    assert page.input_value(QUESTION) == "What `${1}` is this?"
    page.wait_for_selector("[data-region='0'][aria-pressed=true]")  # the region of the example is A


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[demo\]'"):
        call_main(monkeypatch, demo, "nowhere")


def test_examples_are_given_or_beside_the_model_or_drawn(files: Path, tmp_path: Path, monkeypatch) -> None:
    """What is given is looked at before a model is loaded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    for option, message in (("--example", "the example .*torn.png: cannot decode"), ("--examples", "torn.png")):
        with pytest.raises(SystemExit, match=message):
            call_main(monkeypatch, demo, "nowhere", option, files / "torn.png")
    assert [example.task for example in demo._other_examples(tmp_path)] == ["segment"] * 2 + ["ask"] * 3 + ["segment"]
    (tmp_path / "examples").mkdir()
    shutil.copy(files / "photo.png", tmp_path / "examples")
    (tmp_path / "examples" / FILE).write_text('[{"image": "photo.png", "ask": "What is this?"}]')
    assert [example.text for example in demo._other_examples(tmp_path)] == ["What is this?"]
