"""What `pixel-sail convert` does: plans the conversion of a family and writes it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection
from pixel_sail.data.templates import QUESTIONS
from pixel_sail.durable import rust_errors
from pixel_sail.folders.weight_files import check_finite
from pixel_sail.weights.convert.evev2 import plan_evev2
from pixel_sail.weights.convert.language_model import from_language_model, plan_language_model
from pixel_sail.weights.convert.neo import plan_neo
from pixel_sail.weights.convert.new_parts import NewParts
from pixel_sail.weights.convert.research import plan_research
from pixel_sail.weights.convert.sail import plan_sail
from pixel_sail.weights.convert.solo import plan_solo
from pixel_sail.weights.convert.streaming import Conversion, write
from pixel_sail.weights.files import check_new, new_folder, peak_bytes

BASES = {"solo": plan_solo, "sail": plan_sail, "evev2": plan_evev2, "neo": plan_neo}


DTYPES = {"same": None, "bf16": torch.bfloat16, "fp32": torch.float32}


def run(a: argparse.Namespace) -> None:
    a.question = a.question or QUESTIONS[0]
    torch.manual_seed(a.seed)
    check_new(a.out)
    plan = _plan(a)
    parameters = _write_in_memory(a) if plan is None else write(plan, a.out, int(a.shard_gb * 1e9), DTYPES[a.dtype])
    for difference in [] if plan is None else plan.config.differences or []:
        print(f"differs from the base: {difference}")
    print(f"{a.out}: {parameters / 1e6:.1f} million parameters, {peak_bytes() / 1e9:.1f} GB of memory at most")


def _plan(a: argparse.Namespace) -> Conversion | None:
    """The conversion; None for a language model that transformers must load into memory (from the hub, or a GGUF)."""
    if a.family == "research":
        return plan_research(Path(a.source), a.question)
    if a.family in BASES:
        return BASES[a.family](Path(a.source), NewParts(a.max_side_px, a.mask_stride, a.mask_dim, a.question))
    if a.in_memory or not Path(a.source).is_dir():
        return None
    return plan_language_model(Path(a.source), _architecture(a), a.question)


def _architecture(a: argparse.Namespace) -> Architecture:
    return NewParts(a.max_side_px, a.mask_stride, a.mask_dim).architecture(a.patch_size)


def _write_in_memory(a: argparse.Namespace) -> int:
    model, tokenizer = from_language_model(ModelSection(base=a.source), _architecture(a), a.question)
    model = model.to(DTYPES[a.dtype] or torch.float32)
    check_finite(model.state_dict(), f"{a.source} as {model.dtype}")
    with new_folder(a.out) as folder, rust_errors(folder):
        model.save_pretrained(folder, max_shard_size=int(a.shard_gb * 1e9))
        tokenizer.save_pretrained(folder)
    return model.num_parameters()
