"""What the machine can do, next to which all other numbers are read."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import torch

from pixel_sail.bench.gpu.checks import Report
from pixel_sail.bench.gpu.clock import gpu_ms

MATMUL_SIDE = 8192
HOPPER_TFLOPS = 700.0  # dense bf16 that a healthy H100 or H200 reaches on random numbers; its data sheet says 989
COPIED_BYTES = 2**30
PINNED_BYTES = 2**28
PACKAGES = ("transformers", "deepspeed", "triton", "flash-attn", "flash-attn-3", "flash-attn-4", "peft", "timm")


def run(report: Report) -> None:
    _names(report)
    with report.part("bf16 matmul"):
        a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        tflops = 2 * MATMUL_SIDE**3 / gpu_ms(lambda: a @ b, repeats=30) / 1e9
        hopper = torch.cuda.get_device_capability() == (9, 0)
        report.number("bf16 matmul", tflops, "TFLOP/s", least=HOPPER_TFLOPS if hopper else None)
    with report.part("copy on the device, read and written"):
        source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        gb_per_s = 2 * COPIED_BYTES / gpu_ms(lambda: target.copy_(source)) / 1e6
        report.number("copy on the device, read and written", gb_per_s, "GB/s")
    with report.part("copy to the device"):
        for name, host in (
            ("pinned", torch.zeros(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)),
            ("pageable", torch.zeros(PINNED_BYTES, dtype=torch.uint8)),
        ):
            milliseconds = gpu_ms(lambda host=host: target[:PINNED_BYTES].copy_(host, non_blocking=True), 5, 1)
            report.number(f"copy to the device, {name}", PINNED_BYTES / milliseconds / 1e6, "GB/s")
    with report.part("a kernel of one element, from launch to launch"):
        one = torch.zeros(1, device="cuda")
        report.number("a kernel of one element, from launch to launch", 1e3 * gpu_ms(lambda: one.add_(1), 1000), "us")


def _names(report: Report) -> None:
    """The machine and its software, for the page."""
    properties = torch.cuda.get_device_properties(0)
    report.text("GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    report.text("Python", platform.python_version())
    report.text("torch", torch.__version__)
    for package in PACKAGES:
        try:
            report.text(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            report.skipped(package, "not installed")
    if shutil.which("nvidia-smi") is not None:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        report.text("driver", done.stdout.strip() or "unknown")
