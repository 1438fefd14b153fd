"""Where a run is followed beside its log: wandb and TensorBoard, through one small interface. Neither can end a run."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pixel_sail.config import Config
from pixel_sail.durable import write_text
from pixel_sail.errors import UserError

WANDB_ID = "wandb_id"  # file in the run folder
TENSORBOARD = "tensorboard"  # folder in the run folder


class Tracker(Protocol):
    """One service that shows curves."""

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Values by name after `step` steps."""
        ...

    def images(self, files: dict[str, Path], step: int) -> None:
        """PNG files by name."""
        ...

    def finish(self) -> None: ...


class Wandb:
    """The wandb run of a run folder: a resumed run goes on in it, and from step 0 it is a new one."""

    def __init__(self, config: Config, start_step: int) -> None:
        import wandb

        path = config.run.dir / WANDB_ID
        known = start_step > 0 and path.is_file()
        identity = path.read_text().strip() if known else secrets.token_hex(4)
        self._as_image = wandb.Image
        self._run = wandb.init(
            project=config.run.wandb_project,
            dir=config.run.dir,
            config=config.model_dump(mode="json"),
            id=identity,
            resume="allow",
        )
        if not known:
            write_text(path, f"{identity}\n")

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def images(self, files: dict[str, Path], step: int) -> None:
        self._run.log({name: self._as_image(str(file)) for name, file in files.items()}, step=step)

    def finish(self) -> None:
        self._run.finish()


class TensorBoard:
    """Event files in `<run.dir>/tensorboard`. A resumed run hides what an ended one had written of later steps."""

    def __init__(self, config: Config, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("run.tensorboard needs TensorBoard (pip install tensorboard)") from None
        self._writer = SummaryWriter(config.run.dir / TENSORBOARD, purge_step=start_step + 1)

    def numbers(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, files: dict[str, Path], step: int) -> None:
        import numpy as np
        from PIL import Image

        for name, file in files.items():
            with Image.open(file) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class Trackers:
    """The trackers of a run. One that fails is left out from then on, and `say` tells why."""

    def __init__(self, config: Config, start_step: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._active: list[tuple[str, Tracker]] = []
        kinds: list[tuple[str, Any, bool]] = [
            ("wandb", Wandb, bool(config.run.wandb_project)),
            ("TensorBoard", TensorBoard, config.run.tensorboard),
        ]
        for name, kind, is_wanted in kinds:
            if is_wanted and (tracker := self._tried(name, lambda kind=kind: kind(config, start_step))) is not None:
                self._active.append((name, tracker))

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.numbers(values, step))

    def images(self, files: dict[str, Path], step: int) -> None:
        if files:
            self._each(lambda tracker: tracker.images(files, step))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._active = []

    def _each(self, action: Callable[[Tracker], None]) -> None:
        def done(tracker: Tracker) -> bool:
            action(tracker)
            return True

        self._active = [
            (name, tracker)
            for name, tracker in self._active
            if self._tried(name, lambda tracker=tracker: done(tracker))
        ]

    def _tried(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call gives, or None. wandb raises errors of many kinds (network, its own process, its settings)."""
        try:
            return call()
        except Exception as error:  # none of them is worth a run
            self._say(f"{name} has failed, and the run goes on without it: {type(error).__name__}: {error}")
            return None
