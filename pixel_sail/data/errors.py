"""What goes wrong with a dataset as a whole; a single bad sample is `pixel_sail.types.BadSample`."""


class DatasetError(ValueError):
    """A dataset that cannot be read at all; the message names the file or folder and what is expected there."""
