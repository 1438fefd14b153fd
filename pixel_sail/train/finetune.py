"""Train a part of a model: frozen weights and low-rank adapters (LoRA, arXiv 2106.09685).

PEFT puts the adapters on linears of the decoder's layers. The rest of the decoder is frozen except for the rows of our
special tokens (NewRows): a decoder that never saw [SEG] could not learn to write it otherwise. Patch embedding, prompt
fusion and mask head are trained in full. weights/merge.py makes plain weights of all this.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pixel_sail.config import Config, ConfigError
from pixel_sail.folders.place import Place
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens
from pixel_sail.train import distributed

LORA_SEED = 7919  # added to run.seed, so that adapters do not depend on what was drawn before them


class NewRows(nn.Module):
    """An embedding or an output head in which only the rows `ids` are trained; the table is frozen.

    The table is not copied, and it has neither gradient nor optimizer state.
    """

    def __init__(self, table: nn.Module, ids: Sequence[int], rows: nn.Parameter | None = None):
        super().__init__()
        self.table = table
        self.register_buffer("ids", torch.tensor(ids))  # (N,) int64
        self.rows = nn.Parameter(table.weight.detach()[self.ids].clone()) if rows is None else rows  # (N, D)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (..., D) of token ids, or logits (..., V) of states (..., D)."""
        if isinstance(self.table, nn.Embedding):
            is_row = x[..., None] == self.ids
            rows = F.embedding(is_row.int().argmax(-1), self.rows)
            return torch.where(is_row.any(-1, keepdim=True), rows, self.table(x))
        logits = self.table(x)
        return logits.index_copy(-1, self.ids, F.linear(x, self.rows).to(logits.dtype))


def prepare_finetuning(model: PixelSail, tokenizer: PreTrainedTokenizerBase, config: Config) -> list[str]:
    """Apply train.freeze and train.lora to `model`, in place. Returns lines for the user.

    Raises ConfigError for patterns and targets that match nothing, and for a model that cannot be adapted.
    """
    train, parameters = config.train, sum(parameter.numel() for parameter in model.parameters())
    lines = [freeze(model, pattern) for pattern in train.freeze]
    if train.lora is not None:
        lines.append(_add_adapters(model, tokenizer, config))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trained == 0:
        raise ConfigError(f"train.freeze={train.freeze} leaves nothing to train")
    if lines:
        lines.append(f"trained: {trained / 1e6:.2f} million parameters, of a model of {parameters / 1e6:.2f}")
    return lines


def freeze(model: nn.Module, pattern: str) -> str:
    """Freeze every parameter whose name matches. Returns a line with the names; layers of one kind share a name."""
    names = [name for name, _ in model.named_parameters() if fnmatchcase(name, pattern)]
    if not names:
        known = ", ".join(_by_kind([name for name, _ in model.named_parameters()]))
        raise ConfigError(f"train.freeze: {pattern!r} matches no parameter; there are {known}")
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return f"frozen by {pattern}: {', '.join(_by_kind(names))}"


def _add_adapters(model: PixelSail, tokenizer: PreTrainedTokenizerBase, config: Config) -> str:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("train.lora needs PEFT: pip install 'pixel_sail[lora]'")
    import peft

    lora, decoder = config.train.lora, model.language_model
    tables = _TokenTables(decoder)
    targets = _targets(decoder, lora.targets)
    if lora.quantize == "nf4":
        from pixel_sail.train.quantize import quantize_linears

        quantize_linears(decoder, targets, config.train)
        Place(distributed.device()).put(model)  # what is left of it in its files
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed + LORA_SEED)
        peft.inject_adapter_in_model(settings, decoder)  # it also freezes every other weight
    tables.train_rows(SpecialTokens.of(tokenizer).all_ids)
    weights = "4-bit weights" if lora.quantize == "nf4" else "frozen weights"
    return f"adapters of rank {lora.rank} on the {weights} of {', '.join(_by_kind(targets))}"


class _TokenTables:
    """Input embeddings and output head of a decoder, recorded before it is frozen."""

    def __init__(self, decoder: PreTrainedModel):
        self.decoder = decoder
        self.embeddings, self.head = decoder.get_input_embeddings(), decoder.get_output_embeddings()
        self.tied = self.head.weight is self.embeddings.weight
        self.are_trained = [table.weight.requires_grad for table in (self.embeddings, self.head)]
        if type(self.embeddings) is not nn.Embedding or type(self.head) is not nn.Linear or self.head.bias is not None:
            raise ConfigError(
                f"train.lora: {type(decoder).__name__} has embeddings or a head with more than a table, so that the "
                "rows of our tokens cannot be trained alone; train it in full"
            )

    def train_rows(self, ids: Sequence[int]) -> None:
        """Train the rows `ids`, except in a table that train.freeze has frozen."""
        rows = None
        if self.are_trained[0]:
            embeddings = NewRows(self.embeddings, ids)
            self.decoder.set_input_embeddings(embeddings)
            rows = embeddings.rows if self.tied else None
        if self.are_trained[1]:
            self.decoder.set_output_embeddings(NewRows(self.head, ids, rows))


def _targets(decoder: PreTrainedModel, requested: list[str] | None) -> list[str]:
    """Names of the linears that get adapters: in the layers, not frozen, with a part of their name in `requested`."""
    layers = next(name for name, module in decoder.named_modules() if module is decoder.get_decoder().layers)
    linears = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{layers}.") and module.weight.requires_grad
    ]
    if requested is None:
        return linears
    parts = {part for name in linears for part in name.split(".")}
    unknown = [target for target in requested if target not in parts]
    if unknown:
        raise ConfigError(f"train.lora.targets: {unknown} are in no name of a linear: {', '.join(_by_kind(linears))}")
    return [name for name in linears if set(requested) & set(name.split("."))]


def _by_kind(names: Sequence[str]) -> list[str]:
    """Names with * for the number of a layer, and how often each occurs."""
    kinds = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    return [kind if count == 1 else f"{kind} ({count})" for kind, count in kinds.items()]
