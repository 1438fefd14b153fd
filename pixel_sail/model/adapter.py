"""Adapter folders in PEFT's format: LoRA weights, trained rows of token tables, parts trained in full; merged at load.

adapter_config.json and adapter_model.safetensors, as weights/adapter.py and PEFT write them. Nothing of PEFT is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixel_sail.errors import WeightsError
from pixel_sail.folders.checksums import check_sums
from pixel_sail.folders.files import ADAPTER_CONFIG, CONFIG, read_settings
from pixel_sail.folders.find import find_export
from pixel_sail.folders.weight_files import WeightFiles, refuse_problems

PREFIX = "base_model.model."  # PEFT's, of every name
LORA_A, LORA_B, ROWS = ".lora_A.weight", ".lora_B.weight", ".token_adapter.trainable_tokens_delta"
MAX_RANK = 65_536
# What changes the meaning of the weights and is not computed here.
_UNKNOWN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "layer_replication", "fan_in_fan_out",
            "lora_bias", "use_qalora", "alora_invocation_tokens", "target_parameters")  # fmt: skip


def split_adapter(folder: Path) -> tuple[Path, Path | None]:
    """(the model's folder, the adapter's): (`folder`, None) for a model, for an adapter the base that it names.

    Raises WeightsError for an adapter that names none, and for a base as `find_export`.
    """
    path = folder / ADAPTER_CONFIG
    if (folder / CONFIG).exists() or not path.exists():
        return folder, None
    base = read_settings(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise WeightsError(f"{path}: base_model_name_or_path is {base!r:.80}; give the folder or hub id of its model")
    found = find_export(base)
    if not (found / CONFIG).exists():
        raise WeightsError(
            f"{path}: base_model_name_or_path is {base[:200]!r}, and no model is there; write where it is"
        )
    return found, folder


@torch.no_grad()
def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Change the weights of `model`, in place, by the adapter in `folder`; sums in float32, stored in its dtype.

    W + alpha / r * B @ A (LoRA, arXiv 2106.09685); rows and full weights are replaced. Raises WeightsError for an
    adapter of another kind or another model.
    """
    settings, files = _checked(folder / ADAPTER_CONFIG), WeightFiles(folder)
    check_sums(folder)
    weights = dict(model.named_parameters(remove_duplicate=False))
    scale, problems = settings["lora_alpha"] / settings["r"], []
    for key in files.shapes:
        name = key.removeprefix(PREFIX)
        if name.endswith(LORA_B):
            continue
        ending = next((ending for ending in (LORA_A, ROWS) if name.endswith(ending)), "")
        target = f"{name.removesuffix(ending)}.weight" if ending else name
        weight = weights.get(target)
        if weight is None:
            problems.append(f"unexpected {key}")
            continue
        try:
            changed = _changed(weight.data, files, key, ending, settings, scale)
        except (RuntimeError, KeyError, IndexError):
            problems.append(f"{key} {files.shapes[key]} does not fit {target} {tuple(weight.shape)}")
            continue
        weight.data = changed.to(weight.dtype)
    refuse_problems(problems, folder)


def _changed(
    weight: Tensor, files: WeightFiles, key: str, ending: str, settings: dict[str, Any], scale: float
) -> Tensor:
    """`weight` after the tensor `key` of an adapter, float32 or of the adapter's dtype."""
    tensor = files.finite_tensor(key).to(weight.device)
    if ending == LORA_A:
        b = files.finite_tensor(f"{key.removesuffix(LORA_A)}{LORA_B}").to(weight.device)
        product = b.float() @ tensor.float()
        if product.shape != weight.shape:
            raise IndexError
        return weight.float() + scale * product
    if ending == ROWS:
        module = key.removeprefix(PREFIX).removesuffix(ROWS)
        ids = next(
            ids for name, ids in settings["trainable_token_indices"].items() if f".{module}".endswith(f".{name}")
        )
        return weight.float().index_copy(0, torch.tensor(ids, device=weight.device), tensor.float())
    if tensor.shape != weight.shape:
        raise IndexError
    return tensor


def _checked(path: Path) -> dict[str, Any]:
    """The settings of an adapter. Raises WeightsError for one that is not LoRA as it is computed here."""
    settings = read_settings(path)
    if settings.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: peft_type is {settings.get('peft_type')!r:.40}; LORA is read")
    unknown = [key for key in _UNKNOWN if settings.get(key)]
    if settings.get("bias", "none") != "none":
        unknown.append("bias")
    if unknown:
        raise WeightsError(f"{path}: {', '.join(unknown)} is set, which is not computed; merge the adapter with PEFT")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK or type(alpha) not in (int, float) or not 0 < alpha < 1e9:
        raise WeightsError(f"{path}: r is {rank!r:.40} and lora_alpha {alpha!r:.40}; give two numbers above 0")
    rows = settings.get("trainable_token_indices") or {}
    if not isinstance(rows, dict) or not all(
        isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids) for ids in rows.values()
    ):
        raise WeightsError(f"{path}: trainable_token_indices is no object of lists of token ids")
    return settings | {"trainable_token_indices": rows}
