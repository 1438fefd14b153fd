"""Runs functions of checks.py with the null GPU: `child.py NAME ...`, a JSON line for each as soon as it is done.

{"check": NAME, "seconds": ..., "result": what it returned} or, where it raised, {"check": NAME, "error": traceback}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback

# In the order of runtime.cpp. A pageable copy is one that a real GPU makes wait for its stream: from or to memory of
# the host that is not pinned.
COUNTERS = ("launches", "matmuls", "syncs", "pageable_copies", "to_device_bytes", "to_host_bytes")


def reset() -> None:
    """Set all counters to 0."""
    ctypes.CDLL(None).null_gpu_reset()


def counts() -> dict[str, int]:
    """What happened since the last `reset`."""
    read = ctypes.CDLL(None).null_gpu_count
    read.restype = ctypes.c_long
    return {name: read(number) for number, name in enumerate(COUNTERS)}


def main(names: list[str]) -> None:
    import torch

    torch.backends.cudnn.enabled = False  # the null GPU has none
    torch.backends.cuda.enable_cudnn_sdp(False)
    import checks

    for name in names:
        start = time.perf_counter()
        try:
            line = {"result": getattr(checks, name)()}
        except Exception:
            line = {"error": traceback.format_exc()}
        print(json.dumps({"check": name, "seconds": round(time.perf_counter() - start, 2), **line}), flush=True)
    sys.stderr.flush()
    os._exit(0)  # the libraries that are replaced would be torn down


if __name__ == "__main__":
    main(sys.argv[1:])
