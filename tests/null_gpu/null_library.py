"""Builds the null GPU for the torch of this Python, once for each state of the sources. See README.md."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixel_sail" / "null_gpu"
TORCH_LIBRARIES = ("libtorch_cuda*.so", "libc10_cuda.so", "libtorch_python.so")
# Functions of the driver that Triton's launcher and torch link, and whose result nobody reads.
DRIVER_REST = (
    *("cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col"),
    *("cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkComplete", "cuStreamWriteValue32_v2"),
)
SYMBOL = re.compile(r"(__cuda|cuda|cublas|cudnn|cufft|cusolver|cusparse|nccl)\w*")


class Unavailable(Exception):
    """What this machine lacks."""


def library() -> Path:
    """The folder with libnullgpu.so and libcuda.so.1, built if it is not there. Raises Unavailable."""
    if torch.version.cuda is None:
        raise Unavailable(f"torch {torch.__version__} is not a CUDA build")
    if shutil.which("g++") is None or shutil.which("nm") is None:
        raise Unavailable("g++ and nm are needed")
    headers = _headers()
    sources = b"".join((HERE / name).read_bytes() for name in ("runtime.cpp", "driver.cpp", Path(__file__).name))
    key = hashlib.sha256(sources + f"{torch.__version__} {torch.__file__} {headers}".encode()).hexdigest()[:16]
    folder = CACHE / key
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            built = _build(Path(work) / "built", headers)
            try:
                built.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The variables under which a child process has the null GPU of `folder`."""
    variables = os.environ | {
        "LD_PRELOAD": str(folder / "libnullgpu.so"),
        "LD_LIBRARY_PATH": ":".join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")])),
        "TRITON_LIBCUDA_PATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "0",
        "DS_ACCELERATOR": "cuda",
    }
    return {"CUDA_HOME": str(_headers().parent)} | variables


def _headers() -> Path:
    folders = sorted(Path("/usr/local").glob("cuda*/include"))
    folders += sorted(Path(torch.__file__).parents[1].glob("nvidia/cu*/include"))
    for folder in folders:
        if all((folder / name).exists() for name in ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h")):
            return folder
    raise Unavailable("CUDA's headers are needed (cuda.h, cuda_runtime_api.h, crt/host_defines.h)")


def _build(out: Path, headers: Path) -> Path:
    out.mkdir()
    compiler = ["g++", "-O1", "-fPIC", f"-I{headers}"]
    version = zip(("MAJOR", "MINOR", "PATCH"), torch._C._cudnn.getCompileVersion(), strict=True)
    cudnn = [f"-DCUDNN_{part}={number}" for part, number in version]
    _run(*compiler, *cudnn, "-c", HERE / "runtime.cpp", "-o", out / "runtime.o")
    libraries = [path for pattern in TORCH_LIBRARIES for path in (Path(torch.__file__).parent / "lib").glob(pattern)]
    wanted = set().union(*(_symbols("-D", "--undefined-only", path) for path in libraries))
    rest = sorted(wanted - _symbols("--defined-only", out / "runtime.o"))
    returning_0 = _functions_that_return_0(rest, out / "rest.cpp")
    _run(*compiler, "-shared", "-o", out / "libnullgpu.so", out / "runtime.o", returning_0, "-ldl")
    name, returning_0 = "libcuda.so.1", _functions_that_return_0(DRIVER_REST, out / "driver_rest.cpp")
    _run(*compiler, "-shared", f"-Wl,-soname,{name}", "-o", out / name, HERE / "driver.cpp", returning_0, "-ldl")
    (out / "libcuda.so").symlink_to(name)
    return out


def _functions_that_return_0(names: Iterable[str], file: Path) -> Path:
    body = "".join(f'__attribute__((visibility("default"))) int {name}() {{ return 0; }}\n' for name in names)
    file.write_text(f'extern "C" {{\n{body}}}\n')
    return file


def _symbols(*arguments: str | Path) -> set[str]:
    """The names of CUDA's libraries among the symbols that nm lists, without their versions."""
    names = (line.split()[-1].partition("@")[0] for line in _run("nm", *arguments).splitlines() if line.strip())
    return {name for name in names if SYMBOL.fullmatch(name)}


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout
