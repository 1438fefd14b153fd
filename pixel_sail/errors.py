"""Errors that the user can mend. Tools print their message without a traceback and exit with status 1 (command.py)."""


class UserError(ValueError):
    """The message says what is wrong, where, and what to do.

    `on_all_ranks`: every process raises this same error, so that one of them is enough to print it.
    """

    on_all_ranks = False


class FileError(UserError):
    """A file that cannot be read or written, or that does not hold what it must hold."""


class WeightsError(UserError):
    """A model folder or checkpoint that cannot be used."""
