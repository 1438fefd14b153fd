"""The demo: a page with an image to paint regions on, a line to write, and what the model says to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from pixel_sail.data.image import to_rgb
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import answered

# A colour of the brush is a region: strokes of one colour are one, wherever they are.
COLOURS = {"red": "#e6194b", "green": "#3cb44b", "blue": "#4363d8", "orange": "#f58231", "purple": "#911eb4"}
PAINTED = 128  # alpha from which a pixel counts: the edge of a stroke is soft
HELP = (
    "Write what to segment, one thing a line, or ask a question. To point at something paint it: "
    + ", ".join(f"{name} is `<Prompt{k}>`" for k, name in enumerate(COLOURS))
    + "."
)


def painted_regions(layers: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Regions (H, W) bool by the K of their <PromptK>, from layers (H, W, 4) of uint8 RGBA, later ones on top.

    A pixel belongs to the colour of COLOURS that is nearest to its own, and to the uppermost layer that covers it.
    """
    palette = np.array([ImageColor.getrgb(code) for code in COLOURS.values()])
    names: np.ndarray | None = None  # of each pixel its K, -1 for none
    for layer in layers:
        names = np.full(layer.shape[:2], -1) if names is None else names
        ys, xs = np.nonzero(layer[..., 3] >= PAINTED)
        away = np.abs(layer[ys, xs, None, :3].astype(int) - palette).sum(axis=2)  # (pixels, colours)
        names[ys, xs] = away.argmin(axis=1)
    if names is None:
        return {}
    return {int(k): names == k for k in np.unique(names[names >= 0])}


def respond(predictor: Predictor, painting: dict[str, Any] | None, text: str, ask: bool) -> tuple[Image.Image, str]:
    """The overlay and the words that answer `text`: a question if `ask`, else things to segment, one a line.

    `painting`: gradio's editor value, {"background": (H, W, 4) uint8 or None, "layers": [(H, W, 4) uint8, ...]}.
    Raises ValueError without an image or a text, and for what the predictor refuses.
    """
    if painting is None or painting["background"] is None:
        raise ValueError("there is no image: drop one on the left, or choose an example")
    lines = [line.strip() for line in ([text] if ask else text.splitlines()) if line.strip()]
    if not lines:
        raise ValueError("there is nothing to answer: write a question, or what is to be segmented")
    image = to_rgb(Image.fromarray(painting["background"]))
    regions = painted_regions(painting["layers"])
    answers = predictor.chat(image, lines, regions) if ask else predictor.segment(image, lines, regions)
    captions = [f"{line}: {answer.text}" for line, answer in zip(lines, answers, strict=True)]
    return answered(image, regions, captions, [answer.masks for answer in answers]), "\n".join(captions)


def build(predictor: Predictor, examples: Sequence[str] = ()) -> Any:
    """The page, a gradio.Blocks to `launch()`; `examples` are files of images to begin with."""
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
        text = gr.Textbox(label="what to segment, one thing a line, or a question", lines=2)
        with gr.Row():
            segment, ask = gr.Button("Segment", variant="primary"), gr.Button("Ask")
        words = gr.Textbox(label="what the model says", interactive=False)
        if examples:
            gr.Examples([[file] for file in examples], inputs=[painting])
        segment.click(partial(answer, False), [painting, text], [shown, words], api_name="segment")
        ask.click(partial(answer, True), [painting, text], [shown, words], api_name="ask")
    return page
