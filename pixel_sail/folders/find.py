"""Where a model is: its folder, the export of a run, or a hub repository org/name (or org/name@revision).

huggingface_hub decides where the cache is, which hub is asked and with which token, and whether one is asked at all
(HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from pathlib import Path

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.load import in_a_line
from pixel_sail.shipped import here_or_shipped

# Of a repository: no pickles, no Python, no second copy of the weights in a subfolder.
DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
NOT_DOWNLOADED = ("*/*", "consolidated*")

_OWN_ID = re.compile(r"[\w.-]+/[\w.-]+(@.+)?")  # of one of our models; a base may have a name without organisation


def find_export(source: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of a model of ours at `source`: of a run its export/, of a hub id its repository.

    Anything else is given back as it is. Raises WeightsError for a run that has no export yet, and as `own_folder`.
    """
    path = own_folder(source, revision, local_files_only)
    if (path / CONFIG).exists() or not (path / "checkpoints").is_dir():
        return path
    if (path / "export").is_dir():
        return path / "export"
    steps = sorted((path / "checkpoints").glob("step_*"))
    advice = f": tools/export.py {steps[-1]} writes one" if steps else ""
    raise WeightsError(f"{path} is a run that has not ended and has no export/{advice}")


def own_folder(source: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of a model of ours: `source`, or that of a hub repository if nothing is there and it has such a name.

    A path that can be no id, or lies in a folder that is here ("runs/mistyped"), is given back as it is, for messages
    that know what is expected there; the small model is found from any folder (pixel_sail/shipped.py). Raises
    WeightsError as `local_folder`.
    """
    if not may_be_id(source):
        _refuse_revision(source, revision)
        return here_or_shipped(Path(source))
    return local_folder(source, revision, local_files_only)


def may_be_id(source: str | Path) -> bool:
    """Whether `source` may name a model of ours on a hub: org/name or org/name@revision, and no path that is here."""
    path = Path(source)
    return not (path.exists() or path.parent.is_dir()) and _OWN_ID.fullmatch(str(source)) is not None


def local_folder(source: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """`source` itself if it is a folder, else the folder of a hub repository of that id, downloaded or in the cache.

    `revision`: a branch, a tag or a commit; also as `source@revision`. `local_files_only`: as HF_HUB_OFFLINE=1, for
    this call. Raises WeightsError if it is neither.
    """
    if Path(source).is_dir():
        _refuse_revision(source, revision)
        return Path(source)
    from huggingface_hub import snapshot_download

    name, _, named = str(source).partition("@")
    if revision and named and revision != named:
        raise WeightsError(f"{source} names a revision, and revision={revision!r} another one; give one of them")
    revision = revision or named or None
    try:
        folder = snapshot_download(
            name, revision=revision, local_files_only=local_files_only, allow_patterns=DOWNLOADED,
            ignore_patterns=NOT_DOWNLOADED,
        )  # fmt: skip
    except Exception as error:  # of the hub, the network, the cache
        reason = _reason(error, name, revision, local_files_only)
        raise WeightsError(f"{source} is no folder, and no hub gives it: {reason}") from error
    return Path(folder)


def _refuse_revision(source: str | Path, revision: str | None) -> None:
    if revision is not None:
        raise WeightsError(f"revision={revision!r} is of a hub repository; {source} is a folder, which has none")


def _reason(error: Exception, name: str, revision: str | None, local_files_only: bool) -> str:
    """Why huggingface_hub gives no folder, in words, and what to do."""
    from huggingface_hub import constants, errors

    shown = f"{name} at revision {revision}" if revision else name
    match error:
        case errors.HFValidationError():
            return f"an id is name or organisation/name, of letters, digits and -_. ({in_a_line(error)})"
        case errors.GatedRepoError():
            return (
                f"{name} is gated: accept its conditions at {constants.ENDPOINT}/{name}, then log in with `hf auth "
                "login` or set HF_TOKEN"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"{constants.ENDPOINT} has no model {name}; check the spelling of the folder or id, and for a private "
                "model log in with `hf auth login` or set HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {revision}; give a branch, a tag or a commit"
        case errors.IncompleteSnapshotError():
            return f"the cache {constants.HF_HUB_CACHE} has only a part of {shown}: repeat it with a network"
        case errors.LocalEntryNotFoundError():
            why = f"nothing is fetched ({'local_files_only' if local_files_only else 'HF_HUB_OFFLINE'})"
            if not local_files_only and not constants.HF_HUB_OFFLINE:
                why = f"{constants.ENDPOINT} cannot be reached ({in_a_line(error.__cause__ or error)})"
            command = f"hf download {name}{f' --revision {revision}' if revision else ''}"
            return (
                f"{why}, and {shown} is not in the cache {constants.HF_HUB_CACHE}: run `{command}` where there is a "
                "network and copy the cache, or give a folder"
            )
    return in_a_line(error)
