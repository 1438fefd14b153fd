"""Distillation: trained adapters, and the features of frozen experts that they are compared with.

The experts are outside of every module that DeepSpeed, the optimizer or a checkpoint sees.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixel_sail.config import Config, ConfigError, ExpertConfig
from pixel_sail.data.shards import ShardSource
from pixel_sail.data.sources import Source
from pixel_sail.durable import fingerprint
from pixel_sail.experts import Expert, open_expert
from pixel_sail.experts.cache import FeatureCache, check_made_with
from pixel_sail.experts.features import ExpertImageSize, FeatureProvider
from pixel_sail.train import distributed
from pixel_sail.types import Batch, Output

SMALLEST_STD = 1e-6  # so that a constant channel becomes zero


@dataclass
class Distillation:
    """The experts of a run, in the order of its config."""

    widths: dict[str, int] = field(default_factory=dict)  # C of each expert
    fingerprints: dict[str, str] = field(default_factory=dict)  # must be the same in a resumed run
    inputs: FeatureProvider | None = None  # what the encoder adds to each sample
    online: dict[str, Expert] = field(default_factory=dict)
    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # mean and std, (C, 1, 1) on the device

    @torch.no_grad()
    def add_expert_features(self, batch: Batch) -> Batch:
        """The batch with features (C, h, w) in place of the images of online experts, standardized where configured."""
        expert_features = {}
        for name, tensors in batch.expert_features.items():
            maps = list(tensors)
            images = [i for i, tensor in enumerate(tensors) if tensor.dtype == torch.uint8]
            if images:
                online_maps = self.online[name].features([tensors[i] for i in images])
                for i, features in zip(images, online_maps, strict=True):
                    maps[i] = features
            if name in self.statistics:
                mean, std = self.statistics[name]
                maps = [(features.float() - mean) / std if features.numel() else features for features in maps]
            expert_features[name] = tuple(maps)
        return replace(batch, expert_features=expert_features)


def open_distillation(config: Config, sources: Sequence[Source], device: torch.device) -> Distillation:
    """Open the caches of the config's experts, and the experts that run online. All ranks must call it.

    An expert runs online if it has no cache and some source does not carry its features (shards do). Raises ConfigError
    for an expert that cannot be opened and for features made with other settings, DatasetError for a cache that cannot
    be read.
    """
    distillation = Distillation()
    caches, image_sizes = {}, {}
    for expert in config.experts:
        name = expert.name
        carried = [source.experts.get(name) for source in sources if isinstance(source, ShardSource)]
        stored = [(f"the shards' {name}", manifest) for manifest in carried if manifest is not None]
        if expert.cache is not None:
            caches[name] = FeatureCache(expert.cache)
            stored.insert(0, (f"the cache {expert.cache}", caches[name].manifest))
            distillation.statistics |= _statistics(expert, caches[name], device)
        if expert.cache is None and len(stored) < len(sources):
            distillation.online[name] = opened = open_expert(expert, device)
            image_sizes[name] = ExpertImageSize(expert.size_px, expert.fit, opened.multiple)
            width, weights_fingerprint = opened.width, opened.fingerprint
        else:
            width, weights_fingerprint = stored[0][1]["width"], _weights_fingerprint(expert, *stored[0])
        for where, manifest in stored:
            check_made_with(manifest, where, expert, config.architecture, weights_fingerprint)
        distillation.widths[name] = width
        distillation.fingerprints[name] = weights_fingerprint + _suffix(distillation.statistics.get(name))
    if config.experts:
        distillation.inputs = FeatureProvider(tuple(distillation.widths), caches, image_sizes)
    return distillation


def build_adapters(config: Config, widths: dict[str, int], hidden: int, mask_dim: int) -> nn.ModuleDict:
    """One linear per expert, `hidden` or `mask_dim` -> C. Initial weights depend on run.seed and the name alone."""
    adapters = {}
    for expert in config.experts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed + zlib.crc32(expert.name.encode()))
            width_in = mask_dim if expert.at == "mask_features" else hidden
            adapters[_key(expert)] = nn.Linear(width_in, widths[expert.name])
    return nn.ModuleDict(adapters)


def needs_mask_features(experts: Sequence[ExpertConfig]) -> bool:
    """Whether the model must return its mask features (Output.mask_features)."""
    return any(expert.at == "mask_features" for expert in experts)


def student_features(
    adapters: nn.ModuleDict, experts: Sequence[ExpertConfig], output: Output, batch: Batch
) -> dict[str, list[Tensor]]:
    """The model's prediction of each expert's features: (h, w, C) of each image of the batch.

    Each adapter runs exactly once, also on a batch without an image (then on one zero vector), because every rank must
    use every weight.
    """
    students = {}
    for expert in experts:
        adapter = adapters[_key(expert)]
        maps = _maps(expert.at, output, batch) or [output.hidden.new_zeros(1, 1, adapter.in_features)]
        grids = [features.shape[:2] for features in maps]
        rows = [features.flatten(0, 1) for features in maps]
        adapted = adapter(rows[0] if len(rows) == 1 else torch.cat(rows)).split([h * w for h, w in grids])
        students[expert.name] = [part.view(h, w, -1) for part, (h, w) in zip(adapted, grids, strict=True)]
    return students


def _maps(at: str, output: Output, batch: Batch) -> list[Tensor]:
    """(h, w, S) mask features or (h, w, D) last hidden states of each image."""
    if at == "mask_features":
        return [features.permute(1, 2, 0) for features in output.mask_features if features.numel()]
    grids = [(h, w) for h, w in batch.grids_hw if h * w]
    patches = output.hidden.index_select(0, batch.patch_index).split([h * w for h, w in grids])
    return [patch.view(h, w, -1) for patch, (h, w) in zip(patches, grids, strict=True)]


def _key(expert: ExpertConfig) -> str:
    return f"to_{expert.name}"  # a ModuleDict refuses names such as "keys" and "train"


def _statistics(expert: ExpertConfig, cache: FeatureCache, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    if not expert.standardize:
        return {}
    mean, std = (torch.from_numpy(values).view(-1, 1, 1).to(device) for values in cache.statistics())
    return {expert.name: (mean, std.clamp(min=SMALLEST_STD))}


def _weights_fingerprint(expert: ExpertConfig, where: str, manifest: dict[str, Any]) -> str:
    """The fingerprint of the weights if they are in a folder here, else that of the manifest if the paths agree."""
    if Path(expert.path).is_dir():
        return distributed.on_rank_0(lambda: open_expert(expert, "cpu").fingerprint)
    if expert.path != manifest["path"]:
        raise ConfigError(
            f"expert {expert.name!r}: {where} is of {manifest['path']}, the config names {expert.path}, which is no "
            "folder here, so that they cannot be compared: give the same path, or the folder of the weights"
        )
    return manifest["made_with"]["fingerprint"]


def _suffix(statistics: tuple[Tensor, Tensor] | None) -> str:
    if statistics is None:
        return ""
    return " standardized " + fingerprint([torch.stack(statistics).cpu().numpy().tobytes()])[:8]
