"""What an ablation runs: one training for each variant and seed, all from one config; and where each of them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pixel_sail.config import Config, ConfigError, Section, load_config, save_config

# Keys that may change between two calls without making a finished or begun run another one.
FREE_KEYS = ("run.dir", "data.workers", "train.save_every", "train.keep_checkpoints")


class Variant(Section):
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    changes: dict[str, Any]  # dotted key -> value


class AblationConfig(Section):
    """configs/ablation.yaml, where variants add up, or configs/pixel_cost.yaml, where each stands for itself."""

    base: Path  # config of the run that all variants change; relative to the file
    dir: Path  # of all runs, tables and plots
    seeds: list[int] = Field(min_length=1)
    benchmarks: list[str] = Field(min_length=1)  # as tools/test.py names them
    max_images: int | None = None  # of each benchmark; None: all
    changes: dict[str, Any] = {}  # dotted key -> value, for every variant
    variants_add_up: bool = True  # a variant has the changes of all before it too; False: its own alone
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

    config.yaml  what tools/train.py is called with     run/     its folder     log.txt  what the tools said
    scores.json  there when the run is finished         scores/  of tools/test.py
    """

    variant: str
    seed: int
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    def check_same(self) -> None:
        """Raises ConfigError, naming what differs, when another config has begun or finished a run in the folder."""
        path = self.folder / "config.yaml"
        if not path.exists():
            return
        before, now = flat(load_config(path).model_dump(mode="json")), flat(self.config.model_dump(mode="json"))
        changed = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in dict.fromkeys((*before, *now))
            if before.get(key) != now.get(key) and key not in FREE_KEYS
        ]
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run of another config: {'; '.join(changed)}. Delete that folder to do the run "
                "again, or give another dir"
            )

    def write_config(self) -> Path:
        """`config.yaml`, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.yaml"
        temporary = path.with_name(path.name + ".tmp")
        save_config(self.config, temporary)
        temporary.replace(path)
        return path


@dataclass(frozen=True)
class Plan:
    config: AblationConfig
    runs: tuple[Run, ...]  # seed by seed: the first table is there after one seed


def load_plan(path: Path, only: Sequence[str] = ()) -> Plan:
    """The runs of an ablation file, of the variants named in `only` (none: all).

    Raises ConfigError for an unknown key or variant, and for a variant whose training config cannot be used.
    """
    config = _read(path)
    names = [variant.name for variant in config.variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"{path}: variants {twice or names} and seeds {config.seeds} must each be named once")
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


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one of dotted keys; lists stay whole."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        dotted: leaf
        for key, value in values.items()
        for dotted, leaf in flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def _run(config: AblationConfig, place: Path, name: str, seed: int) -> Run:
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
        return Run(name, seed, folder, load_config(place / config.base, overrides))
    except ConfigError as error:
        raise ConfigError(f"variant {name}: {error}") from None


def _read(path: Path) -> AblationConfig:
    try:
        return AblationConfig.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"no ablation file {path}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        known = ", ".join(AblationConfig.model_fields)
        raise ConfigError(f"{path}: {'; '.join(problems)}. An ablation has the keys {known}") from None
