"""Flash attention over packed sequences, from whatever library this machine has, behind one signature."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from pixel_sail.layout import VarlenCall

log = logging.getLogger(__name__)

# (queries (Lq, heads, d), keys (Lk, kv heads, d), values, call, scaling) -> (Lq, heads, d), in bf16 or fp16
Flash = Callable[[Tensor, Tensor, Tensor, VarlenCall, float | None], Tensor]

DTYPES = (torch.bfloat16, torch.float16)  # of every flash kernel
MIN_MAJOR, HOPPER = 8, 9  # compute capabilities
# module of each version's varlen function; version 4 replaces 2 in the namespace `flash_attn`, or stands beside it
FLASH_2, FLASH_3, FLASH_4 = "flash_attn", "flash_attn_interface", "flash_attn.cute"
NAMES = {FLASH_2: "flash-attn 2", FLASH_3: "flash-attn 3", FLASH_4: "flash-attn 4"}


@lru_cache
def find_flash(major: int) -> Flash | None:
    """The fastest flash kernel that can run on a GPU of compute capability `major`.x; None before Ampere."""
    return next((kernel for _, kernel in installed(major)), None)


def installed(major: int) -> Iterator[tuple[str, Flash]]:
    """Name and kernel of all that can run on a GPU of compute capability `major`.x, the fastest first.

    flash-attn 3 runs on Hopper only. Version 4 is made for Blackwell, and a beta. torch's own is always there.
    """
    if major < MIN_MAJOR:
        return
    order = [FLASH_2]
    if major == HOPPER:
        order = [FLASH_3, FLASH_2, FLASH_4]
    elif major > HOPPER:
        order = [FLASH_4, FLASH_2]
    for module in order:
        function = _varlen_function(module)
        if function is not None:
            yield NAMES[module], partial(flash_attn_4 if module == FLASH_4 else flash_attn_2_or_3, function)
    from torch.nn.attention.varlen import varlen_attn

    yield "varlen_attn", partial(torch_varlen, varlen_attn)


def _varlen_function(module: str) -> Callable[..., Any] | None:
    """`flash_attn_varlen_func` of a module; None where it is not installed or does not load, which is logged."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
        return importlib.import_module(module).flash_attn_varlen_func
    except ModuleNotFoundError:  # no `flash_attn` around `flash_attn.cute`
        return None
    except AttributeError:  # version 4 alone: `flash_attn` is an empty namespace
        return None
    except (ImportError, OSError) as error:  # built for another torch
        log.warning("%s is installed but cannot be loaded (%s): looking for another attention kernel", module, error)
        return None


def flash_attn_2_or_3(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, call: VarlenCall, scaling: float | None
) -> Tensor:
    """Versions 2 and 3 agree in what is used here; early builds of 3 also return the log-sum-exp."""
    return _output(function(q, k, v, **_lengths(call), softmax_scale=scaling, causal=call.causal))


def flash_attn_4(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, call: VarlenCall, scaling: float | None
) -> Tensor:
    """Version 4: early betas take no maximal lengths; all return the log-sum-exp too."""
    known = inspect.signature(function).parameters
    lengths = {name: value for name, value in _lengths(call).items() if name in known}
    return _output(function(q, k, v, **lengths, softmax_scale=scaling, causal=call.causal))


def torch_varlen(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, call: VarlenCall, scaling: float | None
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn: causal is a window without keys to the right.

    From torch 2.12 on it takes fewer heads of keys than of queries, if asked to; torch 2.11 gets them repeated.
    """
    grouped = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(function).parameters:
            grouped = {"enable_gqa": True}
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    window = (-1, 0) if call.causal else (-1, -1)
    lengths = (call.cu_queries, call.cu_keys, call.max_queries, call.max_keys)
    return function(q, k, v, *lengths, scale=scaling, window_size=window, **grouped)


def _lengths(call: VarlenCall) -> dict[str, Any]:
    return {
        "cu_seqlens_q": call.cu_queries,
        "cu_seqlens_k": call.cu_keys,
        "max_seqlen_q": call.max_queries,
        "max_seqlen_k": call.max_keys,
    }


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
