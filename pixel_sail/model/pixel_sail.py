"""The model: one decoder-only transformer that reads patches and text together, and answers in text and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import Tensor, nn
from transformers import PreTrainedModel

from pixel_sail.devices import device_of_map
from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.find import find_export
from pixel_sail.folders.listing import MAX_LISTED
from pixel_sail.folders.load import in_a_line, on_meta
from pixel_sail.folders.place import ON_CPU, Place, has_rounded_buffers, stored_dtype
from pixel_sail.folders.values import read_values
from pixel_sail.folders.weight_files import Shapes, WeightFiles, check_finite, check_shapes
from pixel_sail.model.adapter import merge_adapter, split_adapter
from pixel_sail.model.attention import AttentionLayout, choose_kernel, kernel_of
from pixel_sail.model.backbone import build_decoder, cache_argument
from pixel_sail.model.clicks import ClickEmbedding
from pixel_sail.model.configuration import PixelSailConfig, load_own_config
from pixel_sail.model.mask_head import MaskHead
from pixel_sail.model.modality_experts import Modality
from pixel_sail.model.region_pooling import add_at_names, pool_regions
from pixel_sail.model.score_head import ScoreHead
from pixel_sail.model.visual_prompt import PatchFusion
from pixel_sail.types import LOGITS_AT_ONCE, Batch, DeferredLogits, Output

# Inductor plans its sums for the first size that it sees, which may be that of a filler. This one costs a thousandth of
# a micro-batch of 16k tokens.
COMPILED_FILLER_SIDE = 32


class PixelSail(PreTrainedModel):
    """`forward(batch) -> Output`; `save_pretrained` and `from_pretrained` keep weights and config in a folder.

    A model built from a config has random weights; pixel_sail.weights.convert makes models from released weights.
    """

    config_class = PixelSailConfig
    base_model_prefix = ""
    main_input_name = "batch"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_sdpa = True

    def __init__(self, config: PixelSailConfig):
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.language_model = build_decoder(config.text_config, config.architecture)
        self.fusion = PatchFusion(config.architecture, hidden)
        self.mask_head = MaskHead(config.architecture, hidden)
        self.score_head = ScoreHead(hidden) if config.architecture.mask_scores else None
        self.filler_side = 1  # patches of the image that stands in for those of a batch without
        self.attention_kernel = "auto"  # auto | sdpa | flex | flash
        self._prompt_ids: Tensor | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the new parts as torch does: the decoders' N(0, 0.02) is too small for a narrow mask head."""
        loaded = any(getattr(p, "_is_hf_initialized", False) for p in module.parameters(recurse=False))
        if not loaded and hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def forward(self, batch: Batch, with_features: bool = False) -> Output:
        """Run one packed batch. Logits only at labels, deferred if they are many; mask features if `with_features`."""
        embeds = self.embed(batch)
        hidden = self.decode(embeds, batch.position_ids, self.layout(batch, embeds.dtype))
        logits = self._logits(hidden.index_select(0, batch.predict_index))
        mask_features, mask_logits = self._masks(batch, hidden, with_features)
        scores = self._scores(batch, hidden, mask_logits)
        return Output(logits, hidden, mask_features, mask_logits, *scores)

    def add_score_head(self) -> None:
        """Give a model that has none a score head with initial weights, in the model's dtype, on its device."""
        head = ScoreHead(self.config.text_config.hidden_size)
        self.score_head = head.to(self.device, self.mask_head.seg_projector[0].weight.dtype).train(self.training)

    def add_clicks(self) -> None:
        """Let a model that takes no clicks take them, with initial weights, in the model's dtype, on its device."""
        clicks = ClickEmbedding(self.config.text_config.hidden_size)
        self.fusion.clicks = clicks.to(self.device, self.fusion.patch_linear.weight.dtype).train(self.training)

    def compile_layers(self, **options: Any) -> None:
        """Compile each decoder layer and the mask blocks, for inputs of any size; `options` are torch.compile's.

        All layers share one graph, and a second one for batches without an image. The mask blocks are one graph. The
        first step waits.
        """
        # A layer with modality experts notes its modality before it runs; its graph has it as an input, also when
        # activation checkpointing runs it again.
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        symbolic_shapes.use_duck_shape = False  # lengths that are equal in the first batch may differ in the next
        for layer in self.language_model.get_decoder().layers:
            layer.compile(dynamic=True, **options)
        self.mask_head.compile_blocks(**options)
        self.filler_side = COMPILED_FILLER_SIDE

    def layout(self, batch: Batch, dtype: torch.dtype) -> AttentionLayout:
        """The attention layout of a packed batch with embeddings of `dtype`, with the kernel for dtype and device."""
        kind = self.device.type
        if torch.is_autocast_enabled(kind):  # then queries, keys and values come out of its matmuls
            dtype = torch.get_autocast_dtype(kind)
        kernel = choose_kernel(self.attention_kernel, self.device, dtype)
        return AttentionLayout(batch.spans, kernel, self.device, batch.varlen, image_spans=batch.image_spans)

    def embed(self, batch: Batch) -> Tensor:
        """Input embeddings (L, D): tokens, patches and visual prompts fused."""
        embed_tokens, prompt_ids = self.language_model.get_input_embeddings(), self._prompt_token_ids()
        return self.fusion(embed_tokens(batch.input_ids), embed_tokens(prompt_ids), prompt_ids, batch)

    def pooled_regions(self, batch: Batch) -> Tensor | None:
        """Pooled regions (B, 15, D), to add at their names in the text; None if regions are fused into patches."""
        if self.config.architecture.region_embedding == "fused":
            return None
        return pool_regions(self.fusion.embed_patches(batch), batch)

    def clickable_patches(self, batch: Batch) -> Tensor | None:
        """The embedded patches (sum N, D) that clicks echo; None of a model that takes no clicks."""
        return None if self.fusion.clicks is None else self.fusion.embed_patches(batch)

    def embed_text(self, input_ids: Tensor, regions: Tensor | None) -> Tensor:
        """Embeddings (Q, T, D) of rows of text that continue an image. `regions`: (Q, 15, D), pooled, of their images.

        With `regions` None nothing is added to the tokens: the regions are in the patches. Clicks are not added yet.
        """
        embeds = self.language_model.get_input_embeddings()(input_ids)
        if regions is None:
            return embeds
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
        return add_at_names(embeds, input_ids, self._prompt_token_ids(), regions, rows)

    def _prompt_token_ids(self) -> Tensor:
        """Ids of <Prompt0> .. <Prompt14>, (15,), copied to the device once. Not a buffer: it is in the config."""
        if self._prompt_ids is None or self._prompt_ids.device != self.device:
            with torch.inference_mode(False):  # training may use what generation made
                self._prompt_ids = torch.tensor(self.config.prompt_token_ids, device=self.device)
        return self._prompt_ids

    def decode(self, embeds: Tensor, position_ids: Tensor, layout: AttentionLayout, cache: Any | None = None) -> Tensor:
        """States (L, D) after the final norm, from embeddings (L, D) and positions (3, L). Fills `cache` if given."""
        decoder, images = self.language_model.get_decoder(), layout.image_spans or layout.spans
        output = decoder(
            inputs_embeds=embeds[None].clone(),  # a view would need a compiled graph of its own in the first layer
            position_ids=position_ids[:, None],
            use_cache=cache is not None,
            layout=layout,
            modality=Modality.of(images, layout.device) if self.config.architecture.vision_experts else None,
            **{cache_argument(decoder): cache},
        )
        return output.last_hidden_state[0]

    def _logits(self, states: Tensor) -> Tensor | DeferredLogits:
        """Logits (M, V) of states (M, D), which losses computes in pieces if they are many.

        ZeRO-3 gathers the head's weights at each call of the head, and all ranks must call it equally often: once.
        """
        head = self.language_model.get_output_embeddings()
        vocabulary = self.config.text_config.vocab_size
        in_zero_3 = any(hasattr(parameter, "ds_id") for parameter in head.parameters())
        if in_zero_3 or len(states) * vocabulary <= LOGITS_AT_ONCE:
            return head(states)
        kind = states.device.type
        autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))  # losses run without

        def in_pieces(rows: Tensor) -> Tensor:
            with torch.autocast(*autocast):
                return head(rows)

        return DeferredLogits(states, in_pieces, vocabulary)

    def _masks(self, batch: Batch, hidden: Tensor, with_features: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Features and logits of each image; empty without one, or if nothing needs its masks."""
        width = hidden.shape[-1]
        segs = hidden.index_select(0, batch.seg_index).split(list(batch.masks_per_image))
        patches = hidden.index_select(0, batch.patch_index).split([h * w for h, w in batch.grids_hw])
        grids = [patch.view(h, w, width) for patch, (h, w) in zip(patches, batch.grids_hw, strict=True)]
        used = [i for i, grid in enumerate(grids) if grid.numel() and (with_features or len(segs[i]))]
        features = [hidden.new_empty(0, 0, 0)] * len(grids)
        logits = list(features)
        if not used:
            # Run the head on a token without a [SEG]: every rank must use every weight, and through the same
            # operations, because ZeRO-1 and 2 add up gradients in the order of their arrival.
            filler = hidden[:1].expand(self.filler_side**2, width).view(self.filler_side, self.filler_side, width)
            empty, _ = self.mask_head([filler], [hidden[:0]], with_features)
            return features, [empty[0], *logits[1:]]
        masks = self.mask_head([grids[i] for i in used], [segs[i] for i in used], with_features)
        for i, logit, feature in zip(used, *masks, strict=True):
            logits[i], features[i] = logit, feature
        return features, logits

    def _scores(self, batch: Batch, hidden: Tensor, mask_logits: list[Tensor]) -> tuple[Tensor, Tensor] | tuple[()]:
        """Logits of the scores and of presence, from which no gradient flows back; () without a score head."""
        if self.score_head is None:
            return ()
        states = hidden.detach()
        segs, asked = states.index_select(0, batch.seg_index), states.index_select(0, batch.asked_index)
        return self.score_head([logits.detach() for logits in mask_logits], segs, asked)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        local_files_only: bool = False,
        device_map: str | int | torch.device | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        adapter: str | Path | None = None,
    ) -> PixelSail:
        """Load a folder that `save_pretrained` or tools/convert.py wrote, or "org/name" of a hub, in eval mode.

        `revision`, `local_files_only`: see `find_export`. `device_map`: one device, or "auto" (devices.py).
        `attn_implementation`: see `kernel_of`. `adapter`: a folder (or hub id) in PEFT's format, merged into the model;
        if `folder` is one itself, its model is the base that it names. Errors as `load`, and UserError.
        """
        device, kernel = device_of_map(device_map), kernel_of(attn_implementation)
        base, own = split_adapter(find_export(folder, revision, local_files_only))
        if own is not None and adapter is not None:
            raise WeightsError(
                f"{folder} is an adapter itself; give its model and adapter={adapter}, or one of the two"
            )
        model = cls.load(base, Place(device, dtype))
        for part in (own, adapter):
            if part is not None:
                merge_adapter(model, find_export(part))
        model.attention_kernel = kernel
        return model

    @classmethod
    def load(cls, folder: Path, place: Place = ON_CPU) -> PixelSail:
        """As `from_pretrained`, with the weights at `place`.

        Raises WeightsError for a missing folder or file, for a config that no model has, for weights that are missing,
        unexpected, mis-shaped, NaN or infinite, with a list of them, and for files that are not what was written: a
        model with random parts is never returned silently. The shapes are compared before anything is allocated.
        """
        config, files = load_own_config(folder), WeightFiles(folder)
        network = on_meta(lambda: cls(config), folder / CONFIG)
        files.drop_copies(network.all_tied_weights_keys)
        check_shapes(expected_shapes(network), files.shapes, folder)
        values = read_values(files)
        model = cls._mapped(folder, config, stored_dtype(files.dtypes))
        if has_rounded_buffers(model):
            model = cls._mapped(folder, config, torch.float32)
        values.check_finite(model.dtype if place.later else place.dtype)
        check_finite(dict(model.named_buffers()), folder)  # rotary frequencies are computed from config.json
        if not place.later:
            place.put(model)
        return model.eval()

    @classmethod
    def _mapped(cls, folder: Path, config: PixelSailConfig, dtype: torch.dtype) -> PixelSail:
        """The model as transformers loads it: weights that have this dtype stay in the files."""
        try:
            model, info = super().from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True,
                use_safetensors=True, trust_remote_code=False,
            )  # fmt: skip
        except MemoryError:
            raise
        except Exception as error:  # transformers raises anything
            raise WeightsError(f"the weights in {folder} cannot be loaded: {in_a_line(error)}") from error
        random = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if random:
            raise WeightsError(f"the weights in {folder} do not fit its config.json: {', '.join(random[:MAX_LISTED])}")
        return model


def expected_shapes(model: PixelSail) -> Shapes:
    """Names and shapes of a model's weights. Tied weights appear once."""
    tied = model.all_tied_weights_keys
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
