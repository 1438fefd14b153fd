"""Errors about a dataset as a whole; a single bad sample is `pixel_sail.types.BadSample`."""

from pixel_sail.errors import UserError


class DatasetError(UserError):
    """A dataset that cannot be read at all; the message names the file or folder and what is expected there."""


class UnknownSplit(DatasetError):
    """The files are fine, but the dataset does not have this split."""
