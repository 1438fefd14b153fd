"""What is compared: one supervised start for each seed, and the arms that go on from it for equally many steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from pixel_sail import durable, yaml_file
from pixel_sail.config import Config, ConfigError, Section, load_config, validated
from pixel_sail.errors import FileError
from pixel_sail.files import read_json

START = "start"
FREE_KEYS = ("data.workers",)  # may change between two calls; with any other change it is another study


class Start(Section):
    """The supervised stage before the arms. It teaches the form of the answers, which a reward cannot."""

    steps: int = Field(ge=1)
    lr: float = Field(gt=0)


class Arm(Section):
    """What the words of answers are learned from. The mask losses of the truth are the same in every arm."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    lm: float = Field(ge=0)  # weight of the cross entropy of the annotated answers
    reward: float = Field(ge=0)  # weight of the policy gradient of the sampled answers


class StudyConfig(Section):
    """A study file: configs/mask_reward.yaml."""

    base: Path  # config of a training run, with train.init_from; relative to the study file
    dir: Path  # of all stages and the table
    seeds: list[int] = Field(min_length=1)
    benchmarks: list[str] = Field(min_length=1)  # as tools/test.py names them
    max_images: int | None = Field(None, ge=1)  # of each benchmark; None: all
    changes: dict[str, Any] = {}  # dotted key -> value, of `base`; train.steps and train.lr are those of an arm
    start: Start
    arms: list[Arm] = Field(min_length=1)
    answers: int = Field(8, ge=2)  # sampled for each question
    max_new_tokens: int = Field(48, ge=1)  # of a sampled answer
    format_weight: float = Field(0.2, ge=0)  # of the form of an answer in its reward, beside 1 for the IoU

    def stages(self) -> list[str]:
        return [START, *(arm.name for arm in self.arms)]


@dataclass(frozen=True)
class Plan:
    study: StudyConfig
    configs: dict[int, Config]  # seed -> the training config of its arms

    def folder(self, seed: int, stage: str) -> Path:
        """Of one stage: log.jsonl, export/, predictions/; and scores.json, which exists when the stage is finished."""
        return self.study.dir / f"seed_{seed}" / stage

    def check_same(self, seed: int) -> None:
        """Write what a seed depends on, or compare it: raises ConfigError with the keys that have changed."""
        path = self.study.dir / f"seed_{seed}" / "settings.json"
        study = self.study.model_dump(
            mode="json", include={"start", "arms", "answers", "max_new_tokens", "format_weight"}
        )
        now = {"config": self.configs[seed].model_dump(mode="json"), "study": study}
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(path, now)
            return
        before = read_json(path)
        if not isinstance(before, dict) or before.keys() != now.keys():
            raise FileError(
                f"{path} is damaged: it does not say what the stages beside it depend on; delete {path.parent}"
            )
        changed = [
            line for part in now for line in durable.differences(before[part], now[part], FREE_KEYS.__contains__)
        ]
        if changed:
            raise ConfigError(
                f"{path.parent} has stages of another study: {'; '.join(changed)}. Delete that folder, or give another "
                "dir"
            )


def load_plan(path: Path) -> Plan:
    """The stages of a study file. Raises ConfigError for a key or value that cannot be, and for a repeated name."""
    if not os.path.lexists(path):
        raise ConfigError(f"study file {path} does not exist")
    study = validated(StudyConfig, yaml_file.read(path, ConfigError), str(path))
    for what, names in (("seeds", study.seeds), ("names of stages", study.stages())):
        if len(set(names)) < len(names):
            raise ConfigError(f"{path}: the {what} {names} must each be listed once")
    configs = {seed: _config(study, path.parent, seed) for seed in study.seeds}
    if configs[study.seeds[0]].train.init_from is None:
        raise ConfigError(f"{path}: give the model to start from as train.init_from, in `base` or in `changes`")
    return Plan(study, configs)


def _config(study: StudyConfig, folder: Path, seed: int) -> Config:
    changes = study.changes | {"run.seed": seed, "run.dir": str(study.dir / f"seed_{seed}")}
    # YAML on one line, as on a command line
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in changes.items()]
    return load_config(folder / study.base, overrides)
