"""How every command runs: errors in one line, signals as an orderly stop, never a traceback for what a user can mend.

Only commands import this module. From then on Ctrl-C is quiet, also while torch is still being imported.

    @tool
    def main() -> None:
        arguments = parser.parse_args()
        with importing():  # what takes seconds: --help does without it
            import torch
        ...

Exit status: 0; 1 after an error; 2 for a wrong command line; 130 after Ctrl-C; 143 after SIGTERM, and after SIGUSR1,
with which Slurm warns before it ends a job (sbatch --signal=USR1@90).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from pixel_sail.errors import UserError, message_of
from pixel_sail.interrupts import SIGNALS, Stopped, on_signal


def tool(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the `main` of a command."""

    @functools.wraps(main)
    def run() -> None:
        before = {number: signal.signal(number, on_signal) for number in SIGNALS}
        if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also transformers' bar of loaded weights
        try:
            main()
        except (UserError, OSError, MemoryError) as error:
            _end_with(error)
        except Stopped as stopped:
            before |= dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), signal.SIG_IGN)  # it often comes once more
            if os.environ.get("RANK", "0") == "0":  # the others are stopped too
                text = str(stopped)
                print(text if text.startswith("stopped") else f"stopped{f': {text}' if text else ''}", file=sys.stderr)
            raise SystemExit(stopped.status) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports in a command: a signal ends the process at once and quietly. No work can be torn yet.

    An exception of a signal in the middle of an import could be swallowed by what is imported.
    """
    before = {number: signal.signal(number, _quiet_interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with(error: BaseException) -> None:
    """Exit with status 1. A rank other than 0 says what it alone knows."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, BrokenPipeError):  # whoever read our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    if rank != "0" and getattr(error, "on_all_ranks", False):
        raise SystemExit(1) from None
    raise SystemExit(f"error{'' if rank == '0' else f' on rank {rank}'}: {message_of(error)}") from None


def _quiet_interrupt(signum: int, frame: FrameType | None) -> None:
    os._exit(130 if signum == signal.SIGINT else 143)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quiet_interrupt)
