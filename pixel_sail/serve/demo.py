"""The demo: a page to paint regions on an image, ask about them, and see the answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from pixel_sail.data.image import to_rgb
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import draw_answers

# Each colour of the brush is a region: all strokes of one colour belong to it.
COLOURS = {"red": "#e6194b", "green": "#3cb44b", "blue": "#4363d8", "orange": "#f58231", "purple": "#911eb4"}
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
    Raises ValueError without an image or a text, and for input that the predictor refuses.
    """
    if painting is None or painting["background"] is None:
        raise ValueError("there is no image: drop one on the left, or choose an example")
    lines = [line.strip() for line in ([text] if ask else text.splitlines()) if line.strip()]
    if not lines:
        raise ValueError("there is nothing to answer: write a question, or what to segment")
    image = to_rgb(Image.fromarray(painting["background"]))
    regions = painted_regions(painting["layers"])
    answers = predictor.chat(image, lines, regions) if ask else predictor.segment(image, lines, regions)
    captions = [f"{line}: {answer.text}" for line, answer in zip(lines, answers, strict=True)]
    return draw_answers(image, regions, captions, [answer.masks for answer in answers]), "\n".join(captions)


def build_page(predictor: Predictor, examples: Sequence[str] = ()) -> Any:
    """The page, a gradio.Blocks to `launch()`. `examples`: image files that the page offers."""
    import gradio as gr

    def answer(ask: bool, painting: dict[str, Any] | None, text: str) -> tuple[Image.Image, str]:
        try:
            return respond(predictor, painting, text, ask)
        except ValueError as error:
            raise gr.Error(str(error)) from None

    with gr.Blocks(title="pixel_sail") as page:
        gr.Markdown(HELP)
        with gr.Row():
            brush = gr.Brush(colors=list(COLOURS.values()), color_mode="fixed", default_size=8)
            painting = gr.ImageEditor(type="numpy", image_mode="RGBA", brush=brush, layers=False, label="image")
            shown = gr.Image(label="answer", format="png")
        text = gr.Textbox(label="what to segment, one object per line, or a question", lines=2)
        with gr.Row():
            segment, ask = gr.Button("Segment", variant="primary"), gr.Button("Ask")
        words = gr.Textbox(label="answer in words", interactive=False)
        if examples:
            gr.Examples([[file] for file in examples], inputs=[painting])
        segment.click(partial(answer, False), [painting, text], [shown, words], api_name="segment")
        ask.click(partial(answer, True), [painting, text], [shown, words], api_name="ask")
    return page
