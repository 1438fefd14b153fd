"""Errors that the user can mend. Tools print their message without a traceback and exit with status 1 (command.py)."""

from __future__ import annotations

import errno
import os

_ADVICE = {
    errno.ENOSPC: "free some space, then repeat the command",
    errno.EDQUOT: "the quota is used up: free some space, then repeat the command",
    errno.EFBIG: "raise the limit of the size of a file (ulimit -f)",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "check the permissions, or give another place",
    errno.EPERM: "check the permissions, or give another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "the memory is used up: use fewer workers or smaller batches",
}


class UserError(ValueError):
    """The message says what is wrong, where, and what to do.

    `on_all_ranks`: every process raises this same error, so that one of them is enough to print it.
    """

    on_all_ranks = False


class FileError(UserError):
    """A file that cannot be read or written, or that does not hold what it must hold."""


class WeightsError(UserError):
    """A model folder or checkpoint that cannot be used."""


def message_of(error: BaseException) -> str:
    """An error in words: what is wrong, where, what to do."""
    if isinstance(error, MemoryError):
        return "the memory of this machine is used up: use fewer workers, smaller batches or fewer processes"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    advice = _ADVICE.get(error.errno)
    return f"{files + ': ' if files else ''}{os.strerror(error.errno)}{f'; {advice}' if advice else ''}"
