"""Open an expert from a Hugging Face checkpoint, with one error message that says what is missing."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from pixel_sail.config import ConfigError, ExpertConfig

FILES = "config.json, preprocessor_config.json (or processor_config.json) and *.safetensors"


def load_pretrained(
    expert: ExpertConfig, model_class: type[PreTrainedModel], model_types: tuple[str, ...], needs: str
) -> PreTrainedModel:
    """`model_class` with the weights of `expert.path` (local folder or hub name), float32.

    Raises ConfigError if it cannot be loaded, if its model type is none of `model_types`, or if a weight whose name
    starts with `needs` is missing or has another shape, since it would be random.
    """
    try:
        model_type = AutoConfig.from_pretrained(expert.path).model_type
        if model_type not in model_types:
            raise ConfigError(
                f"expert {expert.name!r}: {expert.path} is a {model_type!r} checkpoint, kind {expert.kind!r} needs one "
                f"of {', '.join(model_types)}"
            )
        model, report = model_class.from_pretrained(
            expert.path, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else cannot_load(expert, FILES, error) from error
    wrong = {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}
    random = sorted(key for key in wrong if key.startswith(needs))
    if random:
        raise ConfigError(
            f"expert {expert.name!r}: the checkpoint {expert.path} has no fitting weights for {len(random)} tensors of "
            f"{model_class.__name__}, first {random[0]}: it is damaged or not of this kind"
        )
    return model


def normalization(expert: ExpertConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB in 0..1, from the checkpoint's image processor. Raises ConfigError."""
    try:
        processor = AutoImageProcessor.from_pretrained(expert.path)
    except (OSError, ValueError) as error:
        raise cannot_load(expert, FILES, error) from error
    if not processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    return list(processor.image_mean), list(processor.image_std)


def cannot_load(expert: ExpertConfig, files: str, cause: Exception | str) -> ConfigError:
    """An error that says what to download and where to put it."""
    local = Path(expert.path).is_dir()
    missing = f"the folder {expert.path} is not complete" if local else f"no folder {expert.path}, and no hub answers"
    return ConfigError(
        f"cannot load the expert {expert.name!r} (kind {expert.kind}): {missing}. Without hub access, download its "
        f"repository ({files}) on another machine, put it into a folder here and give that folder as the expert's "
        f"path. The cause: {cause}"
    )
