"""What a sample gets from the experts of a run: stored features, or the image that an online expert is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixel_sail.config import Config
from pixel_sail.experts.cache import FeatureCache, check_made_with, image_digest
from pixel_sail.types import BadSample, Sample

MAX_LONG_SIDE = 5 / 3  # of size_px, with fit "short": 1333 for 800 px, as in Mask2Former's own preprocessing


@dataclass(frozen=True)
class ExpertImageSize:
    """The size of the images that an expert is shown; see `expert_image`."""

    size_px: int
    fit: str  # the side that size_px sets: "square" (both), "short" or "long"
    multiple: int  # pixels; both sides are rounded to multiples of it


class FeatureProvider:
    """Gives each sample the features of the experts `names`, or the images that they are shown.

    Features come from the sample itself (shards carry them), else from the expert's cache in `caches`. An expert in
    `image_sizes` runs online: the sample gets the image.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        caches: dict[str, FeatureCache],
        image_sizes: dict[str, ExpertImageSize],
    ):
        self.names = names
        self.caches = caches
        self.image_sizes = image_sizes

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Expert -> from the manifest of its cache: what features were made with, the path of its weights, channels."""
        return {
            name: {key: cache.manifest[key] for key in ("made_with", "path", "width")}
            for name, cache in self.caches.items()
        }

    def of(self, sample: Sample, image: Image.Image) -> dict[str, Tensor]:
        """Expert -> (C, h, w) float16 features, or the image (3, H, W) uint8 that it is shown. Raises BadSample."""
        stored = {name: sample.features[name] for name in self.names if name in sample.features}
        missing = [name for name in self.caches if name not in stored]
        if missing:
            stored |= self.cached(sample, missing)
        tensors = {name: torch.from_numpy(features) for name, features in stored.items()}
        return tensors | {name: self._image(name, sample, image) for name in self.names if name not in stored}

    def cached(self, sample: Sample, names: list[str] | None = None) -> dict[str, np.ndarray]:
        """Cached features (C, h, w) float16 of a sample's image, from the caches `names` or all. Raises BadSample."""
        copies = {}
        try:
            digest = image_digest(sample.image)
            stored = {name: self.caches[name].find(digest) for name in (self.caches if names is None else names)}
        except BadSample as error:
            raise BadSample(f"{sample.key}: {error}") from None
        for name, features in stored.items():
            if features is None:
                raise BadSample(
                    f"{sample.key}: its image is not in {self.caches[name].folder}: it was changed since, or the cache "
                    f"was made for other data. tools/cache_expert.py CONFIG --expert {name} adds what is missing"
                )
            copies[name] = features.copy()  # torch needs writable arrays
        return copies

    def _image(self, name: str, sample: Sample, image: Image.Image) -> Tensor:
        if name not in self.image_sizes:
            raise BadSample(
                f"{sample.key}: it carries no features of expert {name!r}, which has neither a cache nor weights here"
            )
        size = self.image_sizes[name]
        return expert_image(image, size.size_px, size.fit, size.multiple)


def expert_image(image: Image.Image, size_px: int, fit: str, multiple: int) -> Tensor:
    """RGB image -> (3, H, W) uint8 for an expert: the whole image, bilinear and antialiased, without padding.

    `fit` "square": both sides become `size_px`; "short" or "long": that side does, and the other keeps its proportion
    (for "short": at most 5/3 of `size_px`). Each side is then rounded to a multiple of `multiple` pixels, at least one.
    """
    sides = _expert_image_size(image.size, size_px, fit)
    width, height = (max(1, int(side / multiple + 0.5)) * multiple for side in sides)
    pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _expert_image_size(size_wh: tuple[int, int], size_px: int, fit: str) -> tuple[float, float]:
    if fit == "square":
        return size_px, size_px
    scale = size_px / max(size_wh)
    if fit == "short":
        scale = min(size_px / min(size_wh), MAX_LONG_SIDE * scale)
    return size_wh[0] * scale, size_wh[1] * scale


def cached_features(config: Config) -> FeatureProvider:
    """The caches of the config's experts; their weights are not opened.

    Raises ConfigError for a cache that was made with other settings, DatasetError for one that cannot be read.
    """
    caches = {}
    for expert in config.experts:
        if expert.cache is not None:
            caches[expert.name] = cache = FeatureCache(expert.cache)
            fingerprint = cache.manifest["made_with"]["fingerprint"]
            check_made_with(cache.manifest, f"the cache {expert.cache}", expert, config.architecture, fingerprint)
    return FeatureProvider(tuple(caches), caches, {})
