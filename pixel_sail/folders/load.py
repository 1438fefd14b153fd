"""Config, tokenizer, processor and network of a model folder, through transformers, with one kind of error.

No other file calls transformers' `from_pretrained` (tests/folders says so). transformers raises anything on bad input,
so each call is wrapped; its files have been looked at before, so that the usual faults have messages of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pixel_sail.errors import WeightsError
from pixel_sail.folders.checksums import check_sums
from pixel_sail.folders.files import (
    CONFIG,
    CONFIG_FILES,
    PROCESSOR_FILES,
    SENTENCEPIECE,
    TOKENIZER_FILES,
    VOCABULARIES,
    check_folder,
    read_settings,
)
from pixel_sail.folders.listing import MAX_LISTED
from pixel_sail.folders.place import has_rounded_buffers, stored_dtype
from pixel_sail.folders.settings import check_settings
from pixel_sail.folders.values import read_values
from pixel_sail.folders.weight_files import WeightFiles, check_finite

T = TypeVar("T")
N = TypeVar("N", bound=torch.nn.Module)
NetworkClass = type[PreTrainedModel] | type[_BaseAutoModelClass]

# Nothing is fetched, nothing asked, no code of the folder run.
_CLOSED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# Texts that a tokenizer must get through at load: patterns that take for ever show themselves on long runs.
PROBES = ("a", "a" * 64 + "!", "1" * 64 + "a", " " * 64 + "a", "-" * 64 + "a", "Aé1 " * 16)
_READERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # package: what it is imported as
MAX_CAUSE = 400  # characters of what a library says
_SLACK = 2  # a model may have this many times the numbers of its weight files: tied and repeated weights, new heads
_SLACK_NUMBERS = 100_000_000  # and this many more


def load_config(folder: Path, gguf_file: str | None = None) -> PretrainedConfig:
    """The config of a model folder, or of a GGUF file in it. Raises WeightsError."""
    if gguf_file is None:
        check_folder(folder, CONFIG_FILES)
        path = folder / CONFIG
        settings = read_settings(path)
        check_settings(settings, path)
        kind = settings.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            code = "; the code that it names (auto_map) is not run" if settings.get("auto_map") else ""
            raise WeightsError(
                f"{path}: model_type is {kind!r}, which this version of transformers does not know{code}"
            )
    return _called(AutoConfig.from_pretrained, folder, "config", **_CLOSED, **_gguf(gguf_file))


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, or of a GGUF file in it. Raises WeightsError, also if it would know no word."""
    if gguf_file is None:
        check_folder(folder, TOKENIZER_FILES)
        if not any((folder / name).exists() for name in VOCABULARIES) and not list(folder.glob("*.tiktoken")):
            raise WeightsError(
                f"{folder} has no tokenizer: it needs tokenizer.json or tokenizer.model (or another of "
                f"{', '.join(VOCABULARIES[2:])}); download it too"
            )
        _check_sentencepiece(folder)
    tokenizer = _called(AutoTokenizer.from_pretrained, folder, "tokenizer", **_CLOSED, **_gguf(gguf_file))
    rows = _called(lambda _: tokenizer(list(PROBES), add_special_tokens=False)["input_ids"], folder, "tokenizer")
    if not all(rows) or len(tokenizer) <= len(tokenizer.get_added_vocab()):
        raise WeightsError(f"the tokenizer in {folder} knows no word: its files are damaged or incomplete")
    longest = tokenizer.model_max_length
    if type(longest) not in (int, float) or not longest >= 1:
        raise WeightsError(f"{folder}: model_max_length of the tokenizer is {longest!r:.60}; give a number of tokens")
    return tokenizer


def load_processor(kind: type, folder: Path) -> Any:
    """`kind`, a processor class of transformers or an Auto class of one, from a model folder. Raises WeightsError."""
    check_folder(folder, PROCESSOR_FILES)
    for path in (folder / name for name in ("preprocessor_config.json", "processor_config.json")):
        if path.exists():
            check_settings(read_settings(path), path)
    return _called(kind.from_pretrained, folder, "processor", **_CLOSED)


def load_mapped(kind: NetworkClass, folder: Path) -> PreTrainedModel:
    """As `load_network`, in the dtype of the files, so that the weights stay in them and are mapped into memory.

    In float32 where the files have several dtypes, or where buffers of the network are not exact in another one.
    """
    dtype = stored_dtype(WeightFiles(folder, buffers=True).dtypes)
    network = load_network(kind, folder, dtype)
    return load_network(kind, folder, torch.float32) if has_rounded_buffers(network) else network


def load_network(
    kind: NetworkClass,
    folder: Path,
    dtype: torch.dtype | str,
    needs: str = "",
    gguf_file: str | None = None,
) -> PreTrainedModel:
    """`kind`, a model class of transformers or an Auto class of one, with weights from *.safetensors or a GGUF file.

    Raises WeightsError if it cannot be loaded, if values are not finite, and if a weight whose name starts with `needs`
    is missing or has another shape, since it would be random.
    """
    config, values = load_config(folder, gguf_file), None
    if gguf_file is None and not needs:
        values = read_values(WeightFiles(folder, buffers=True))
    elif gguf_file is None:
        check_sums(folder)
    if gguf_file is None:
        check_size(kind, config, folder)
    options = {"use_safetensors": True} if gguf_file is None else _gguf(gguf_file)
    network, report = _called(
        kind.from_pretrained,
        folder,
        "model",
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **_CLOSED,
        **options,
    )
    wrong = {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}
    random = sorted(key for key in wrong if key.startswith(needs))
    if random:
        raise WeightsError(
            f"{folder} has no fitting weights for {len(random)} tensors of {type(network).__name__}, first "
            f"{random[0]}: it is damaged or not of this kind"
        )
    tensors = {name: tensor for name, tensor in network.named_buffers() if name.endswith("inv_freq")}
    if values is None:
        tensors |= network.state_dict()
    else:
        values.check_finite(network.dtype)
    check_finite({name: tensor for name, tensor in tensors.items() if name.startswith(needs)}, folder)
    return network


def on_meta(build: Callable[[], N], path: Path) -> N:
    """What `build` builds, with shapes and without values: nothing is allocated.

    Raises WeightsError if its config, the file `path`, describes none that can be built.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:
        raise WeightsError(f"{path} describes no model that can be built: {in_a_line(error)}") from error


def in_a_line(error: BaseException) -> str:
    """An error of a library in one line of bounded length, with its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MAX_CAUSE]}{'...' * (len(text) > MAX_CAUSE)}"


def check_size(kind: NetworkClass, config: PretrainedConfig, folder: Path, pickled: bool = False) -> None:
    """Compare a network with the headers of its weights, before it is allocated. Raises WeightsError.

    `pickled`: they may be in *.bin.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # its weights are packed; their shapes say nothing
    stored = WeightFiles(folder, buffers=True, pickled=pickled).shapes
    if issubclass(kind, _BaseAutoModelClass):
        network = on_meta(lambda: kind.from_config(config, trust_remote_code=False), folder / CONFIG)
    else:
        own = _called(kind.config_class.from_pretrained, folder, "config", **_CLOSED)
        network = on_meta(lambda: kind(own), folder / CONFIG)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    held = sum(torch.Size(shape).numel() for shape in stored.values())
    differing = [
        f"{name}: file {stored[name]}, model {tuple(tensor.shape)}"
        for name, tensor in network.state_dict().items()
        if name in stored and stored[name] != tuple(tensor.shape)
    ]
    check_numbers(numbers, held, folder, differing)


def check_numbers(described: int, held: int, folder: Path, differing: Sequence[str] = ()) -> None:
    """Raise WeightsError if a config describes many more numbers than its weight files hold; lists some `differing`."""
    if described > _SLACK * held + _SLACK_NUMBERS:
        raise WeightsError(
            f"{folder / CONFIG} describes a model of {described:,} numbers, its weight files hold {held:,}. "
            f"{'; '.join(differing[:MAX_LISTED]) or 'They do not belong together, or files are missing'}"
        )


def _check_sentencepiece(folder: Path) -> None:
    """Raise WeightsError for a SentencePiece model alone where the packages that read it are not installed.

    transformers would take it for something else, and say that another package is missing.
    """
    model = next((folder / name for name in SENTENCEPIECE if (folder / name).exists()), None)
    if model is None or any((folder / name).exists() for name in VOCABULARIES if name not in SENTENCEPIECE):
        return
    missing = [name for name, module in _READERS.items() if not _is_installed(module)]
    if missing:
        raise WeightsError(
            f"{model} is a SentencePiece model, and to read it {' and '.join(missing)} must be installed: "
            "`pip install 'pixel_sail[sentencepiece]'`. What is converted needs it no more: it has a tokenizer.json"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _gguf(gguf_file: str | None) -> dict[str, str]:
    return {} if gguf_file is None else {"gguf_file": gguf_file}


def _called(load: Callable[..., T], folder: Path, what: str, **options: Any) -> T:
    """What transformers loads. It raises anything on a bad file, so all of that is one error here."""
    try:
        return load(folder, **options)
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust, in tokenizers
            raise
        raise WeightsError(f"the {what} in {folder} cannot be loaded: {in_a_line(error)}") from error
