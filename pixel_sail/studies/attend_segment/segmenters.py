"""Points to masks: SAM and SAM 2 from transformers, or our own model prompted with a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin, Sam2Model, SamModel

from pixel_sail.config import ConfigError
from pixel_sail.data.regions import Points
from pixel_sail.data.templates import question
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.tokens import PROMPTS

Point = tuple[float, float]  # x, y in pixels of the stored image
KINDS = ("sam", "sam2", "pixel_sail")
_POINTS_PER_CALL = 16  # masks of so many points are scaled up together: 3 a point, float32, up to 1024 px wide


@dataclass(frozen=True)
class Found:
    """What one point gives: masks (H, W) bool of the image's size, and how good the segmenter thinks each is."""

    masks: list[np.ndarray]
    scores: list[float]


class Segmenter(Protocol):
    """Any promptable segmenter."""

    def segment(self, image: Image.Image, points_xy: Sequence[Point]) -> list[Found]:
        """One `Found` a point; each point is a prompt of its own."""
        ...


class Sam:
    """SAM or SAM 2: the image is encoded once; three masks a point, with the IoU that the model predicts for each."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def segment(self, image: Image.Image, points_xy: Sequence[Point]) -> list[Found]:
        """See `Segmenter`."""
        found: list[Found] = []
        embeddings = None
        for first in range(0, len(points_xy), _POINTS_PER_CALL):
            points = points_xy[first : first + _POINTS_PER_CALL]
            inputs = self.processor(
                image,
                input_points=[[[list(point)] for point in points]],
                input_labels=[[[1]] * len(points)],
                return_tensors="pt",
            ).to(self.model.device)
            pixels = inputs.pop("pixel_values")
            if embeddings is None:
                embeddings = self.model.get_image_embeddings(pixels)
            sizes = [inputs.pop("original_sizes").tolist()]
            if "reshaped_input_sizes" in inputs:  # SAM pads its square, SAM 2 fills it
                sizes.append(inputs.pop("reshaped_input_sizes").tolist())
            output = self.model(image_embeddings=embeddings, multimask_output=True, **inputs)
            (masks,) = self.processor.post_process_masks(output.pred_masks, *sizes)  # (points, 3, H, W) bool
            scores = output.iou_scores[0].tolist()
            found += [Found(list(m), s) for m, s in zip(masks.cpu().numpy(), scores, strict=True)]
        return found


class PixelSailSegmenter:
    """Our own model, asked for the mask of a region that is one point.

    An answer gives as many masks as it has [SEG]s, none where it has none. The model rates no mask: each scores 1.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def segment(self, image: Image.Image, points_xy: Sequence[Point]) -> list[Found]:
        """See `Segmenter`. A point is drawn on the image, which is therefore read once a point."""
        asked = question(PROMPTS[0], self.predictor.model.config.question)
        chats = [Chat(image, [asked], [Points((point,))]) for point in points_xy]
        answers = [answer for (answer,) in self.predictor.chat_many(chats)]
        return [Found(answer.masks, [1.0] * len(answer.masks)) for answer in answers]


def open_segmenter(spec: str, device: str = "auto", precision: str = "auto") -> Segmenter:
    """`sam:PATH`, `sam2:PATH` or `pixel_sail:PATH`. SAM runs in float32. Raises ConfigError."""
    kind, _, path = spec.partition(":")
    if kind not in KINDS or not path:
        raise ConfigError(f"the segmenter {spec!r} is none of {', '.join(f'{kind}:PATH' for kind in KINDS)}")
    if kind == "pixel_sail":
        return PixelSailSegmenter(Predictor.from_pretrained(path, device, precision))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model_class = SamModel if kind == "sam" else Sam2Model
    try:
        model, report = model_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as error:
        local = "is not complete or of another kind" if Path(path).is_dir() else "is not there, and no hub answers"
        raise ConfigError(
            f"cannot load the segmenter {spec!r}: {path} {local}. Without hub access, put config.json, "
            f"preprocessor_config.json and *.safetensors of its repository into a folder. The cause: {error}"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ConfigError(f"{path} is no {kind} checkpoint: {len(missing)} weights are missing, first {missing[0]}")
    return Sam(model.to(device), processor)
