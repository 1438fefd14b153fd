"""Distillation: the adapters that are trained, and the frozen experts that they are compared with.

The experts lie outside of every module that DeepSpeed, the optimizer or a checkpoint sees.
"""

from __future__ import annotations

import hashlib
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
from pixel_sail.experts import Expert, open_expert
from pixel_sail.experts.cache import FeatureCache, check_made_with
from pixel_sail.experts.features import ExpertFeatures, ImageRule
from pixel_sail.train import distributed
from pixel_sail.types import Batch, Output

SMALLEST_STD = 1e-6  # a channel that never changes stays at zero


@dataclass
class Distillation:
    """The experts of a run, in the order of its config."""

    widths: dict[str, int] = field(default_factory=dict)  # C of each expert
    fingerprints: dict[str, str] = field(default_factory=dict)  # a resumed run must find the same
    inputs: ExpertFeatures | None = None  # what the encoder adds to each sample
    online: dict[str, Expert] = field(default_factory=dict)
    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # mean and std, (C, 1, 1) on the device

    @torch.no_grad()
    def add_expert_features(self, batch: Batch) -> Batch:
        """The same batch with the features (C, h, w) of every image in `experts`: experts see their images here."""
        expert_features = {}
        for name, given in batch.expert_features.items():
            found = list(given)
            images = [i for i, tensor in enumerate(given) if tensor.dtype == torch.uint8]
            if images:
                for i, features in zip(images, self.online[name].features([given[i] for i in images]), strict=True):
                    found[i] = features
            if name in self.statistics:
                mean, std = self.statistics[name]
                found = [(features.float() - mean) / std if features.numel() else features for features in found]
            expert_features[name] = tuple(found)
        return replace(batch, expert_features=expert_features)


def open_distillation(config: Config, sources: Sequence[Source], device: torch.device) -> Distillation:
    """Opens the caches of the config's experts, and the experts that have none. All ranks must call it.

    An expert without a cache whose features every source carries (shards) is not needed. Raises ConfigError for an
    expert that cannot be opened and for features made otherwise, DatasetError for a cache that cannot be read.
    """
    found = Distillation()
    caches, images = {}, {}
    for expert in config.experts:
        name = expert.name
        carried = [source.experts.get(name) for source in sources if isinstance(source, ShardSource)]
        stored = [(f"the shards' {name}", manifest) for manifest in carried if manifest is not None]
        if expert.cache is not None:
            caches[name] = FeatureCache(expert.cache)
            stored.insert(0, (f"the cache {expert.cache}", caches[name].manifest))
            found.statistics |= _statistics(expert, caches[name], device)
        if expert.cache is None and len(stored) < len(sources):
            found.online[name] = opened = open_expert(expert, device)
            images[name] = ImageRule(expert.size_px, expert.fit, opened.multiple)
            width, fingerprint = opened.width, opened.fingerprint
        else:
            width, fingerprint = stored[0][1]["width"], _fingerprint(expert, *stored[0])
        for where, manifest in stored:
            check_made_with(manifest, where, expert, config.architecture, fingerprint)
        found.widths[name] = width
        found.fingerprints[name] = fingerprint + _suffix(found.statistics.get(name))
    if config.experts:
        found.inputs = ExpertFeatures(tuple(found.widths), caches, images)
    return found


def build_adapters(config: Config, widths: dict[str, int], hidden: int, mask_dim: int) -> nn.ModuleDict:
    """One linear an expert, from what it is attached to. Each depends on run.seed and its expert's name alone."""
    adapters = {}
    for expert in config.experts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed + zlib.crc32(expert.name.encode()))
            width_in = mask_dim if expert.at == "mask_features" else hidden
            adapters[_key(expert)] = nn.Linear(width_in, widths[expert.name])
    return nn.ModuleDict(adapters)


def needs_mask_features(experts: Sequence[ExpertConfig]) -> bool:
    return any(expert.at == "mask_features" for expert in experts)


def student_features(
    adapters: nn.ModuleDict, experts: Sequence[ExpertConfig], output: Output, batch: Batch
) -> dict[str, list[Tensor]]:
    """What the model says in place of each expert: (h, w, C) of each image of the batch.

    Each adapter runs exactly once, also on a batch without an image (on one place): every rank must use every weight.
    """
    students = {}
    for expert in experts:
        adapter = adapters[_key(expert)]
        maps = _maps(expert.at, output, batch) or [output.hidden.new_zeros(1, 1, adapter.in_features)]
        grids = [features.shape[:2] for features in maps]
        places = [features.flatten(0, 1) for features in maps]
        adapted = adapter(places[0] if len(places) == 1 else torch.cat(places)).split([h * w for h, w in grids])
        students[expert.name] = [rows.view(h, w, -1) for rows, (h, w) in zip(adapted, grids, strict=True)]
    return students


def _maps(at: str, output: Output, batch: Batch) -> list[Tensor]:
    """(h, w, S) mask features or (h, w, D) last hidden states of each image."""
    if at == "mask_features":
        return [features.permute(1, 2, 0) for features in output.mask_features if features.numel()]
    grids = [(h, w) for h, w in batch.grids_hw if h * w]
    patches = output.hidden[batch.patch_index].split([h * w for h, w in grids])
    return [patch.view(h, w, -1) for patch, (h, w) in zip(patches, grids, strict=True)]


def _key(expert: ExpertConfig) -> str:
    return f"to_{expert.name}"  # a ModuleDict cannot have "keys" or "train" among its names


def _statistics(expert: ExpertConfig, cache: FeatureCache, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    if not expert.standardize:
        return {}
    mean, std = (torch.from_numpy(values).view(-1, 1, 1).to(device) for values in cache.statistics())
    return {expert.name: (mean, std.clamp(min=SMALLEST_STD))}


def _fingerprint(expert: ExpertConfig, where: str, manifest: dict[str, Any]) -> str:
    """That of the expert's weights where they are at hand; else that of the manifest, if it names the same expert."""
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
    values = torch.stack(statistics).cpu().numpy().tobytes()
    return " standardized " + hashlib.sha256(values).hexdigest()[:8]
