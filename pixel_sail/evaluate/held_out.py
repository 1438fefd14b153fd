"""The images of the benchmarks that `data.exclude` names."""

from __future__ import annotations

from pixel_sail.config import Config, ConfigError
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.exclude import identities
from pixel_sail.evaluate.jsonl import JsonlCase
from pixel_sail.evaluate.kinds import tasks_of
from pixel_sail.evaluate.runner import open_benchmark


def held_out_images(config: Config) -> frozenset[str]:
    """The images that must not enter training, for `open_mixture`. Benchmarks are read from data.root.

    Raises ConfigError, naming the benchmark, if one is unknown or its files are not there: which images to leave out is
    then unknown.
    """
    images: set[str] = set()
    for name in (task for kind in config.data.exclude for task in tasks_of(kind)):
        try:
            for case in open_benchmark(name, config.data.root).cases:
                images |= identities([path for path, _ in case.images] if isinstance(case, JsonlCase) else [case.image])
        except DatasetError as error:
            raise ConfigError(f"data.exclude: the images of {name} are not known: {error}") from None
    return frozenset(images)
