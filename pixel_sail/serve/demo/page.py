"""The page: gradio's widgets, and which of them a step of a session changes."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from pixel_sail.errors import UserError
from pixel_sail.serve.demo.canvas import SCRIPT, STYLE, UPLOAD_ID, template
from pixel_sail.serve.demo.conversation import conversation_html
from pixel_sail.serve.demo.examples import Example
from pixel_sail.serve.demo.findings import coco_json, legend, masks_zip, picture
from pixel_sail.serve.demo.refine import Refiner, without_clicks
from pixel_sail.serve.demo.session import MAX_CHARACTERS, Session, ask, canvas_value, opened, segment
from pixel_sail.serve.demo.uploads import MAX_UPLOAD_BYTES
from pixel_sail.serve.images import as_image
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import OPACITY

MAX_WAITING = 16  # requests in the queue; one is answered at a time
MAX_SESSIONS = 64  # whose images and answers are kept in memory
FORGET_AFTER_S = 3600
STYLE_OF_PAGE = """
.gradio-container { max-width: 1240px !important; width: 100%; margin: 0 auto; }
.gradio-container .html-container { padding: 0; }
#ps-shown img { max-height: 52vh; }
.gradio-container .wrap.generating { border-color: transparent; animation: none; }
.ps-title h1 { margin: 0 0 2px; font-size: 26px; font-weight: 650; }
.ps-title p, .ps-note { opacity: 0.7; font-size: 13px; margin: 0; }
.ps-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin-top: 6px; }
.ps-card { display: flex; flex-direction: column; text-align: left; padding: 0; border-radius: 8px; overflow: hidden;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); cursor: pointer;
  font-size: 13px; color: var(--body-text-color); }
.ps-card:hover, .ps-card:focus-visible { border-color: var(--color-accent); }
.ps-card img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; margin: 0; }
.ps-card span { padding: 6px 8px; overflow-wrap: anywhere; }
.ps-error { border-left: 3px solid #d33; padding: 6px 10px; background: #d331; border-radius: 4px; }
.ps-swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 5px 0 0;
  vertical-align: -1px; border: 1px solid #0004; }
.ps-mark { white-space: nowrap; }
.ps-legend { width: 100%; border-collapse: collapse; margin: 0 0 4px; font-size: 15px; }
.ps-legend td { padding: 3px 8px 3px 0; border-bottom: 1px solid var(--border-color-primary); }
.ps-legend .ps-mark { white-space: normal; overflow-wrap: anywhere; }
.ps-legend td:last-child { text-align: right; opacity: 0.7; }
.ps-chat { display: flex; flex-direction: column; gap: 8px; min-height: 120px; padding: 10px;
  border: 1px solid var(--border-color-primary); border-radius: 8px; }
.ps-empty { opacity: 0.7; }
.ps-turn { max-width: 88%; padding: 7px 11px; border-radius: 12px; overflow-wrap: anywhere; white-space: pre-wrap; }
.ps-user { align-self: flex-end; background: var(--color-accent-soft); }
.ps-model { align-self: flex-start; background: var(--background-fill-secondary); }
.ps-model .ps-note { margin-left: 10px; white-space: nowrap; }
.ps-divider { align-self: center; font-size: 12px; opacity: 0.7; }
.ps-cursor { display: inline-block; width: 7px; height: 15px; vertical-align: -2px; background: currentColor;
  animation: ps-blink 1s steps(2) infinite; }
@keyframes ps-blink { 50% { opacity: 0; } }
"""
PICK = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-number]');
  if (card) trigger('click', {number: Number(card.dataset.number)});
});
"""


def model_line(predictor: Predictor, name: str, source: str) -> str:
    """HTML: the name of the model, its size, precision and device, and where it came from."""
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters())
    count = f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"
    weight = next(predictor.model.parameters())
    precision = str(weight.dtype).removeprefix("torch.")
    facts = f"{count} parameters · {precision} on {weight.device} · {html.escape(source)}"
    return f'<div class="ps-title"><h1>pixel_sail: {html.escape(name)}</h1><p>{facts}</p></div>'


def build_page(predictor: Predictor, name: str, source: str, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The page, to `serve`. `name` and `source`: of the model, in words."""
    clicks = predictor.model.config.architecture.clicks
    refiner = Refiner(predictor)
    with gr.Blocks(title=f"pixel_sail: {name}", analytics_enabled=False, delete_cache=(600, FORGET_AFTER_S)) as page:
        session = gr.State(Session(), time_to_live=FORGET_AFTER_S)
        gr.HTML(model_line(predictor, name, source), apply_default_css=False)
        with gr.Row():
            with gr.Column(min_width=360):
                canvas = gr.HTML(
                    canvas_value(Session(), []),
                    html_template=template(clicks),
                    css_template=STYLE,
                    js_on_load=SCRIPT,
                    apply_default_css=False,
                    elem_id="ps-canvas",
                )
                with gr.Column(elem_id=UPLOAD_ID):
                    upload = gr.UploadButton("Choose an image", file_types=["image"], size="sm")
                with gr.Tabs() as tabs:
                    with gr.Tab("Segment", id="segment"):
                        phrases = gr.Textbox(
                            label="What to segment, one phrase a line",
                            placeholder="the red mug\nthe chair left of region A",
                            lines=3,
                            max_lines=8,
                            max_length=MAX_CHARACTERS,
                            elem_id="ps-phrases",
                        )
                        run = gr.Button("Segment", variant="primary", elem_id="ps-segment")
                        with gr.Row(visible=clicks):
                            target = gr.Dropdown([], label="Refine the mask of", elem_id="ps-target", scale=2)
                            better = gr.Button("Refine by + and − clicks", elem_id="ps-refine")
                    with gr.Tab("Ask", id="ask"):
                        chat = gr.HTML(
                            conversation_html([]),
                            max_height=420,
                            autoscroll=True,
                            apply_default_css=False,
                            elem_id="ps-chat",
                        )
                        question = gr.Textbox(
                            label="A question, about the image or about what you drew",
                            placeholder="What is this?",
                            max_length=MAX_CHARACTERS,
                            elem_id="ps-question",
                        )
                        with gr.Row():
                            send = gr.Button("Ask", variant="primary", elem_id="ps-ask")
                            fresh = gr.Button("New conversation", elem_id="ps-fresh")
            with gr.Column(min_width=360):
                status = gr.HTML(visible=False, apply_default_css=False, elem_id="ps-status")
                shown = gr.Image(
                    label="Answer",
                    show_label=False,
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="ps-shown",
                )
                found = gr.HTML(visible=False, apply_default_css=False, elem_id="ps-found")
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the masks", elem_id="ps-opacity")
                with gr.Row():
                    png = gr.DownloadButton("Masks (PNG, zip)", interactive=False, elem_id="ps-png", size="sm")
                    coco = gr.DownloadButton("Masks (COCO JSON)", interactive=False, elem_id="ps-coco", size="sm")
        gallery = gr.HTML(
            examples_html(examples),
            js_on_load=PICK,
            apply_default_css=False,
            visible=bool(examples),
            elem_id="ps-examples",
        )

        files = _Downloads()

        def results(state: Session, opacity: float) -> dict[Any, Any]:
            """The widgets that show what was found."""
            painted = None if state.shown is None else picture(state.shown, state.findings, state.regions, opacity)
            paths = files.write(state) if any(finding.area_px for finding in state.findings) else (None, None)
            return {
                session: state,
                status: _html(""),
                shown: painted,
                found: _html(legend(state.findings, state.size_wh, state.seconds)),
                png: gr.DownloadButton(value=paths[0], interactive=paths[0] is not None),
                coco: gr.DownloadButton(value=paths[1], interactive=paths[1] is not None),
                target: _targets(state, None),
            }

        def on_upload(path: str, opacity: float) -> dict[Any, Any]:
            try:
                return another_image(opened(Path(path), Path(path).name), [], opacity)
            except UserError as error:
                return {status: _html(error_html(error))}

        def on_example(opacity: float, event: gr.EventData) -> dict[Any, Any]:
            example = examples[event.number]
            state = opened(example.image, example.name)
            text = {phrases: example.text} if example.task == "segment" else {question: example.text}
            return another_image(state, example.shapes, opacity) | text | {tabs: gr.Tabs(selected=example.task)}

        def another_image(state: Session, shapes: list[dict[str, Any]], opacity: float) -> dict[Any, Any]:
            return results(state, opacity) | {canvas: canvas_value(state, shapes), chat: conversation_html([])}

        def on_segment(state: Session, drawn: Any, text: str, opacity: float) -> dict[Any, Any]:
            try:
                state, shapes = segment(predictor, state, _shapes(drawn), text), without_clicks(_shapes(drawn))
                cleared = {} if shapes == _shapes(drawn) else {canvas: canvas_value(state, shapes)}
                return results(state, opacity) | cleared
            except (UserError, torch.OutOfMemoryError) as error:
                return {status: _html(error_html(error))}

        def on_refine(state: Session, drawn: Any, number: int | None, opacity: float) -> dict[Any, Any]:
            try:
                state = refiner.refine(state, _shapes(drawn), number)
                return results(state, opacity) | {target: _targets(state, number)}
            except (UserError, torch.OutOfMemoryError) as error:
                return {status: _html(error_html(error))}

        def on_ask(state: Session, drawn: Any, text: str, opacity: float) -> Iterator[dict[Any, Any]]:
            last, before = state, state.findings
            try:
                for last in ask(predictor, state, _shapes(drawn), text):
                    yield {chat: conversation_html(last.turns), question: "", status: _html("")}
            except (UserError, torch.OutOfMemoryError) as error:
                yield {status: _html(error_html(error)), chat: conversation_html(state.turns), question: text}
                return
            yield {session: last} if last.findings is before else results(last, opacity)

        def on_fresh(state: Session) -> dict[Any, Any]:
            return {session: replace(state, turns=()), chat: conversation_html([])}

        def on_opacity(state: Session, opacity: float) -> Any:
            return None if state.shown is None else picture(state.shown, state.findings, state.regions, opacity)

        seen = [session, status, shown, found, png, coco, target]
        private = {"api_visibility": "private"}
        # one after the other, so that no late answer is put over another image
        model = private | {"concurrency_limit": 1, "concurrency_id": "model"}
        upload.upload(on_upload, [upload, opacity], [*seen, canvas, chat], **model)
        gallery.click(on_example, [opacity], [*seen, canvas, chat, phrases, question, tabs], **model)
        for event in (run.click, phrases.submit):  # Shift+Enter in the box of several lines
            event(on_segment, [session, canvas, phrases, opacity], [*seen, canvas], show_progress_on=[shown], **model)
        better.click(on_refine, [session, canvas, target, opacity], seen, show_progress_on=[shown], **model)
        for event in (send.click, question.submit):
            inputs, outputs = [session, canvas, question, opacity], [*seen, chat, question]
            event(on_ask, inputs, outputs, show_progress="minimal", show_progress_on=[chat], **model)
        fresh.click(on_fresh, [session], [session, chat], **model)
        opacity.release(on_opacity, [session, opacity], [shown], show_progress="hidden", **private)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def serve(page: Any, host: str, port: int | None, share: bool = False, **options: Any) -> Any:
    """Starts the page: uploads of limited size, no file of this machine, no traceback, nothing from other hosts.

    `share`: also at a public address of gradio's, for a week.
    """
    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        show_error=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD_BYTES,
        state_session_capacity=MAX_SESSIONS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE_OF_PAGE,
        footer_links=[],
        **options,
    )


def error_html(error: Exception) -> str:
    """What went wrong, in words."""
    if isinstance(error, torch.OutOfMemoryError):
        error = UserError("the memory of the GPU is used up; try a smaller image, or fewer phrases")
    return f'<div class="ps-error" role="alert">{html.escape(str(error))}</div>'


def _shapes(drawn: Any) -> Any:
    return drawn.get("shapes") if isinstance(drawn, dict) else None


def _targets(state: Session, number: int | None) -> Any:
    """An update of the choice of the mask to refine, by its number; the first if none is chosen."""
    choices = [(finding.phrase, i) for i, finding in enumerate(state.findings)]
    known = number is not None and 0 <= number < len(choices)
    return gr.Dropdown(choices=choices, value=number if known else 0 if choices else None)


def _html(text: str) -> Any:
    """An update of a gradio.HTML, which takes no room while it is empty."""
    return gr.HTML(text, visible=bool(text))


def examples_html(examples: Sequence[Example]) -> str:
    """Cards with an image, the task and the text."""
    cards = [
        f'<button type="button" class="ps-card" data-number="{number}"><img alt="" src="{_thumbnail(example)}">'
        f"<span><b>{example.task.capitalize()}</b> {html.escape(' · '.join(example.text.splitlines()))}</span></button>"
        for number, example in enumerate(examples)
    ]
    note = '<p class="ps-note">Examples: take one, then press Segment or Ask.</p>'
    return f'{note}<div class="ps-cards">{"".join(cards)}</div>'


def _thumbnail(example: Example) -> str:
    """A data URI."""
    image, file = as_image(example.image), io.BytesIO()
    image.thumbnail((320, 320))
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


class _Downloads:
    """Files of the latest answers; gradio copies what it offers, so old ones can go."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="pixel_sail_demo_")
        self.written: deque[tempfile.TemporaryDirectory[str]] = deque(maxlen=MAX_WAITING)

    def write(self, session: Session) -> tuple[str, str]:
        """Paths of the zip and of the JSON."""
        folder = tempfile.TemporaryDirectory(dir=self.folder.name)
        self.written.append(folder)
        paths = Path(folder.name) / "masks.zip", Path(folder.name) / "masks_coco.json"
        paths[0].write_bytes(masks_zip(session.findings))
        paths[1].write_bytes(coco_json(session.findings, session.name, session.size_wh))
        return str(paths[0]), str(paths[1])
