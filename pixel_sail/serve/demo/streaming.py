"""An answer while it is made: Predictor.chat in a thread of its own, and its words as they come."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from threading import Event, Thread

import numpy as np
import torch
from PIL import Image
from transformers.generation import BaseStreamer

from pixel_sail.serve.predictor import Answer, Predictor


class _Abandoned(Exception):
    """Nobody waits for the answer any more."""


class _Words(BaseStreamer):
    """Puts the text of the answer so far into `texts` with each new token; raises _Abandoned once `abandoned`."""

    def __init__(self, predictor: Predictor, texts: queue.SimpleQueue) -> None:
        self.encoder, self.texts = predictor.encoder, texts
        self.ids: list[int] | None = None  # None: the question has not come yet
        self.abandoned = Event()

    def put(self, value: torch.Tensor) -> None:
        if self.abandoned.is_set():
            raise _Abandoned
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.tolist()
        self.texts.put(self.encoder.answer_text(self.ids))

    def end(self) -> None:
        pass  # the answer itself says that it has ended


def stream(
    predictor: Predictor,
    image: Image.Image,
    question: str,
    regions: Mapping[int, np.ndarray],
    history: Sequence[tuple[str, str]],
) -> Iterator[str | Answer]:
    """The text of the answer so far, as often as it grows; at last the answer.

    Raises what `Predictor.chat` raises. Closing the iterator stops the model at its next token.
    """
    arrived: queue.SimpleQueue[str | Answer | BaseException] = queue.SimpleQueue()
    words = _Words(predictor, arrived)

    def run() -> None:
        try:
            (answer,) = predictor.chat(image, question, regions, history=history, streamer=words)
            arrived.put(answer)
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the thread that waits
            arrived.put(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item = arrived.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Answer):
                return
    finally:
        words.abandoned.set()
        thread.join()  # one question at a time
