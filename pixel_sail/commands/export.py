"""Publish a model: a self-contained folder that PixelSail.from_pretrained and Predictor.from_pretrained take.

    python tools/export.py runs/scratch --out published/scratch --metrics runs/scratch/scores/metrics.json
    python tools/export.py runs/big/checkpoints/step_00000500 --out published/big-500 --dtype bf16 --shard-gb 2
    python tools/export.py runs/scratch --out published/scratch --hub
    python tools/export.py runs/lora --out published/lora --adapter

SOURCE: a run (its export/, else its newest checkpoint), an export folder, a folder of tools/convert.py, or a checkpoint
step_* of any ZeRO stage and number of processes. The folder contains the weights in shards, config.json,
the tokenizer, chat_format.json, and a model card (README.md) with the training config, the commit and the scores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import SHARD_GB, probability, shard_gb

DTYPES = {"same": None, "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # their names in torch


@tool
def main() -> None:
    a = _parse()
    with importing():
        import torch

        from pixel_sail.model.generation_config import read_generation_config
        from pixel_sail.weights.files import check_new
        from pixel_sail.weights.publish import open_model, publish, read_metrics
        from pixel_sail.weights.start import find_model
    check_new(a.out)
    if a.adapter:
        from pixel_sail.weights.adapter import write_adapter

        print(f"from {write_adapter(a.source, a.out)}\n{a.out}: an adapter in PEFT's format; it needs its base model")
        return
    metrics = None if a.metrics is None else read_metrics(a.metrics)
    folder, shard_bytes = find_model(a.source), int(a.shard_gb * 1e9)
    print(f"from {folder}")
    dtype = DTYPES[a.dtype] and getattr(torch, DTYPES[a.dtype])
    sampling, _ = read_generation_config(folder)
    if a.min_presence is not None:
        sampling = replace(sampling, min_presence=a.min_presence)
    described = (a.name or a.out.name, metrics, a.license, a.hub, a.command)
    publish(open_model(folder), a.out, dtype, shard_bytes, *described, sampling)
    sizes = [file.stat().st_size for file in a.out.glob("*.safetensors")]
    size = f"{sum(sizes) / 1e9:.2f} GB" if sum(sizes) > 1e8 else f"{sum(sizes) / 1e6:.1f} MB"
    print(f"{a.out}: {size} of weights in {len(sizes)} files, model card in README.md")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run, an export folder, or a checkpoint step_*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, help="metrics.json that tools/test.py wrote for this model")
    parser.add_argument(
        "--license", help="a hub's name for it, for example apache-2.0; default: 'not stated' in the card"
    )
    parser.add_argument("--command", help="what repeats the whole training, for the model card: 'make tiny'")
    parser.add_argument("--name", help="title of the model card; default: the name of --out")
    parser.add_argument(
        "--hub", action="store_true", help="with the Python files for transformers' AutoModel (docs/huggingface.md)"
    )
    parser.add_argument(
        "--min-presence",
        type=probability,
        metavar="P",
        help="the model answers without a mask where something is less likely to be there (0 to 1; needs a score head)",
    )
    parser.add_argument("--adapter", action="store_true", help="only the adapters of a run with train.lora, unmerged")
    parser.add_argument("--dtype", choices=DTYPES, default="same", help="dtype of the written weights")
    parser.add_argument("--shard-gb", type=shard_gb, default=SHARD_GB, help="largest size of a file")
    return parser.parse_args()
