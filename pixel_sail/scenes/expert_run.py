"""The run folder of an expert's training: checkpoint, log, and what makes it finished."""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import Any

import numpy as np
import torch
from torch import nn

from pixel_sail.config import ConfigError
from pixel_sail.durable import append_json_line, fingerprint, replaced_file
from pixel_sail.errors import FileError, UserError
from pixel_sail.files import check_regular, read_json
from pixel_sail.scenes.expert_config import ExpertTraining, changes
from pixel_sail.scenes.expert_data import PanopticImages
from pixel_sail.train.log import forget_after, format_seconds
from pixel_sail.train.muon import MuonAdamW
from pixel_sail.train.optim import lr_at

EXPERT = "expert"  # the finished model
QUALITY = "quality.json"  # of the finished expert; written last


class RunFolder:
    """Resuming, saving and logging. `step`: the steps of the checkpoint."""

    def __init__(self, config: ExpertTraining, images: PanopticImages, model: nn.Module, optimizer: MuonAdamW):
        self.config, self.model, self.optimizer = config, model, optimizer
        self.path, self.log = config.dir / "checkpoint.pt", config.dir / "log.jsonl"
        keys = "\n".join(image.key for image in images.images)
        self.data = fingerprint([keys.encode()])
        self.step = 0

    def resume(self) -> None:
        """Load the checkpoint if there is one.

        Raises ConfigError for one of another config or of other data, FileError for a damaged one.
        """
        if not os.path.lexists(self.path):
            return
        state = self._read()
        changed = changes(state["config"], self.config)
        if state["data"] != self.data:
            changed.append("the data changed (the training images have other keys)")
        if changed:
            raise ConfigError(f"cannot resume from {self.path}: {'; '.join(changed)}. Choose another dir to start anew")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(str(error).splitlines()[0]) from None
        self.step = state["step"]
        forget_after(self.log, self.step)

    def _read(self) -> dict[str, Any]:
        check_regular(self.path)
        try:
            with zipfile.ZipFile(self.path) as file:  # torch does not look at the checksums
                if name := file.testzip():
                    raise self._damaged(f"the checksum of {name} does not fit")
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except UserError:
            raise
        except Exception as error:  # zipfile, pickle and torch raise many kinds
            raise self._damaged(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        kinds = {"step": int, "config": dict, "data": str, "model": dict, "optimizer": dict}
        if not isinstance(state, dict) or any(not isinstance(state.get(key), kind) for key, kind in kinds.items()):
            raise self._damaged(f"it does not have {', '.join(kinds)}")
        if not 0 <= state["step"] <= self.config.steps:
            raise self._damaged(f"its step is {state['step']}")
        if not all(torch.isfinite(tensor).all() for tensor in _tensors([state["model"], state["optimizer"]])):
            raise self._damaged("not all of its values are finite")
        return state

    def _damaged(self, why: str) -> FileError:
        return FileError(f"cannot resume from {self.path}: it is damaged ({why}). Delete it to start anew")

    def save(self, step: int) -> None:
        state = {"step": step, "config": self.config.model_dump(mode="json"), "data": self.data}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        content = io.BytesIO()  # torch takes the error of a full disk for one of its own
        torch.save(state, content)
        with replaced_file(self.path, "wb") as file:
            file.write(content.getbuffer())
        self.step = step

    def finished_quality(self) -> dict[str, float] | None:
        """The quality of the finished expert. None if it is not finished, or if a file of it is missing or damaged."""
        try:
            values = read_json(self.config.dir / QUALITY)["quality"]
            good = all(isinstance(name, str) and math.isfinite(value) for name, value in values.items())
        except (UserError, KeyError, TypeError, AttributeError):
            return None
        return values if good and (self.config.dir / EXPERT / "config.json").is_file() else None

    def log_step(self, step: int, losses: list[float], step_s: float) -> None:
        config = self.config
        loss, lr = float(np.mean(losses)), stage_lr(step - 1, config)
        append_json_line(self.log, {"step": step, "loss": loss, "lr": lr, "step_ms": 1e3 * step_s})
        eta = format_seconds((config.steps - step) * step_s)
        print(
            f"step {step}/{config.steps}  loss {loss:.3f}  lr {lr:.1e}  step {1e3 * step_s:.0f} ms  ETA {eta}",
            flush=True,
        )

    def log_quality(self, step: int, values: dict[str, float]) -> None:
        append_json_line(self.log, {"step": step, "quality": values})
        print(f"step {step}/{self.config.steps}  {quality_line(values)}", flush=True)


def quality_line(values: dict[str, float]) -> str:
    return "held out:  " + "  ".join(f"{name} {value:.1f}" for name, value in values.items())


def stage_lr(step: int, config: ExpertTraining) -> float:
    """Learning rate of a step: each of the two stages has its own warm-up and cosine."""
    if step < config.feature_steps:
        return lr_at(step, config.feature_steps, config.feature_lr, config.warmup_fraction)
    step, steps = step - config.feature_steps, config.steps - config.feature_steps
    return lr_at(step, steps, config.lr, config.warmup_fraction)


def _tensors(value: Any) -> list[torch.Tensor]:
    """All floating-point tensors of nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
