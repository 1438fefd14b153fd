"""What transformers' AutoModel and AutoProcessor give for a folder of tools/export.py --hub (trust_remote_code=True).

weights/remote_code.py copies this file and all that it imports into such a folder.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.data.regions import Regions, draw_regions, images_of, name_regions
from pixel_sail.devices import device_of_map
from pixel_sail.errors import WeightsError
from pixel_sail.folders.find import find_export
from pixel_sail.folders.listing import MAX_LISTED
from pixel_sail.folders.place import Place, has_rounded_buffers
from pixel_sail.model.attention import kernel_of
from pixel_sail.model.configuration import PixelSailConfig, load_own_config, load_own_tokenizer
from pixel_sail.model.generation import Sampling
from pixel_sail.model.generation_config import read_generation_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.images import ImageInput, as_images
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.types import Batch, Sample, Turn


class PixelSailModel(PixelSail):
    """`model(batch) -> Output`, as PixelSail; `segment`, `chat` and `predict_forward` answer."""

    config_class = PixelSailConfig

    def __init__(self, config: PixelSailConfig):
        super().__init__(config)
        self._source: tuple[str, str | None, bool] = ("", None, False)  # name, revision, local_files_only
        self._predictor: Predictor | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *args: Any,
        device_map: str | int | torch.device | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        **options: Any,
    ) -> PixelSailModel:
        """As transformers' own, whose options these are; `device_map` and `attn_implementation` as PixelSail's.

        Raises WeightsError for weights that are missing or unexpected: none is ever random.
        """
        config = options.get("config")
        if attn_implementation is None and config is not None:  # AutoModel has moved it there
            attn_implementation, config._attn_implementation = config._attn_implementation, None
        device, kernel = device_of_map(device_map), kernel_of(attn_implementation)
        options |= {"output_loading_info": True, "use_safetensors": True}
        load = super(PixelSail, cls).from_pretrained  # PixelSail's own reads folders, and takes none of the options
        model, info = load(name, *args, **options)
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if wrong:
            raise WeightsError(f"the weights of {name} do not fit its config.json: {', '.join(wrong[:MAX_LISTED])}")
        place = Place(device, model.dtype)
        if has_rounded_buffers(model):
            model, _ = load(name, *args, **(options | {"dtype": torch.float32}))
        place.put(model)
        model.attention_kernel = kernel
        model._source = (str(name), options.get("revision"), options.get("local_files_only", False))
        return model

    def predictor(self) -> Predictor:
        """This model with its tokenizer and defaults, which are read at first use, from where the model came from."""
        if self._predictor is None:
            folder = _folder(*self._source)
            tokenizer = load_own_tokenizer(folder, self.config)
            sampling, stop_ids = read_generation_config(folder)
            self._predictor = Predictor(self, tokenizer, sampling=sampling, stop_ids=stop_ids)
        return self._predictor

    def segment(
        self,
        image: ImageInput | Sequence[ImageInput],
        expressions: str | list[str],
        regions: Regions = (),
        soft: bool = False,
        instances: bool = False,
        zoom: bool | None = None,
        masks_on: int | Sequence[int] = -1,
    ) -> list[Answer]:
        """As `Predictor.segment`."""
        return self.predictor().segment(image, expressions, regions, soft, instances, zoom, masks_on)

    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        questions: str | list[str],
        regions: Regions = (),
        sampling: Sampling | None = None,
        history: Sequence[tuple[str, str]] = (),
        streamer: Any = None,
        soft: bool = False,
        masks_on: int | Sequence[int] = -1,
    ) -> list[Answer]:
        """As `Predictor.chat`."""
        return self.predictor().chat(image, questions, regions, sampling, history, streamer, soft, masks_on)

    def predict_forward(
        self,
        image: ImageInput | None = None,
        text: str = "",
        tokenizer: PreTrainedTokenizerBase | None = None,
        mask_prompts: Sequence[np.ndarray] = (),
    ) -> dict[str, Any]:
        """One question, in the call and the result of Sa2VA's models (its `<image>` in the text is left out).

        `tokenizer` is accepted and not needed. `mask_prompts`: masks (H, W) bool, <Prompt0> and so on. Gives
        "prediction", a text, and "prediction_masks", an array (1, H, W) bool for each [SEG].
        """
        question = text.replace("<image>", "").strip()
        (answer,) = self.chat(image, question, list(mask_prompts))
        return {"prediction": answer.text, "prediction_masks": [mask[None] for mask in answer.masks]}


class PixelSailProcessor(ProcessorMixin):
    """From an image and texts to the Batch that the model takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PixelSailConfig):
        self.tokenizer = tokenizer
        self.chat_template = None
        self.encoder = Encoder(
            tokenizer, config.architecture, config.chat_format, hide=config.hide, chat_pieces=config.chat_pieces
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, local_files_only: bool = False, **_: Any
    ) -> PixelSailProcessor:
        """The processor of a model folder or a hub repository. Other options of transformers are ignored."""
        folder = _folder(str(name), revision, local_files_only)
        config = load_own_config(folder)
        return cls(load_own_tokenizer(folder, config), config)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        text: str = "",
        answer: str = "",
        masks: Sequence[np.ndarray] = (),
        regions: Regions = (),
        masks_on: int = -1,
    ) -> Batch:
        """One question about images (or none) as a batch of one sequence, with labels on `answer` and its end.

        `masks`: (H, W) bool, one for each [SEG] of `answer`, on the image of number `masks_on`. The first logits of the
        model are those of the first token that it would write. Raises UserError as `Predictor.chat`, and BadSample.
        """
        pictures = as_images(images)
        drawn = draw_regions(regions, *([(picture.height, picture.width) for picture in pictures] or [(1, 1)]))
        first, *more = [_png(picture) for picture in pictures] or [None]
        sample = Sample(
            key="the input",
            image=first,
            turns=(Turn(name_regions(text, drawn), answer),),
            masks=tuple(encode_mask(mask) for mask in masks),
            prompts=drawn,
            more_images=tuple(more),
            mask_images=(masks_on if masks_on >= 0 else len(pictures) + masks_on,) * len(masks) if more else (),
            prompt_images=images_of(regions),
        )
        return pack([self.encoder.encode(sample)], self.encoder.tokens.seg, self.encoder.tokens.vision_patch)


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _folder(name: str, revision: str | None, local_files_only: bool) -> Path:
    """Where the files of a model are; transformers may name a revision for a folder, too."""
    return find_export(name, None if Path(name).is_dir() else revision, local_files_only)
