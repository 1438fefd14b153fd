"""What every expert is: a frozen module with its normalization, and a fingerprint of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_sail.durable import fingerprint


class Expert:
    """A frozen expert. Not an nn.Module on purpose.

    So the optimizer, DeepSpeed, checkpoints, `.train()` and `.to()` of a module that holds it never see its weights.
    """

    width: int  # C, channels of a feature map
    multiple: int  # pixels; both sides of an input image must be multiples of it
    fingerprint: str  # 16 hex digits of kind, weights and normalization, to compare experts

    def __init__(
        self,
        kind: str,
        module: nn.Module,
        to_features: Callable[[Tensor], Tensor],
        width: int,
        multiple: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        """`to_features` runs `module`: normalized float32 (B, 3, H, W) -> (B, C, h, w). mean, std: of RGB in 0..1."""
        self._module = module.float().eval().requires_grad_(False)
        self._to_features = to_features
        self.width, self.multiple = width, multiple
        self._mean, self._std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
        self.fingerprint = _fingerprint(kind, module, self._mean, self._std)

    def to(self, device: torch.device | str) -> Expert:
        self._module.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    @torch.no_grad()
    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 RGB images (3, H, W) -> feature maps (C, h, w), float32, on the expert's device, without gradient.

        Computed in float32 on a CPU and under bf16 autocast on a GPU, so that the two differ by its rounding.

        A map covers exactly its image: images are not padded, and those of one size are run as one batch. Raises
        ValueError for a side that is no multiple of `multiple`.
        """
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            self._check(image)
            by_size.setdefault(tuple(image.shape), []).append(i)
        maps: dict[int, Tensor] = {}
        for indices in by_size.values():
            pixels = torch.stack([images[i] for i in indices]).to(self._mean.device).float() / 255
            # Whatever the student trains in, because cached and online features must agree: on a CPU float32, on a GPU
            # bf16 where autocast takes it (matrices, convolutions), which is several times as fast.
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
                features = self._to_features((pixels - self._mean) / self._std)
            maps |= zip(indices, features.float(), strict=True)
        return [maps[i] for i in range(len(images))]

    def _check(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            raise ValueError(f"an image for an expert is uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
        if not height or not width or height % self.multiple or width % self.multiple:
            raise ValueError(f"the sides of an image ({width} x {height} px) must be multiples of {self.multiple}")


def resize_features(features: Tensor, grid_hw: Sequence[int]) -> Tensor:
    """(C, h', w') -> (h, w, C) float32, resized bilinearly (align_corners False) to `grid_hw`."""
    # channels last, like the features of students, and before the cast, because that is faster
    features = features[None].contiguous(memory_format=torch.channels_last).float()
    if features.shape[2:] != tuple(grid_hw):
        features = F.interpolate(features, size=tuple(grid_hw), mode="bilinear", align_corners=False)
    return features[0].permute(1, 2, 0)


def _fingerprint(kind: str, module: nn.Module, mean: Tensor, std: Tensor) -> str:
    def parts() -> Iterator[bytes]:
        yield kind.encode()
        for name, tensor in sorted({**module.state_dict(), "mean": mean, "std": std}.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    return fingerprint(parts())
