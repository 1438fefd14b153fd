"""The runs of an ablation: one training for each variant and seed, all from one config; and their folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pixel_sail import durable, yaml_file
from pixel_sail.config import Config, ConfigError, Section, load_config, save_config

# Keys that may change between two calls. With any other change it is another run.
FREE_KEYS = (
    *("run.dir", "data.workers", "train.save_every", "train.keep_checkpoints"),
    *("train.activation_checkpointing", "train.compile"),
)


class Variant(Section):
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    changes: dict[str, Any]  # dotted key -> value


class AblationConfig(Section):
    """An ablation file: configs/ablation.yaml, where variants add up, or configs/pixel_cost.yaml, where they do not."""

    base: Path  # config of the run that all variants change; relative to the ablation file
    dir: Path  # of all runs, tables and plots
    seeds: list[int] = Field(min_length=1)
    benchmarks: list[str] = Field(min_length=1)  # as tools/test.py names them
    max_images: int | None = Field(None, ge=1)  # of each benchmark; None: all
    changes: dict[str, Any] = {}  # dotted key -> value, for every variant
    variants_add_up: bool = True  # a variant also has the changes of all variants before it; False: only its own
    variants: list[Variant] = Field(min_length=1)
    # (before, after) of each step, the variants that the table compares; None: each with the one before it
    steps: list[tuple[str, str]] | None = Field(None, min_length=1)

    def pairs(self) -> list[tuple[str, str]]:
        """(before, after) of each step."""
        names = [variant.name for variant in self.variants]
        return list(zip(names, names[1:], strict=False)) if self.steps is None else self.steps


@dataclass(frozen=True, eq=False)
class Run:
    """One training and its scoring, in `folder`:

    config.yaml  the config for tools/train.py      run/     its run folder             log.txt  output of the tools
    scores.json  exists when the run is finished    scores/  written by tools/test.py
    """

    variant: str
    seed: int
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    def check_same(self) -> None:
        """Raises ConfigError with the differences if the folder has a run of another config, begun or finished."""
        path = self.folder / "config.yaml"
        if not os.path.lexists(path):
            return
        before, now = (config.model_dump(mode="json") for config in (load_config(path), self.config))
        changes = durable.differences(before, now, FREE_KEYS.__contains__)
        if changes:
            raise ConfigError(
                f"{self.folder} has a run of another config: {'; '.join(changes)}. Delete that folder to do the run "
                "again, or give another dir"
            )

    def write_config(self) -> Path:
        """Write `config.yaml` at once and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.yaml"
        save_config(self.config, path)  # at once
        return path


@dataclass(frozen=True)
class Plan:
    config: AblationConfig
    runs: tuple[Run, ...]  # seed by seed, so that the first table is complete after one seed


def load_plan(path: Path, only: Sequence[str] = ()) -> Plan:
    """The runs of an ablation file, limited to the variants in `only`, if it is not empty.

    Raises ConfigError for an unknown key or variant, and for a variant with an invalid training config.
    """
    config = _read(path)
    names = [variant.name for variant in config.variants]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"{path}: variants {repeated or names} and seeds {config.seeds} must each be listed once")
    named = [*only, *(name for pair in config.steps or () for name in pair)]
    unknown = [name for name in named if name not in names]
    if unknown:
        raise ConfigError(f"{path} has no variant {unknown[0]!r}; its variants are {', '.join(names)}")
    return Plan(
        config,
        tuple(
            _run(config, path.parent, name, seed) for seed in config.seeds for name in names if not only or name in only
        ),
    )


def _run(config: AblationConfig, config_folder: Path, name: str, seed: int) -> Run:
    folder = config.dir / name / f"seed_{seed}"
    changes = dict(config.changes)
    for variant in config.variants:
        if config.variants_add_up or variant.name == name:
            changes |= variant.changes
        if variant.name == name:
            break
    changes |= {"run.seed": seed, "run.dir": str(folder / "run")}
    try:
        # YAML on one line, as on a command line
        overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in changes.items()]
        return Run(name, seed, folder, load_config(config_folder / config.base, overrides))
    except ConfigError as error:
        raise ConfigError(f"variant {name}: {error}") from None


def _read(path: Path) -> AblationConfig:
    if not os.path.lexists(path):
        raise ConfigError(f"ablation file {path} does not exist")
    try:
        return AblationConfig.model_validate(yaml_file.read(path, ConfigError))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        known = ", ".join(AblationConfig.model_fields)
        raise ConfigError(f"{path}: {'; '.join(problems)}. An ablation has the keys {known}") from None
