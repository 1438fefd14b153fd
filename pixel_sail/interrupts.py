"""Signals as an orderly stop: at once, or after the piece of work in hand.

A tool installs `on_signal` (command.py). Work that must not be torn asks for `finish_first`: inside it a signal is only
remembered, and the loop looks at it between two pieces.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IMPATIENT_AFTER_S = 1.0  # a launcher passes Ctrl-C on as a second signal at once; a person takes longer


class Stopped(BaseException):
    """A signal ends the work. No `except Exception` may take it for a failure.

    The message says how far the work has come and how it goes on. `status`: exit status of the process.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number
        self.status = 130 if number == signal.SIGINT else 143


class Pending:
    """The first signal that came while work had to be finished; 0 if none did."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.number = 0
        self.at_s = 0.0


_pending: Pending | None = None  # while work must be finished first
_raised_at_s = -IMPATIENT_AFTER_S  # the time of the last Stopped


@contextlib.contextmanager
def finish_first(what: str) -> Iterator[Pending]:
    """Inside, the first signal is remembered instead of ending the work; a second Ctrl-C ends it at once.

    `what` is being finished, for the message: "this step". The caller looks at `Pending.number` and raises Stopped.
    """
    global _pending
    outer, _pending = _pending, Pending(what)
    try:
        yield _pending
    finally:
        _pending = outer


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within `finish_first`, work that may be torn after all: a signal ends it, also one that came before.

    Raises Stopped.
    """
    global _pending
    outer, _pending = _pending, None
    try:
        if outer is not None and outer.number:
            raise Stopped(outer.number)
        yield
    finally:
        _pending = outer


@contextlib.contextmanager
def how_far(message: Callable[[], str]) -> Iterator[None]:
    """A signal that ends the work inside says `message()`: how far it has come, and how it goes on."""
    try:
        yield
    except Stopped as stopped:
        if str(stopped):
            raise
        raise Stopped(stopped.number, message()) from None


def on_signal(number: int, frame: FrameType | None) -> None:
    """The handler that tools install for SIGNALS."""
    global _raised_at_s
    now = time.monotonic()
    if _pending is not None and not _pending.number:
        _pending.number, _pending.at_s = number, now
        if os.environ.get("RANK", "0") == "0":
            text = f"{signal.Signals(number).name}: finishing {_pending.what} first\n"
            with contextlib.suppress(OSError):  # not print: the signal may come in the middle of another print
                os.write(2, text.encode())
    elif _pending is not None:
        if number == signal.SIGINT and now - _pending.at_s > IMPATIENT_AFTER_S:
            raise Stopped(number)
    elif now - _raised_at_s > IMPATIENT_AFTER_S:
        # The same signal often comes twice at once; the second must not tear what puts things in order.
        _raised_at_s = now
        raise Stopped(number)
