"""The last feature map of any backbone of timm: DINOv2, DINOv3, SAM ViT, ConvNeXt, Swin, ResNet, ..."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from pixel_sail.config import ConfigError, ExpertConfig
from pixel_sail.errors import WeightsError
from pixel_sail.experts.expert import Expert
from pixel_sail.experts.folder import cannot_load
from pixel_sail.folders.files import CONFIG, check_downloaded, check_folder, read_settings
from pixel_sail.folders.find import local_folder
from pixel_sail.folders.listing import SINGLE
from pixel_sail.folders.load import check_numbers, in_a_line
from pixel_sail.folders.settings import check_settings
from pixel_sail.folders.weight_files import WeightFiles, check_finite

FILES = "config.json and model.safetensors, as in timm's hub repositories or as timm.models.save_for_hf writes them"

# Options that let a model read images of any size: of vision transformers, and of Swin. Other models need none.
ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False})


def open_timm(config: ExpertConfig) -> Expert:
    """Open `config.path`: a folder with FILES, a hub repository (owner/name), or a model name of timm.

    Vision transformers give their normalized last tokens as a grid, without class and register tokens.
    """
    model = _load(config)
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"expert {config.name!r}: timm's {type(model).__name__} gives no feature maps")
    model.reset_classifier(0)  # the classifier is no part of the features, so it must not change the fingerprint

    def to_features(pixels: Tensor) -> Tensor:
        return model.forward_intermediates(pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[0]

    data = timm.data.resolve_model_data_config(model)
    multiple = int(model.feature_info[-1]["reduction"])
    width = _channels(config, model, to_features, multiple)
    return Expert("timm", model, to_features, width, multiple, mean=data["mean"], std=data["std"])


def _load(config: ExpertConfig) -> nn.Module:
    source = _source(config)
    try:
        model = _created(source)
    except MemoryError:
        raise
    except Exception as error:  # timm and its model classes raise anything on values that they do not expect
        raise cannot_load(config, FILES, in_a_line(error)) from error
    try:
        check_finite(model.state_dict(), config.path)
    except WeightsError as error:
        raise cannot_load(config, FILES, error) from error
    return model


def _created(source: str) -> nn.Module:
    for options in ANY_SIZE:
        with contextlib.suppress(TypeError):  # the class does not know the option
            return timm.create_model(source, pretrained=True, **options).eval()
    return timm.create_model(source, pretrained=True).eval()


def _source(config: ExpertConfig) -> str:
    path = config.path
    if not Path(path).is_dir() and path.startswith(("/", ".", "~")):
        raise cannot_load(config, FILES, "not a folder")
    if Path(path).is_dir() or "/" in path:
        try:
            folder = local_folder(path)
            _check_folder(folder)
        except WeightsError as error:
            raise cannot_load(config, FILES, error) from error
        return f"local-dir:{folder}"
    if not timm.is_model(path):
        near = difflib.get_close_matches(path, timm.list_models(), n=1)
        raise ConfigError(
            f"expert {config.name!r}: {path!r} is no folder, no hub repository (owner/name) and no model of timm"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return path


def _check_folder(folder: Path) -> None:
    """Raise WeightsError for a folder that timm cannot load, before it allocates anything or opens a pickle."""
    check_folder(folder, (CONFIG,))
    check_settings(read_settings(folder / CONFIG), folder / CONFIG)
    pickles = [path for ending in ("bin", "pth") for path in sorted(folder.glob(f"*.{ending}"))]
    if pickles and not (folder / SINGLE).exists():  # timm reads them as torch.load(weights_only=True), and nothing else
        check_downloaded(pickles[0])
        return
    held = sum(math.prod(shape) for shape in WeightFiles(folder, buffers=True).shapes.values())
    try:
        with torch.device("meta"):
            model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception:  # not every model can be built without values; loading says what is wrong, if anything
        return
    check_numbers(sum(parameter.numel() for parameter in model.parameters()), held, folder)


@torch.no_grad()
def _channels(config: ExpertConfig, model: nn.Module, to_features: Callable[[Tensor], Tensor], multiple: int) -> int:
    """Run the model once at about the size of its images and return its channels. Some models read one size only."""
    side = max(multiple, round(config.size_px / multiple) * multiple)
    height = side if config.fit == "square" else side + multiple
    try:
        features = to_features(torch.zeros(1, 3, height, side))
    except (AssertionError, RuntimeError) as error:
        trained_size = getattr(model, "pretrained_cfg", {}).get("input_size")
        raise ConfigError(
            f"expert {config.name!r}: {config.path} gives no features of an image of {side} x {height} px, the size "
            f"that size_px and fit set; it was made for {trained_size}. Change them, or the model. The cause: {error}"
        ) from error
    return features.shape[1]
