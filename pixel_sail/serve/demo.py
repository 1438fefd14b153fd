"""The demo: a page to paint regions on an image, ask about them, and see the answer."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor

from pixel_sail.data.image import opened_image, to_rgb
from pixel_sail.errors import UserError
from pixel_sail.files import read_bytes
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import draw_answers

# Each colour of the brush is a region: all strokes of one colour belong to it.
COLOURS = {"red": "#e6194b", "green": "#3cb44b", "blue": "#4363d8", "orange": "#f58231", "purple": "#911eb4"}
MAX_UPLOAD_BYTES = 8 * 2**20  # of an image, and of each layer of paint
MAX_PIXELS = 20_000_000  # of an image
MAX_LAYERS = 8  # of paint
MAX_CHARACTERS = 2_000  # of what is asked
MAX_LINES = 16  # objects to segment at once
MAX_WAITING = 16  # requests in the queue; one is answered at a time
PAINTED = 128  # least alpha of a painted pixel: the edge of a stroke is soft
HELP = (
    "Write what to segment, one object per line, or ask a question. To point at something, paint it: "
    + ", ".join(f"{name} is `<Prompt{k}>`" for k, name in enumerate(COLOURS))
    + "."
)


def painted_regions(layers: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """K of <PromptK> -> region (H, W) bool, from layers (H, W, 4) of uint8 RGBA, later layers on top.

    A pixel belongs to the uppermost layer that covers it, and there to the nearest colour of COLOURS.
    """
    palette = np.array([ImageColor.getrgb(code) for code in COLOURS.values()])
    prompt_ids: np.ndarray | None = None  # (H, W): K of each pixel, -1 for unpainted ones
    for layer in layers:
        prompt_ids = np.full(layer.shape[:2], -1) if prompt_ids is None else prompt_ids
        ys, xs = np.nonzero(layer[..., 3] >= PAINTED)
        distances = np.abs(layer[ys, xs, None, :3].astype(int) - palette).sum(axis=2)  # (pixels, colours)
        prompt_ids[ys, xs] = distances.argmin(axis=1)
    if prompt_ids is None:
        return {}
    return {int(k): prompt_ids == k for k in np.unique(prompt_ids[prompt_ids >= 0])}


def respond(predictor: Predictor, painting: dict[str, Any] | None, text: str, ask: bool) -> tuple[Image.Image, str]:
    """The overlay and the words that answer `text`: a question if `ask`, else objects to segment, one per line.

    `painting`: the value of gradio's editor, {"background": (H, W, 4) uint8 or None, "layers": [(H, W, 4) uint8, ...]}.
    Raises UserError without an image or a text, for too much of either, and for input that the predictor refuses.
    """
    if painting is None or painting["background"] is None:
        raise UserError("there is no image: drop one on the left, or choose an example")
    lines = _lines(text, ask)
    background, layers = painting["background"], painting["layers"] or []
    if len(layers) > MAX_LAYERS or any(layer.shape[:2] != background.shape[:2] for layer in layers):
        raise UserError(f"the paint does not fit the image: at most {MAX_LAYERS} layers, each as large as the image")
    image = to_rgb(Image.fromarray(background))
    regions = painted_regions(layers)
    answers = predictor.chat(image, lines, regions) if ask else predictor.segment(image, lines, regions)
    captions = [f"{line}: {answer.text}" for line, answer in zip(lines, answers, strict=True)]
    return draw_answers(image, regions, captions, [answer.masks for answer in answers]), "\n".join(captions)


def check_upload(source: Path | bytes) -> None:
    """Raises UserError for a file, or its content, that is no image, is damaged, or is too large to be drawn on."""
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_UPLOAD_BYTES)
    if len(data) > MAX_UPLOAD_BYTES:
        raise UserError(f"the image has {len(data):,} bytes; at most {MAX_UPLOAD_BYTES:,} are accepted")
    with opened_image(data) as image:  # has read the header only
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"the image has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are accepted")
        image.load()


def shown_error(error: Exception) -> str:
    """An error for the page, which would take it for HTML."""
    return html.escape(str(error))


def build_page(predictor: Predictor, examples: Sequence[str] = ()) -> Any:
    """The page, a gradio.Blocks to `serve`. `examples`: image files that the page offers."""
    import gradio as gr

    def answer(ask: bool, painting: dict[str, Any] | None, text: str) -> tuple[Image.Image, str]:
        try:
            return respond(predictor, painting, text, ask)
        except UserError as error:
            raise gr.Error(shown_error(error)) from None
        except torch.OutOfMemoryError:
            raise gr.Error("the memory of the GPU is used up; try a smaller image, or fewer objects") from None

    def checked(preprocess: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Looks at what is uploaded before gradio decodes it."""

        def check_first(payload: Any) -> Any:
            try:
                for source in _uploads(payload, painting.blob_storage):
                    check_upload(source)
            except UserError as error:
                raise gr.Error(shown_error(error)) from None
            return preprocess(payload)

        return check_first

    with gr.Blocks(title="pixel_sail", analytics_enabled=False) as page:
        gr.Markdown(HELP)
        with gr.Row():
            brush = gr.Brush(colors=list(COLOURS.values()), color_mode="fixed", default_size=8)
            painting = gr.ImageEditor(type="numpy", image_mode="RGBA", brush=brush, layers=False, label="image")
            painting.preprocess = checked(painting.preprocess)
            painting.blob_storage = _FewUploads()
            shown = gr.Image(label="answer", format="png")
        text = gr.Textbox(
            label="what to segment, one object per line, or a question", lines=2, max_length=MAX_CHARACTERS
        )
        with gr.Row():
            segment, ask = gr.Button("Segment", variant="primary"), gr.Button("Ask")
        words = gr.Textbox(label="answer in words", interactive=False)  # text, which is never taken for HTML
        if examples:
            gr.Examples([[file] for file in examples], inputs=[painting])
        together = {"concurrency_limit": 1, "concurrency_id": "model"}
        segment.click(partial(answer, False), [painting, text], [shown, words], api_name="segment", **together)
        ask.click(partial(answer, True), [painting, text], [shown, words], api_name="ask", **together)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def serve(page: Any, host: str, port: int | None, **options: Any) -> Any:
    """Starts the page: one upload at a time of limited size, no file of this machine, no public link, no traceback."""
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD_BYTES,
        **options,
    )


def _lines(text: str, ask: bool) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are answered")
    lines = [line.strip() for line in ([text] if ask else text.splitlines()) if line.strip()]
    if not lines:
        raise UserError("there is nothing to answer: write a question, or what to segment")
    if len(lines) > MAX_LINES:
        raise UserError(f"there are {len(lines)} lines; at most {MAX_LINES} objects are segmented at once")
    return lines


def _uploads(payload: Any, blobs: Any) -> list[Path | bytes]:
    """What the browser sent to the editor: files in gradio's cache, or their contents. UserError for too many."""
    if payload is None:
        return []
    sent = blobs.get(payload.id) if payload.id is not None else payload
    parts = [] if sent is None else [sent.background, *(sent.layers or []), sent.composite]
    if len(parts) > MAX_LAYERS + 2:
        raise UserError(f"there are {len(parts) - 2} layers of paint; at most {MAX_LAYERS} are accepted")
    return [part if isinstance(part, bytes) else Path(part.path) for part in parts if part is not None]


class _FewUploads(dict[str, Any]):
    """What browsers have sent and not yet asked about: gradio would keep all of it, of any size."""

    def __setitem__(self, key: str, blobs: Any) -> None:
        parts = [blobs.background, *(blobs.layers or []), blobs.composite]
        if len(parts) <= MAX_LAYERS + 2 and all(len(part or b"") <= MAX_UPLOAD_BYTES for part in parts):
            super().__setitem__(key, blobs)
        while len(self) > MAX_WAITING:
            del self[next(iter(self))]
