"""How every tool runs: errors in one line, signals as an orderly stop, never a traceback for what the user can mend.

Only tools import this module. From then on Ctrl-C is quiet, also while torch is still being imported.

    @tool
    def main() -> None: ...

Exit status: 0; 1 after an error; 2 for a wrong command line; 130 after Ctrl-C; 143 after SIGTERM, and after SIGUSR1,
with which Slurm warns before it ends a job (sbatch --signal=USR1@90).
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from pixel_sail.errors import UserError
from pixel_sail.interrupts import SIGNALS, Stopped, on_signal

_ADVICE = {
    errno.ENOSPC: "free some space, then repeat the command",
    errno.EDQUOT: "the quota is used up: free some space, then repeat the command",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "check the permissions, or give another place",
    errno.EPERM: "check the permissions, or give another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "the memory is used up: use fewer workers or smaller batches",
}


def tool(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the `main` of a tool."""

    @functools.wraps(main)
    def run() -> None:
        before = {number: signal.signal(number, on_signal) for number in SIGNALS}
        try:
            main()
        except (UserError, OSError, MemoryError) as error:
            _end_with(error)
        except Stopped as stopped:
            print(f"stopped{f': {stopped}' if str(stopped) else ''}", file=sys.stderr)
            raise SystemExit(stopped.status) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


def message_of(error: BaseException) -> str:
    """An error in words: what is wrong, where, what to do."""
    if isinstance(error, MemoryError):
        return "the memory of this machine is used up: use fewer workers, smaller batches or fewer processes"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    advice = _ADVICE.get(error.errno)
    return f"{files + ': ' if files else ''}{os.strerror(error.errno)}{f'; {advice}' if advice else ''}"


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
    os._exit(128 + signum)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quiet_interrupt)
