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
from pixel_sail.devices import choose_device
from pixel_sail.errors import WeightsError
from pixel_sail.folders.find import local_folder
from pixel_sail.folders.load import load_network, load_processor
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.tokens import PROMPTS

Point = tuple[float, float]  # x, y in pixels of the stored image
KINDS = ("sam", "sam2", "pixel_sail")
_POINTS_PER_CALL = 16  # their masks are scaled up together: 3 a point, float32, up to 1024 px wide


@dataclass(frozen=True)
class PointMasks:
    """The masks of one point, (H, W) bool of the image's size, and the segmenter's own score of each."""

    masks: list[np.ndarray]
    scores: list[float]


class Segmenter(Protocol):
    """A model that returns masks for points."""

    def segment(self, image: Image.Image, points_xy: Sequence[Point]) -> list[PointMasks]:
        """One `PointMasks` for each point; each point is a prompt of its own."""
        ...


class Sam:
    """SAM or SAM 2. The image is encoded once. Each point gets three masks, scored by the IoU that SAM predicts."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def segment(self, image: Image.Image, points_xy: Sequence[Point]) -> list[PointMasks]:
        """See `Segmenter`."""
        results: list[PointMasks] = []
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
            results += [PointMasks(list(m), s) for m, s in zip(masks.cpu().numpy(), scores, strict=True)]
        return results


class PixelSailSegmenter:
    """Our own model, asked for the mask of a region that is one point.

    An answer has one mask for each of its [SEG]s, so it may have none. The model scores no masks: each gets 1.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def segment(self, image: Image.Image, points_xy: Sequence[Point]) -> list[PointMasks]:
        """See `Segmenter`. Each point is drawn on the image, so the image is read once for each point."""
        request = question(PROMPTS[0], self.predictor.model.config.question)
        chats = [Chat(image, [request], [Points((point,))]) for point in points_xy]
        answers = [answer for (answer,) in self.predictor.chat_many(chats, Sampling())]
        return [PointMasks(answer.masks, [1.0] * len(answer.masks)) for answer in answers]


def open_segmenter(spec: str, device: str = "auto", precision: str = "auto") -> Segmenter:
    """`sam:PATH`, `sam2:PATH` or `pixel_sail:PATH`. SAM runs in float32. Raises ConfigError."""
    kind, _, path = spec.partition(":")
    if kind not in KINDS or not path:
        raise ConfigError(f"unknown segmenter {spec!r}; give one of {', '.join(f'{kind}:PATH' for kind in KINDS)}")
    if kind == "pixel_sail":
        return PixelSailSegmenter(Predictor.from_pretrained(path, device, precision))
    place = choose_device(device)
    model_class = SamModel if kind == "sam" else Sam2Model
    try:
        folder = local_folder(path)
        processor = load_processor(AutoProcessor, folder)
        model = load_network(model_class, folder, torch.float32)
    except WeightsError as error:
        problem = "is incomplete or of another kind" if Path(path).is_dir() else "does not exist, and no hub answers"
        raise ConfigError(
            f"cannot load the segmenter {spec!r}: {path} {problem}. Without hub access, put config.json, "
            f"preprocessor_config.json and *.safetensors of its repository into a folder. The cause: {error}"
        ) from error
    return Sam(model.to(place), processor)
