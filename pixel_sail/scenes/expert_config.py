"""The configuration of `tools/train_expert.py`: one flat YAML file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pixel_sail.config import ConfigError, Section

STRIDE_PX = 32  # of the backbone's last stage

# May differ between a checkpoint and the run that goes on from it: they change nothing of the result.
FREE_KEYS = {"dir", "root", "log_every", "save_every", "evaluate_every", "evaluate_images", "workers"}


class ExpertTraining(Section):
    """A small Mask2Former from random weights: where its data are, its size, and how it is trained."""

    dir: Path  # gets checkpoint.pt and log.jsonl while it trains, expert/ and quality.json at the end
    root: Path  # a data root with COCO panoptic annotations, see data/README.md
    seed: int = 0

    size_px: int = Field(
        ge=2 * STRIDE_PX, multiple_of=STRIDE_PX
    )  # both sides of the square that an image is resized to
    widths: list[int] = Field(min_length=4, max_length=4)  # channels of the stages of a ResNet, at stride 4 to 32
    blocks: list[int] = Field(min_length=4, max_length=4)  # residual blocks of each
    feature_size: int = Field(ge=32, multiple_of=32)  # channels of the pixel decoder: what is distilled
    encoder_layers: int = Field(ge=1)  # of deformable attention in the pixel decoder
    decoder_layers: int = Field(ge=2)  # each but the last is supervised too
    queries: int = Field(ge=1)  # at least as many as an image has segments
    points: int = Field(ge=1)  # supervised points of each mask
    # weight of naming the class of every pixel from the features alone, beside Mask2Former's own loss
    dense_weight: float = Field(5.0, ge=0)

    steps: int = Field(ge=1)  # in all
    # the first of them, in which the features alone learn the class of every pixel; all of them: an expert of features
    # that segments nothing
    feature_steps: int = Field(0, ge=0)
    feature_lr: float = 6e-3  # in those
    batch_size: int = Field(ge=1)
    lr: float
    weight_decay: float = 0.05
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    clip_norm: float = 1.0
    flip: bool = True  # every second image is mirrored

    @model_validator(mode="after")
    def _two_stages(self) -> ExpertTraining:
        if self.feature_steps > self.steps:
            raise ValueError("feature_steps are the first of steps: there cannot be more")
        return self

    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1)
    evaluate_every: int = Field(1000, ge=1)
    evaluate_images: int | None = 100  # held-out images scored while it trains; at the end it is all of them
    workers: int = Field(1, ge=0)


def load_expert_training(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> ExpertTraining:
    """Reads a YAML file and applies `key=value` overrides. Raises ConfigError, naming the file and the key."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping, got {type(values).__name__}")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: write key=value, for example lr=1e-4")
        values[key.strip()] = yaml.safe_load(text)
    try:
        return ExpertTraining.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def differences(old: dict[str, Any], new: ExpertTraining) -> list[str]:
    """What was and is, of every key that may not change while an expert trains."""
    ours = new.model_dump(mode="json")
    return [
        f"{key} was {old.get(key)}, is {ours[key]}"
        for key in ours
        if key not in FREE_KEYS and old.get(key) != ours[key]
    ]


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, ExpertTraining.model_fields, n=1)
        return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else "see configs/expert_scenes.yaml")
    if error["type"] == "missing":
        return f"missing key {key!r}"
    return f"{key}: {error['msg']}, got {error['input']!r}"
