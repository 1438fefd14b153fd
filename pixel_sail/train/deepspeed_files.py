"""How DeepSpeed writes and reads the files of a checkpoint: hashed on the way out, and read so that nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from pixel_sail.train.recut import Recut
from pixel_sail.weights.checksums import Checksum, HashedFile
from pixel_sail.weights.engine_files import read_engine_file


class EngineFiles(CheckpointEngine):
    """How DeepSpeed writes and reads the files of `checkpoint`, on this rank.

    A failed write is remembered, not raised: the other ranks would wait for this one. `raise_problem` raises it.
    `recut`: what to read if another number of processes has saved the checkpoint.
    """

    def __init__(self, checkpoint: Path, recut: Recut | None = None):
        super().__init__()
        self._recut = recut
        self.checksums: dict[str, Checksum] = {}  # by path in the checkpoint, of the files of this rank
        self._checkpoint = checkpoint
        self._problem: OSError | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        try:
            with HashedFile(Path(path)) as file:
                torch.save(state_dict, file)
            self.checksums[str(Path(path).relative_to(self._checkpoint))] = file.checksum()
        except OSError as error:
            self._problem = self._problem or OSError(error.errno, error.strerror, path)

    def raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        if self._recut is not None:
            return self._recut.weights() if path.endswith("model_states.pt") else self._recut.optimizer()
        return read_engine_file(Path(path), map_location)
