"""Floating-point operations of training, for the MFU of the log."""

from __future__ import annotations

from dataclasses import dataclass

from pixel_sail.model.axis_attention import head_widths
from pixel_sail.model.pixel_sail import PixelSail


@dataclass(frozen=True)
class Flops:
    """What forward and backward cost, without what activation checkpointing computes again.

    A multiplication and an addition are 2 FLOPs, and backward costs twice as much as forward (PaLM, arXiv 2204.02311,
    appendix B). With N weights that each token passes (the decoder's without its input embeddings), K layers, H heads
    of width d, and `attended` pairs of a query and a key (Batch.attended):

        6 N tokens + 12 K H d attended

    because a pair takes 2 d for its score and 2 d for its value in each head. PaLM counts 12 K H d L for each token of
    a sequence of L, as if all attended to all; here the pairs are those that the kernels compute. The mask head is left
    out: it is small beside a decoder.
    """

    per_token: int
    per_pair: int

    @classmethod
    def of(cls, model: PixelSail) -> Flops:
        decoder, text = model.language_model, model.config.text_config
        passed = sum(p.numel() for p in decoder.parameters()) - decoder.get_input_embeddings().weight.numel()
        of_pair = sum(head_widths(text, model.config.architecture))  # 2 d
        return cls(6 * passed, 6 * text.num_hidden_layers * text.num_attention_heads * of_pair)

    def of_step(self, tokens: float, attended: float) -> float:
        return self.per_token * tokens + self.per_pair * attended
