"""What the experts give a sample for its image: stored features, or the image that an expert is to be shown."""

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

MAX_LONG_SIDE = 5 / 3  # of the short one's size: 800 and 1333 px in Mask2Former's own preprocessing


@dataclass(frozen=True)
class ImageRule:
    """How an expert wants its images."""

    size_px: int
    fit: str  # which side size_px is of: "square" (both), "short" or "long"
    multiple: int  # pixels; both sides are multiples of this


class ExpertFeatures:
    """The experts of a run as the data sees them.

    `caches` and `images` are by expert; one that is in neither has its features in the samples, which shards carry.
    """

    def __init__(self, names: tuple[str, ...], caches: dict[str, FeatureCache], images: dict[str, ImageRule]):
        self.names = names
        self.caches = caches
        self.images = images

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Expert -> what the features of its cache were made with, where its weights lay, and their channels."""
        return {
            name: {key: cache.manifest[key] for key in ("made_with", "path", "width")}
            for name, cache in self.caches.items()
        }

    def of(self, sample: Sample, image: Image.Image) -> dict[str, Tensor]:
        """Expert -> (C, h, w) float16 features, or the (3, H, W) uint8 image that it is to see. Raises BadSample."""
        stored = {name: sample.features[name] for name in self.names if name in sample.features}
        missing = [name for name in self.caches if name not in stored]
        if missing:
            stored |= self.cached(sample, missing)
        found = {name: torch.from_numpy(features) for name, features in stored.items()}
        for name in self.names:
            if name not in found:
                found[name] = self._image(name, sample, image)
        return found

    def cached(self, sample: Sample, names: list[str] | None = None) -> dict[str, np.ndarray]:
        """The cached features (C, h, w) float16 of a sample's image, of `names` or of all caches. Raises BadSample."""
        found = {}
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
            found[name] = features.copy()  # writable, as tensors must be
        return found

    def _image(self, name: str, sample: Sample, image: Image.Image) -> Tensor:
        if name not in self.images:
            raise BadSample(
                f"{sample.key}: it carries no features of expert {name!r}, which has neither a cache nor weights here"
            )
        rule = self.images[name]
        return expert_image(image, rule.size_px, rule.fit, rule.multiple)


def expert_image(image: Image.Image, size_px: int, fit: str, multiple: int) -> Tensor:
    """RGB image -> (3, H, W) uint8 as an expert sees it; bilinear, antialiased, the whole image, no padding.

    `fit` "square": both sides `size_px`; "short" or "long": that side, the other in proportion, for "short" at most
    5/3 of `size_px`. Each side is then rounded to a multiple of `multiple` pixels, at least one.
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


def cached_features(config: Config) -> ExpertFeatures:
    """The caches of the config's experts. ConfigError for one that was made otherwise; weights are not looked at."""
    caches = {}
    for expert in config.experts:
        if expert.cache is not None:
            caches[expert.name] = cache = FeatureCache(expert.cache)
            fingerprint = cache.manifest["made_with"]["fingerprint"]
            check_made_with(cache.manifest, f"the cache {expert.cache}", expert, config.architecture, fingerprint)
    return ExpertFeatures(tuple(caches), caches, {})
