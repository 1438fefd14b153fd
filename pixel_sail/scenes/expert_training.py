"""Trains a small Mask2Former on panoptic annotations: an expert for machines that cannot download one.

    dir/checkpoint.pt    weights, optimizer, step; replaced at once, so that a kill loses no saved step
    dir/log.jsonl        loss and held-out quality
    dir/expert/          the finished model and its image processor, in the layout of Mask2Former on the hub
    dir/quality.json     the quality of dir/expert on all held-out images

One process, plain torch. All randomness is a function of seed and step: 2 + 2 steps give exactly what 4 steps give.
"""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)

from pixel_sail.durable import remove_leftovers, replaced_folder, rust_errors, write_json
from pixel_sail.errors import UserError
from pixel_sail.folders.load import load_network, load_processor
from pixel_sail.interrupts import Stopped, finish_first, how_far
from pixel_sail.locks import locked
from pixel_sail.scenes.expert_config import ExpertTraining
from pixel_sail.scenes.expert_data import PanopticImages, Target, batch_order
from pixel_sail.scenes.expert_quality import score
from pixel_sail.scenes.expert_run import EXPERT, QUALITY, RunFolder, stage_lr
from pixel_sail.train.muon import MuonAdamW, is_matrix
from pixel_sail.types import IGNORE_LABEL
from pixel_sail.workers import in_order
from pixel_sail.writable import check_writable, writing_into


def train_expert(config: ExpertTraining) -> dict[str, float]:
    """Train, or resume from `config.dir/checkpoint.pt`; return the held-out quality.

    Raises ConfigError for a checkpoint of another config or of other data, DatasetError and BadSample for unusable
    data, FileError for a damaged checkpoint or a folder that cannot be written, UserError for a loss that is not
    finite, Busy if another process trains in the folder. A signal ends it after a step, which is saved.
    """
    images = PanopticImages(config.root, "train", config.size_px)
    held_out = PanopticImages(config.root, "val", config.size_px)
    for problem in [*images.problems, *held_out.problems]:
        print(problem)
    check_writable(config.dir)
    with locked(config.dir / ".lock", f"the folder {config.dir}"), writing_into(config.dir):
        remove_leftovers(config.dir)
        return _train(config, images, held_out)


def _train(config: ExpertTraining, images: PanopticImages, held_out: PanopticImages) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    learner = Learner(config, images.classes).to(device).train()
    optimizer = MuonAdamW(_groups(learner, config), betas=(0.9, 0.98))
    run = RunFolder(config, images, learner, optimizer)
    run.resume()
    if run.step == config.steps and (values := run.finished_quality()) is not None:
        print(f"{config.dir} is finished: {run.step} steps")
        return values
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {len(images)} images, step {run.step} of {config.steps}")
    with how_far(lambda: f"at step {run.step} of {config.steps}; the same command goes on"):
        _train_steps(config, images, held_out, learner, optimizer, run)
        return _finish(config, learner, held_out)


def _train_steps(
    config: ExpertTraining,
    images: PanopticImages,
    held_out: PanopticImages,
    learner: Learner,
    optimizer: MuonAdamW,
    run: RunFolder,
) -> None:
    """From the step of `run` to the last, which is saved. Raises Stopped after a step, which is saved."""
    first, started, losses = run.step, time.perf_counter(), []
    order = batch_order(len(images), config.batch_size, config.seed, first, config.steps, config.flip)
    batches = in_order(lambda batch: [images[item] for item in batch], order, config.workers, ahead=2)
    with finish_first("this step") as stop, closing(batches):
        for step, batch in enumerate(batches, start=first):
            losses.append(_step(learner, optimizer, batch, config, step))
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                run.log_step(done, losses, (time.perf_counter() - started) / (done - first))
                losses = []
            if done % config.save_every == 0 or done == config.steps or stop.number:
                run.save(done)
            if done % config.evaluate_every == 0 and done < config.steps:
                run.log_quality(done, quality(learner, held_out, done, config.evaluate_images))
            if stop.number:
                raise Stopped(stop.number)


def build_model(config: ExpertTraining, classes: tuple[str, ...]) -> Mask2FormerForUniversalSegmentation:
    """The model with random weights from torch's generator."""
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
        if isinstance(part, nn.BatchNorm2d):  # transformers starts their scales near 0: no signal would pass
            nn.init.ones_(part.weight)
    return model


class Learner(nn.Module):
    """The model in training, with a head that classifies every pixel from the pixel decoder's features.

    With random weights, queries learn classes late because they must first find their segments, and their gradients
    drown those of the features. So the features learn alone for the first `feature_steps`, and then together with the
    queries. The head is not part of the finished expert.
    """

    def __init__(self, config: ExpertTraining, classes: tuple[str, ...]):
        super().__init__()
        self.model = build_model(config, classes)
        self.head = nn.Conv2d(config.feature_size, len(classes), kernel_size=1)
        self.processor = build_processor(config)
        self.dense_weight, self.feature_steps = config.dense_weight, config.feature_steps

    def forward(self, batch: list[Target], features_only: bool) -> Tensor:
        """The scalar loss of one batch: of the features' pixel classes and, unless `features_only`, of Mask2Former."""
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
    def classified(self, target: Target) -> Tensor:
        """For each labelled pixel whether the features give the right class, and this class: (2, pixels) int64."""
        logits, labels = self._logits_and_labels(self._features(self._normalized([target])), [target])
        known = labels != IGNORE_LABEL
        return torch.stack([(logits.argmax(1) == labels)[known].long(), labels[known]])

    def _dense_loss(self, features: Tensor, batch: list[Target]) -> Tensor:
        return F.cross_entropy(*self._logits_and_labels(features, batch), ignore_index=IGNORE_LABEL)

    def _logits_and_labels(self, features: Tensor, batch: list[Target]) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, h, w) of the class of every pixel, and the true classes (B, h, w)."""
        logits = self.head(features)
        stride = batch[0].labels.shape[-1] // logits.shape[-1]
        labels = torch.stack([target.labels for target in batch])[:, stride // 2 :: stride, stride // 2 :: stride]
        return logits, labels.to(logits.device)


def build_processor(config: ExpertTraining) -> Mask2FormerImageProcessor:
    """Resizes an image to a square and normalizes it with ImageNet's mean and deviation."""
    return Mask2FormerImageProcessor(size={"height": config.size_px, "width": config.size_px})


def _groups(model: nn.Module, config: ExpertTraining) -> list[dict]:
    """Parameter groups: matrices and kernels get Muon and weight decay; norms, biases and embeddings get neither."""
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


def _step(learner: Learner, optimizer: MuonAdamW, batch: list[Target], config: ExpertTraining, step: int) -> float:
    # The loss draws random points: seeded here, they are a function of seed and step.
    torch.manual_seed(int(np.random.SeedSequence((config.seed, step)).generate_state(1)[0]))
    loss = learner(batch, features_only=step < config.feature_steps)
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss of step {step + 1} is {loss.item()}: give a lower lr or feature_lr and another dir, or repeat "
            "the command to go on from the last checkpoint"
        )
    for group in optimizer.param_groups:
        group["lr"] = stage_lr(step, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item()


def quality(learner: Learner, held_out: PanopticImages, step: int, count: int | None) -> dict[str, float]:
    """Percentages on the first `count` held-out images (None: all).

    While only the features learn, the share of pixels that they classify right; later that of the whole model.
    """
    if step > learner.feature_steps:
        return score(learner.model, learner.processor, held_out, count)
    learner.eval()
    right, classes = torch.cat([learner.classified(held_out[i, False]) for i in range(len(held_out))[:count]], dim=1)
    learner.train()
    things = torch.tensor([label not in held_out.stuff for label in classes.tolist()])
    return {"pixels": 100 * right.float().mean().item(), "thing_pixels": 100 * right[things].float().mean().item()}


def _finish(config: ExpertTraining, learner: Learner, held_out: PanopticImages) -> dict[str, float]:
    """Write the expert, load it again, and score the loaded one."""
    final = config.dir / EXPERT
    with replaced_folder(final) as partial, rust_errors(partial):
        learner.model.save_pretrained(partial)
        learner.processor.save_pretrained(partial)
    model = load_network(Mask2FormerForUniversalSegmentation, final, torch.float32)
    learner.model = model.to(learner.head.weight.device)
    learner.processor = load_processor(Mask2FormerImageProcessor, final)
    values = quality(learner, held_out, config.steps, None)
    report = {"step": config.steps, "images": len(held_out), "quality": values}
    write_json(config.dir / QUALITY, report)
    return values
