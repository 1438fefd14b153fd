"""Trains a small Mask2Former on panoptic annotations: an expert that knows something, where no hub can be reached.

    dir/checkpoint.pt    weights, optimizer, step: replaced in one go, so that a kill loses nothing that was saved
    dir/log.jsonl        loss and held-out quality
    dir/expert/          the finished model and its image processor, as every hub checkpoint of Mask2Former
    dir/quality.json     of dir/expert, on all held-out images

One process, plain torch. Everything random is a function of seed and step: 2 + 2 steps are 4 steps.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)

from pixel_sail.config import ConfigError
from pixel_sail.durable import append_json_line, fingerprint, replaced_file, replaced_folder, write_json
from pixel_sail.scenes.expert_config import ExpertTraining, differences
from pixel_sail.scenes.expert_data import PanopticImages, Target, order
from pixel_sail.scenes.expert_quality import score
from pixel_sail.train.log import forget_after, format_seconds
from pixel_sail.train.muon import MuonAdamW, is_matrix
from pixel_sail.train.optim import lr_at
from pixel_sail.types import IGNORE_LABEL

QUALITY = "quality.json"  # of the finished expert: the last thing that is written


def train_expert(config: ExpertTraining) -> dict[str, float]:
    """Trains, going on from `config.dir/checkpoint.pt` where there is one; returns the held-out quality.

    Raises ConfigError when the checkpoint is of another config or other data, DatasetError and BadSample for data that
    cannot be used, FloatingPointError for a loss that is not finite.
    """
    images = PanopticImages(config.root, "train", config.size_px)
    held_out = PanopticImages(config.root, "val", config.size_px)
    for problem in [*images.problems, *held_out.problems]:
        print(problem)
    config.dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    learner = Learner(config, images.classes).to(device).train()
    optimizer = MuonAdamW(_groups(learner, config), betas=(0.9, 0.98))
    run = Run(config, images, learner, optimizer)
    first = run.resume()
    if first == config.steps and (config.dir / QUALITY).exists():
        print(f"{config.dir} is finished: {first} steps")
        return json.loads((config.dir / QUALITY).read_text())["quality"]
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {len(images)} images, step {first} of {config.steps}")
    batches = DataLoader(
        images,
        batch_sampler=order(len(images), config.batch_size, config.seed, first, config.steps, config.flip),
        num_workers=config.workers,
        collate_fn=list,
    )
    started, losses = time.perf_counter(), []
    for step, batch in enumerate(batches, start=first):
        losses.append(_step(learner, optimizer, batch, config, step))
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            run.line(done, losses, (time.perf_counter() - started) / (done - first))
            losses = []
        if done % config.evaluate_every == 0 and done < config.steps:
            run.quality(done, quality(learner, held_out, done, config.evaluate_images))
        if done % config.save_every == 0 or done == config.steps:
            run.save(done)
    return _finish(config, learner, held_out)


def build_model(config: ExpertTraining, classes: tuple[str, ...]) -> Mask2FormerForUniversalSegmentation:
    """Random weights, from torch's generator."""
    width = config.feature_size
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=ResNetConfig(
                embedding_size=config.widths[0],
                hidden_sizes=config.widths,
                depths=config.blocks,
                layer_type="basic",
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=2 * width,
            dim_feedforward=4 * width,
            num_attention_heads=width // 16,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction before the first layer
            num_queries=config.queries,
            train_num_points=config.points,
            id2label=dict(enumerate(classes)),
            label2id={name: i for i, name in enumerate(classes)},
        )
    )
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # transformers starts them at about 0: nothing would pass
            nn.init.ones_(part.weight)
    return model


class Learner(nn.Module):
    """The model while it learns, with a head that names the class of every pixel from the pixel decoder's features.

    From random weights, queries that must first find their segments learn classes late, and what they send back drowns
    what the features learn: so the features are taught alone for the first `feature_steps`, and after that together
    with the queries. The head is not part of the finished expert.
    """

    def __init__(self, config: ExpertTraining, classes: tuple[str, ...]):
        super().__init__()
        self.model = build_model(config, classes)
        self.head = nn.Conv2d(config.feature_size, len(classes), kernel_size=1)
        self.processor = build_processor(config)
        self.dense_weight, self.feature_steps = config.dense_weight, config.feature_steps

    def forward(self, batch: list[Target], features_only: bool) -> Tensor:
        """The loss of one batch, a scalar: of the features' classes, and of Mask2Former unless `features_only`."""
        device, pixels = self.head.weight.device, self._normalized(batch)
        if features_only:
            return self._dense_loss(self._features(pixels), batch)
        output = self.model(
            pixel_values=pixels,
            mask_labels=[target.masks.to(device) for target in batch],
            class_labels=[target.classes.to(device) for target in batch],
        )
        return output.loss + self.dense_weight * self._dense_loss(output.pixel_decoder_last_hidden_state, batch)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model.model.pixel_level_module(pixels).decoder_last_hidden_state

    def _normalized(self, batch: list[Target]) -> Tensor:
        device = self.head.weight.device
        mean, std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (self.processor.image_mean, self.processor.image_std)
        )
        return (torch.stack([target.image for target in batch]).to(device) / 255 - mean) / std

    @torch.no_grad()
    def named_right(self, target: Target) -> Tensor:
        """Whether the features name the right class of each pixel that has one, and its class: (2, pixels) int64."""
        logits, labels = self._named(self._features(self._normalized([target])), [target])
        known = labels != IGNORE_LABEL
        return torch.stack([(logits.argmax(1) == labels)[known].long(), labels[known]])

    def _dense_loss(self, features: Tensor, batch: list[Target]) -> Tensor:
        return F.cross_entropy(*self._named(features, batch), ignore_index=IGNORE_LABEL)

    def _named(self, features: Tensor, batch: list[Target]) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, h, w) of the class of every pixel, and the true ones (B, h, w)."""
        logits = self.head(features)
        stride = batch[0].labels.shape[-1] // logits.shape[-1]
        labels = torch.stack([target.labels for target in batch])[:, stride // 2 :: stride, stride // 2 :: stride]
        return logits, labels.to(logits.device)


def build_processor(config: ExpertTraining) -> Mask2FormerImageProcessor:
    """What makes the model's input of an image: a square, and ImageNet's mean and deviation."""
    return Mask2FormerImageProcessor(size={"height": config.size_px, "width": config.size_px})


class Run:
    """What a run leaves in its folder, and how it goes on."""

    def __init__(self, config: ExpertTraining, images: PanopticImages, model: nn.Module, optimizer: MuonAdamW):
        self.config, self.model, self.optimizer = config, model, optimizer
        self.path, self.log = config.dir / "checkpoint.pt", config.dir / "log.jsonl"
        keys = "\n".join(image.key for image in images.images)
        self.data = fingerprint([keys.encode()])

    def resume(self) -> int:
        """Steps that are done. Raises ConfigError for a checkpoint of another config or other data."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        changed = differences(state["config"], self.config)
        if state["data"] != self.data:
            changed.append("the data changed (the training images have other keys)")
        if changed:
            raise ConfigError(f"cannot go on from {self.path}: {'; '.join(changed)}. Give another dir to start anew")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        forget_after(self.log, state["step"])
        return state["step"]

    def save(self, step: int) -> None:
        state = {"step": step, "config": self.config.model_dump(mode="json"), "data": self.data}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replaced_file(self.path, "wb") as file:
            torch.save(state, file)

    def line(self, step: int, losses: list[float], step_s: float) -> None:
        config = self.config
        loss, lr = float(np.mean(losses)), stage_lr(step - 1, config)
        append_json_line(self.log, {"step": step, "loss": loss, "lr": lr, "step_ms": 1e3 * step_s})
        eta = format_seconds((config.steps - step) * step_s)
        print(
            f"step {step}/{config.steps}  loss {loss:.3f}  lr {lr:.1e}  step {1e3 * step_s:.0f} ms  ETA {eta}",
            flush=True,
        )

    def quality(self, step: int, values: dict[str, float]) -> None:
        append_json_line(self.log, {"step": step, "quality": values})
        print(f"step {step}/{self.config.steps}  {quality_line(values)}", flush=True)


def quality_line(values: dict[str, float]) -> str:
    return "held out:  " + "  ".join(f"{name} {value:.1f}" for name, value in values.items())


def _groups(model: nn.Module, config: ExpertTraining) -> list[dict]:
    """Matrices and kernels decay and are Muon's; norms, biases and what is looked up are not."""
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        muon = decays and is_matrix(parameter)
        groups.setdefault((config.weight_decay if decays else 0.0, muon), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay, "muon": muon, "lr": 0.0}
        for (weight_decay, muon), parameters in groups.items()
    ]


def stage_lr(step: int, config: ExpertTraining) -> float:
    """Each of the two stages has its own warm-up and cosine."""
    if step < config.feature_steps:
        return lr_at(step, config.feature_steps, config.feature_lr, config.warmup_fraction)
    step, steps = step - config.feature_steps, config.steps - config.feature_steps
    return lr_at(step, steps, config.lr, config.warmup_fraction)


def _step(learner: Learner, optimizer: MuonAdamW, batch: list[Target], config: ExpertTraining, step: int) -> float:
    # The loss draws random points: from here on they are a function of seed and step.
    torch.manual_seed(int(np.random.SeedSequence((config.seed, step)).generate_state(1)[0]))
    loss = learner(batch, features_only=step < config.feature_steps)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss of step {step + 1} is {loss.item()}")
    for group in optimizer.param_groups:
        group["lr"] = stage_lr(step, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item()


def quality(learner: Learner, held_out: PanopticImages, step: int, count: int | None) -> dict[str, float]:
    """On the first `count` held-out images: of the features while they alone are taught, else of the whole."""
    if step > learner.feature_steps:
        return score(learner.model, learner.processor, held_out, count)
    learner.eval()
    right, classes = torch.cat([learner.named_right(held_out[i, False]) for i in range(len(held_out))[:count]], dim=1)
    learner.train()
    things = torch.tensor([label not in held_out.stuff for label in classes.tolist()])
    return {"pixels": 100 * right.float().mean().item(), "thing_pixels": 100 * right[things].float().mean().item()}


def _finish(config: ExpertTraining, learner: Learner, held_out: PanopticImages) -> dict[str, float]:
    """Writes the expert and scores what was written, not what is in memory."""
    final = config.dir / "expert"
    with replaced_folder(final) as partial:
        learner.model.save_pretrained(partial)
        learner.processor.save_pretrained(partial)
    learner.model = Mask2FormerForUniversalSegmentation.from_pretrained(final).to(learner.head.weight.device)
    learner.processor = Mask2FormerImageProcessor.from_pretrained(final)
    values = quality(learner, held_out, config.steps, None)
    report = {"step": config.steps, "images": len(held_out), "quality": values}
    write_json(config.dir / QUALITY, report)
    return values
