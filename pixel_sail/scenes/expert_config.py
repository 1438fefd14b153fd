"""The configuration of `tools/train_expert.py`: one flat YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pixel_sail.architecture import Section
from pixel_sail.config import read_values, validated
from pixel_sail.durable import differences
from pixel_sail.workers import MAX_WORKERS

STRIDE_PX = 32  # of the backbone's last stage
MAX_SIZE, MAX_LAYERS, MAX_POINTS = 8192, 256, 2**20  # what is larger was not meant
MAX_LR = 1.0

# May differ between a checkpoint and the run that resumes from it: they do not change the result.
FREE_KEYS = {"dir", "root", "log_every", "save_every", "evaluate_every", "evaluate_images", "workers"}


class ExpertTraining(Section):
    """A small Mask2Former from random weights: its data, its size and its training."""

    dir: Path  # gets checkpoint.pt and log.jsonl while it trains, expert/ and quality.json at the end
    root: Path  # a data root with COCO panoptic annotations, see data/README.md
    seed: int = 0

    # both sides of the square that an image is resized to
    size_px: int = Field(ge=2 * STRIDE_PX, le=MAX_SIZE, multiple_of=STRIDE_PX)
    # channels of the stages of a ResNet, at stride 4 to 32, and residual blocks of each
    widths: list[Annotated[int, Field(ge=1, le=MAX_SIZE)]] = Field(min_length=4, max_length=4)
    blocks: list[Annotated[int, Field(ge=1, le=MAX_LAYERS)]] = Field(min_length=4, max_length=4)
    # channels of the pixel decoder, whose features are distilled
    feature_size: int = Field(ge=32, le=MAX_SIZE, multiple_of=32)
    encoder_layers: int = Field(ge=1, le=MAX_LAYERS)  # of deformable attention in the pixel decoder
    decoder_layers: int = Field(ge=2, le=MAX_LAYERS)  # each but the last is supervised too
    queries: int = Field(ge=1, le=MAX_SIZE)  # at least as many as an image has segments
    points: int = Field(ge=1, le=MAX_POINTS)  # supervised points of each mask
    # weight of classifying every pixel from the features alone, added to Mask2Former's own loss
    dense_weight: float = Field(5.0, ge=0)

    steps: int = Field(ge=1)
    # in the first steps only the features learn, from the class of every pixel; where these are all steps, the expert
    # has features to distil and cannot segment
    feature_steps: int = Field(0, ge=0)
    feature_lr: float = Field(6e-3, gt=0, le=MAX_LR)  # in the first steps
    batch_size: int = Field(ge=1, le=MAX_SIZE)
    lr: float = Field(gt=0, le=MAX_LR)
    weight_decay: float = Field(0.05, ge=0, le=1)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    flip: bool = True  # every second image is mirrored

    @model_validator(mode="after")
    def _two_stages(self) -> ExpertTraining:
        if self.feature_steps > self.steps:
            raise ValueError(f"feature_steps are the first of all {self.steps} steps: there cannot be more of them")
        return self

    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1)
    evaluate_every: int = Field(1000, ge=1)
    # held-out images scored during training, None: all; at the end always all
    evaluate_images: int | None = Field(100, ge=1)
    workers: int = Field(1, ge=0, le=MAX_WORKERS)


def load_expert_training(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> ExpertTraining:
    """Read a YAML file and apply `key=value` overrides. Raises ConfigError, naming the file and the key."""
    return validated(ExpertTraining, *read_values(path, overrides))


def changes(before: dict[str, Any], now: ExpertTraining) -> list[str]:
    """A sentence for each value of a stored config that differs and that must not change while an expert trains."""
    return differences(before, now.model_dump(mode="json"), is_free=lambda key: key in FREE_KEYS)
