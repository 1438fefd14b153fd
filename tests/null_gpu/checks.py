"""What is measured with the null GPU. Each function runs in a child process (child.py) and returns JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import child
import numpy as np
import packed
import torch
import torch.distributed as dist
from conftest import write_refer_dataset
from PIL import Image
from tiny_expert import expert_values, save_expert
from tiny_run import tiny_config

from pixel_sail import losses, types
from pixel_sail.architecture import Architecture
from pixel_sail.bench.gpu import generation as answers
from pixel_sail.bench.gpu import kernels, machine, parity, speed
from pixel_sail.bench.gpu.checks import FILE, Report
from pixel_sail.bench.step import PRESETS
from pixel_sail.config import Config, LossConfig
from pixel_sail.data.masks import encode_mask, mask_runs
from pixel_sail.data.regions import Box
from pixel_sail.data.runs import join_masks
from pixel_sail.durable import read_json_lines
from pixel_sail.model import attention, depthwise, pixel_sail
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.tokens import SEG
from pixel_sail.train import compiling, distributed, loop, step
from pixel_sail.train.copies import Copies
from pixel_sail.train.engine import Engine
from pixel_sail.train.log import RunLog
from pixel_sail.train.loop import train
from pixel_sail.types import Batch
from pixel_sail.weights import engine_files

os.environ["DS_ACCELERATOR"] = "cuda"  # conftest says cpu
IMAGES_HW = ((24, 24), (16, 20), (24, 24), (8, 8))  # patches; two images of one size


@dataclass(frozen=True)
class Setting:
    """A model and how it computes."""

    architecture: dict[str, Any] = field(default_factory=dict)
    weights: torch.dtype = torch.bfloat16
    autocast: bool = False
    kernel: str = "auto"
    images_hw: tuple[tuple[int, int], ...] = IMAGES_HW
    vocabulary: int = 1000
    checkpointing: bool = False
    together: bool = False  # the images are those of one sequence


def model_of(setting: Setting) -> PixelSail:
    """A small model of random weights on the GPU."""
    parts = {"architecture": setting.architecture, "hidden_size": 256, "vocab_size": setting.vocabulary}
    model = packed.small_model(**parts)
    model.attention_kernel = setting.kernel
    return model.to("cuda", setting.weights)


def batch_of(images_hw: tuple[tuple[int, int], ...], together: bool = False) -> Batch:
    """Images of these sizes between texts, as a worker packs them and the loader pins them."""
    images = [packed.with_image(number, h, w) for number, (h, w) in enumerate(images_hw, 1)]
    if together:
        images = [packed.with_images(1, images_hw)]
    return packed.pack([packed.only_text(0, 200), *images, packed.only_text(9, 70)]).pin_memory()


def forward_backward(model: PixelSail, batch: Batch, setting: Setting) -> None:
    """A micro-batch as the engine runs it: to the GPU, the model, the losses, backward."""
    batch = batch.to("cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=setting.autocast):
        output = model(batch)
        with torch.autocast("cuda", enabled=False):
            sums = losses.compute_losses(output, batch, LossConfig())
    sum(sums.values()).backward()


def kernel_of(model: PixelSail, batch: Batch, setting: Setting) -> str:
    """The attention kernel of a forward pass."""
    with torch.autocast("cuda", torch.bfloat16, enabled=setting.autocast):
        return model.layout(batch, setting.weights).kernel


def warm_counts(setting: Setting) -> dict[str, int]:
    """The counts of a second micro-batch, which is not the one that came before."""
    model = model_of(setting).train()
    if setting.checkpointing:
        model.gradient_checkpointing_enable()
    forward_backward(model, batch_of(setting.images_hw[:1], setting.together), setting)
    batch = batch_of(setting.images_hw, setting.together)
    child.reset()
    torch.cuda.reset_peak_memory_stats()
    forward_backward(model, batch, setting)
    result = child.counts() | {"peak_bytes": torch.cuda.max_memory_allocated()}
    return result | {"kernel": kernel_of(model, batch, setting)}


def check(**settings: Any) -> Callable[[], dict[str, int]]:
    return lambda: warm_counts(Setting(**settings))


fused = check()
autocast = check(weights=torch.float32, autocast=True)
float32 = check(weights=torch.float32)
asked_for_flash_in_float32 = check(weights=torch.float32, kernel="flash")
checkpointing = check(checkpointing=True)
only_texts = check(images_hw=())
pooled = check(architecture={"region_embedding": "pooled"})
several_images = check(together=True)
several_pooled_images = check(together=True, architecture={"region_embedding": "pooled"})
score_head = check(architecture={"mask_scores": True})
modality_experts = check(architecture={"vision_experts": True})
stem = check(
    architecture={
        "small_images": {"stem_widths": [16, 32], "patch_positions": True, "rope_layout": "interleaved"},
        "sub_patch_size": None,
    }
)


def one_image() -> dict[str, int]:
    """What travels to the GPU for an image of 1024 px with five round masks, on the stream of the copies."""
    rows, columns = np.mgrid[:1024, :1024]
    disks = [(rows - 500) ** 2 + (columns - 300 - 50 * k) ** 2 < 250**2 for k in range(5)]
    masks = join_masks([mask_runs(encode_mask(disk), "disk") for disk in disks], (1024, 1024))
    one = packed.with_image(1, 64, 64, masks=5)
    batch = packed.pack([replace(one, images=(replace(one.images[0], masks=masks),))]).pin_memory()
    child.reset()
    moved = Copies(torch.device("cuda", 0)).start(batch)
    return child.counts() | {"patches": moved.patches.nbytes, "masks": masks.runs.nbytes, "tokens": batch.tokens}


def generation() -> dict[str, Any]:
    """Two questions about two images and one without: that nothing breaks, and what each new token costs."""
    questions = [[packed.WORD_ID, packed.PROMPT_IDS[0], packed.WORD_ID], [packed.WORD_ID]]
    requests = [GenerationRequest(ids, image, (packed.SEG_ID,)) for ids in questions for image in (0, 1, None)]
    images = [packed.with_image(1, *IMAGES_HW[1], words=0, masks=0), packed.with_images(2, IMAGES_HW[2:], 0, 0)]
    settings = {
        "bf16": Setting(),
        "float32": Setting(weights=torch.float32),
        "autocast": Setting(weights=torch.float32, autocast=True),
    }
    result = {}
    for name, setting in settings.items():
        model, prefixes = model_of(setting).eval(), packed.pack(images).to("cuda")
        for tokens, temperature in ((2, 0.0), (4, 0.0), (4, 1.0), (8, 0.0), (8, 1.0)):  # the first is warming up
            sampling = Sampling(tokens, temperature, torch.Generator("cuda") if temperature else None)
            child.reset()
            with finite_masks(), torch.autocast("cuda", torch.bfloat16, enabled=setting.autocast):
                answers = generate(model, prefixes, requests, packed.SEG_ID, (), sampling)
            lengths = [len(answer.token_ids) for answer in answers]
            counts = child.counts() | {"tokens": lengths, "masks": [len(answer.mask_logits) for answer in answers]}
            result.setdefault(name, {})[f"{tokens} tokens, temperature {temperature}"] = counts
    return result


def finite_masks() -> contextlib.AbstractContextManager:
    """Whether mask logits are finite reads back as 0 from the null GPU: no."""
    return mock.patch.object(torch.Tensor, "isfinite", lambda tensor: torch.ones(tensor.shape, dtype=torch.bool))


SCORED = ("evaluate.benchmarks=[refcoco:val]", "evaluate.every=2", "evaluate.max_images=2")
# what a run of train() is -> its overrides
RUNS = {
    **{f"stage {stage}": [f"train.zero_stage={stage}"] for stage in (0, 1, 2, 3)},
    "stage 0, lora": ["train.lora={}", "train.freeze=[fusion.*]"],
    "stage 2, lora": ["train.zero_stage=2", "train.lora={}"],
    "stage 0, fp32": ["train.precision=fp32"],
    "stage 0, expert": ["experts"],
    "stage 0, two workers": ["data.workers=2"],
    "stage 0, score head": ["architecture.mask_scores=true"],
    "stage 3, score head": ["train.zero_stage=3", "architecture.mask_scores=true"],
    "stage 0, scored": [*SCORED],
    "stage 0, fp32, scored": ["train.precision=fp32", *SCORED],
    "stage 1, scored": ["train.zero_stage=1", *SCORED],
    "stage 2, scored": ["train.zero_stage=2", *SCORED],
    "stage 3, scored": ["train.zero_stage=3", *SCORED],
}


def config_of_run(folder: Path, overrides: list[str]) -> Config:
    """A run of 4 steps with 2 or 3 micro-batches each on drawn images; it compiles nothing unless it is told to."""
    root = folder.parent / "root"
    if not root.exists():
        write_refer_dataset(root)
        save_expert(folder.parent / "expert")
    sizes = ["model.scratch.hidden_size=256", "train.micro_batch_tokens=150", "run.log_every=100", "train.compile=off"]
    if "experts" in overrides:
        overrides = [f"experts=[{json.dumps(expert_values(folder.parent / 'expert'))}]"]
    folder.mkdir()
    return tiny_config(folder, root, *sizes, *overrides)


def training() -> dict[str, Any]:
    """train() itself: what happens from the end of its second step to that of its third, and in its micro-batches."""
    with tempfile.TemporaryDirectory() as folder, without_comparing_ranks():
        return {
            name: counted_run(config_of_run(Path(folder) / str(number), overrides))
            for number, (name, overrides) in enumerate(RUNS.items())
        }


# runs that go on from a checkpoint of their second step
RESUMED = {name: RUNS[name] for name in ("stage 0", "stage 1", "stage 2", "stage 2, lora", "stage 3")}


def resumed_training() -> dict[str, Any]:
    """As `training`, of runs that go on; what the log says, and what the export at their end holds."""
    result = {}
    with tempfile.TemporaryDirectory() as folder, without_comparing_ranks():
        for number, (name, overrides) in enumerate(RESUMED.items()):
            values = [*overrides, "train.steps=5", "train.save_every=2", "train.keep_checkpoints=5"]
            config = config_of_run(Path(folder) / str(number), values)
            with finite_masks():
                train(config)
            run, without_saving = config.run.dir, config.train.model_copy(update={"save_every": 100})
            for later in (run / "export", *(run / "checkpoints" / f"step_0000000{step}" for step in (4, 5))):
                shutil.rmtree(later)
            said: list[str] = []
            with (
                mock.patch.object(RunLog, "say", lambda _, line, said=said: said.append(line)),
                mock.patch.object(engine_files, "_problem_of_steps", lambda *_: None),  # saved as zeros of the null GPU
            ):
                counts = counted_run(config.model_copy(update={"train": without_saving}))
            model = PixelSail.from_pretrained(run / "export")
            shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
            steps = [line["step"] for line in read_json_lines(run / "log.jsonl")]
            result[name] = counts | {"said": said, "shapes": shapes, "steps": steps}
    return result


def prediction() -> dict[str, Any]:
    """A Predictor of an export: several questions about an image with regions, and one without an image.

    The null GPU answers with token 0, which stands for [SEG] here, so that there are masks.
    """
    image = Image.new("RGB", (64, 48), "red")
    regions = [Box(4, 4, 30, 30), np.ones((48, 64), bool)]
    questions = ["What is <Prompt0>?", "Segment <Prompt1>.", "What is left of <region> and <region>?"]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        config = config_of_run(Path(folder) / "run", ["train.steps=1"])
        train(config)
        for precision in ("fp32", "bf16"):
            predictor = Predictor.from_pretrained(config.run.dir / "export", "cuda", precision)
            encoder = predictor.encoder
            encoder.tokens, encoder.end_ids = replace(encoder.tokens, seg=0), (7,)
            encoder.answer_text = lambda ids: SEG * len(ids)
            for tokens in (2, 4, 8):  # the first is warming up
                chats = [Chat(image, questions, regions), Chat(None, ["What is it?"])]
                child.reset()
                with finite_masks():
                    answers = predictor.chat_many(chats, Sampling(tokens))
                shapes = [[list(mask.shape) for mask in answer.masks] for chat in answers for answer in chat]
                weights = next(predictor.model.parameters())
                where = {"dtype": str(weights.dtype), "device": weights.device.type}
                result.setdefault(precision, {})[str(tokens)] = child.counts() | {"masks": shapes} | where
    return result


# runs of train() that compile, or that cannot
COMPILED = {
    "stage 0": [],
    "stage 1": ["train.zero_stage=1"],
    "stage 2": ["train.zero_stage=2"],
    "lora": ["train.lora={}"],
    "activation checkpointing": ["train.activation_checkpointing=true"],
    "scored": [*SCORED],
    "stage 3": ["train.zero_stage=3"],
    "float32": ["train.precision=fp32"],
}


def compiled_training() -> dict[str, Any]:
    """Graphs of each step, breaks, and what the log says, where train() compiles."""
    from torch._dynamo.utils import counters

    result = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        without_comparing_ranks(),
        mock.patch.object(compiling, "BACKEND", "eager"),  # Inductor takes a minute
    ):
        for number, (name, overrides) in enumerate(COMPILED.items()):
            graphs: list[int] = []
            torch._dynamo.reset()
            counters.clear()

            def train_step(*arguments: Any, graphs: list[int] = graphs) -> Any:
                output = step.train_step(*arguments)
                graphs.append(counters["stats"]["unique_graphs"])
                return output

            said: list[str] = []
            with (
                finite_masks(),
                mock.patch.object(loop, "train_step", train_step),
                mock.patch.object(RunLog, "say", lambda _, line, said=said: said.append(line)),
            ):
                train(config_of_run(Path(folder) / str(number), [*overrides, "train.compile=on"]))
            breaks = sum(counters["graph_break"].values())
            result[name] = {"graphs": graphs, "breaks": breaks, "said": [line for line in said if "compile" in line]}
    return result


def process_group() -> dict[str, Any]:
    """The GPU that a rank names to torch; warnings of collectives in a group with and without one, and a group in it.

    The null GPU is alone in its group. With several ranks DeepSpeed's groups are split from ours in the same way.
    """
    ranks = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    with mock.patch.dict(os.environ, ranks):
        bound = distributed.bound_device()
    result: dict[str, Any] = {"bound": str(bound), "alone": str(distributed.bound_device())}
    for name, device in (("with", bound), ("without", None)):
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dist.new_group([0])
            with contextlib.suppress(EOFError):  # zeros come back
                dist.all_gather_object([None], None)
            dist.barrier()
        dist.destroy_process_group()
        result[name] = [str(warning.message) for warning in caught]
    return result


def counted_run(config: Config) -> dict[str, Any]:
    """Train, and count."""
    steps: list[dict[str, int]] = []
    micro_batches: list[dict[str, int]] = []
    run_micro_batch = Engine.forward_backward

    def train_step(*arguments: Any) -> Any:
        if len(steps) < 3:
            micro_batches.clear()
        result = step.train_step(*arguments)
        steps.append(child.counts())
        child.reset()
        return result

    def forward_backward(*arguments: Any) -> Any:
        before = child.counts()
        sums = run_micro_batch(*arguments)
        if len(steps) < 3:
            micro_batches.append({key: value - before[key] for key, value in child.counts().items()})
        return sums

    with (
        finite_masks(),
        mock.patch.object(loop, "train_step", train_step),
        mock.patch.object(Engine, "forward_backward", forward_backward),
    ):
        train(config)
    scores = read_json_lines(config.run.dir / "validation.jsonl")
    return {"step": steps[2], "micro_batches": micro_batches, "scores": scores}


@contextlib.contextmanager
def without_comparing_ranks() -> Iterator[None]:
    """ZeRO-3 compares numbers that a collective has written, which are zeros here."""
    from deepspeed.runtime.zero import partitioned_param_coordinator

    with mock.patch.object(partitioned_param_coordinator, "assert_ints_same_as_other_ranks", lambda *_, **__: None):
        yield


def stages_of_gpu_check() -> list[dict[str, Any]]:
    """What stages of tools/gpu_check.py say; those that train() in full, and what compiles, are for rehearse.py."""
    small = {
        kernels: {
            "_mask_blocks": lambda report: None,
            "_kernels": lambda: [kernels.Kernel("SDPA", "sdpa")],
            "VOCABULARY": 1000,
        },
        parity: {"PRESET": PRESETS["tiny"], "SIZES_PX": ((64, 64),)},
        speed: {"COMPILED": (False,), "BATCHES": {"12 x 640x480": speed.BATCHES["12 x 640x480"]}, "WARM_UP": 1}
        | {"TIMED": 1, "PROFILED": 1},
        answers: {"SCRATCH": answers.SCRATCH.model_copy(update={"layers": 2}), "FEW": 2, "MANY": 4, "REPEATS": 1},
    }
    with tempfile.TemporaryDirectory() as folder, finite_masks(), contextlib.ExitStack() as changed:
        for module, values in small.items():
            changed.enter_context(mock.patch.multiple(module, **values))
        for module in (machine, *small):
            report = Report(module.__name__.rpartition(".")[2], Path(folder), 100, rehearsed=True)
            with report.part("the stage"):
                module.run(report)
        return read_json_lines(Path(folder) / FILE)


def block_mask_of_33k_tokens() -> dict[str, Any]:
    """What FlexAttention's block mask takes, next to torch's own way from a function of all pairs."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = 4100
    spans = tuple((start, start, start + length - 50, start + length) for start in range(0, 8 * length, length))
    attention.block_mask(spans[:1], torch.device("cuda"))
    child.reset()
    torch.cuda.reset_peak_memory_stats()
    mask = attention.block_mask(spans, torch.device("cuda"))
    ours = child.counts() | {"peak_bytes": torch.cuda.max_memory_allocated()}
    torch.cuda.reset_peak_memory_stats()
    create_block_mask(mask.mask_mod, None, None, 8 * length, 8 * length, device="cuda")
    return {"ours": ours, "torch": {"peak_bytes": torch.cuda.max_memory_allocated()}}


def many_labels() -> dict[str, Any]:
    """Peak memory of a vocabulary of 152k with about 5,800 labels, with logits in pieces and all at once."""
    setting = Setting(vocabulary=151_936)
    model = model_of(setting)
    batch = packed.pack([packed.only_text(number, 2900) for number in range(4)]).pin_memory()
    result = {"labels": len(batch.labels)}
    for name, limit in (("in pieces", types.LOGITS_AT_ONCE), ("at once", 2**40)):
        pixel_sail.LOGITS_AT_ONCE = losses.LOGITS_AT_ONCE = limit
        forward_backward(model, batch, setting)  # gradients are there from now on
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        child.reset()
        forward_backward(model, batch, setting)
        peak = torch.cuda.max_memory_allocated() - before
        result[name] = {"peak_bytes": peak, "syncs": child.counts()["syncs"]}
    return result


def compiled_layers() -> dict[str, Any]:
    """Graphs and breaks of a compiled model over 12 batches of different shapes, then one of text alone."""
    from torch._dynamo.utils import counters

    setting, random = Setting(), Random(0)
    model = model_of(setting)
    model.compile_layers(backend="eager")  # Dynamo decides what is counted here; Inductor takes a minute
    graphs = []
    for _ in range(12):
        images_hw = [(random.randint(2, 12), random.randint(2, 12)) for _ in range(random.randint(1, 4))]
        forward_backward(model, batch_of(tuple(images_hw)), setting)
        graphs.append(counters["stats"]["unique_graphs"])
    forward_backward(model, batch_of(()), setting)
    text_alone = counters["stats"]["unique_graphs"]
    return {"graphs": graphs, "with_text_alone": text_alone, "breaks": sum(counters["graph_break"].values())}


def compiled_mask_blocks() -> dict[str, Any]:
    """Graphs of the mask blocks, and launches of a forward and backward pass, over 12 sizes of images.

    Both forms of the depthwise convolution as Dynamo sees them, and the default one compiled by Inductor. The first
    size is that of a batch without an image.
    """
    from torch._dynamo.utils import counters

    random = Random(0)
    sizes = [(1, 32, 32), (1, 40, 30), (3, 7, 7), (2, 2, 9), (1, 9, 2)]
    sizes += [(random.randint(1, 4), random.randint(2, 64), random.randint(2, 64)) for _ in range(7)]
    result = {}
    for form, backend in (("shifts", "eager"), ("convolution", "eager"), ("shifts", "inductor")):
        torch._dynamo.reset()
        counters.clear()
        head = MaskHead(Architecture(patch_size=16, mask_stride=8), 64).to("cuda", torch.bfloat16)
        head.compile_blocks(backend=backend)
        graphs, launches = [], []
        for size in sizes:
            x = torch.zeros(*size, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            child.reset()
            with mock.patch.object(depthwise, "COMPILED", form):
                head.upsample((x * 1).unbind()).sum().backward()
            graphs.append(counters["stats"]["unique_graphs"])
            launches.append(child.counts()["launches"])
        breaks = sum(counters["graph_break"].values())
        result[f"{form}, {backend}"] = {"graphs": graphs, "breaks": breaks, "launches": launches}
    return result
