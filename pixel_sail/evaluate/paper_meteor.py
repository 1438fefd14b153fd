"""METEOR as Pixel-SAIL's evaluation of PerBench computes it; the METEOR 1.5 of COCO captions is in captions.py.

NLTK's METEOR of the captions split at white space, in lower case, with the prediction in the place of the reference.
The two definitions are far apart (54.9 here where METEOR 1.5 has 20.9), so a score always says which one it is.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

DEBIAN_WORDNET = Path("/usr/share/wordnet")  # WordNet 3.0 of Debian's package wordnet-base

# How many lexicographer files WordNet has (lexnames(5WN)). Debian's package leaves their list out, which NLTK's reader
# asks for and METEOR does not use.
_LEXICOGRAPHER_FILES = 45


def missing_requirement() -> str | None:
    """What is missing for this METEOR and how to get it; None where nothing is. Nothing is downloaded."""
    if importlib.util.find_spec("nltk") is None:
        return "no METEOR of the paper: install NLTK (pip install 'pixel_sail[caption]')"
    try:
        wordnet = _wordnet()
    except Exception as error:  # a torn download: NLTK raises whatever its parser stumbles over
        return _damaged(error)
    if wordnet is None:
        return (
            "no METEOR of the paper: it needs WordNet 3.0. Install Debian's package wordnet-base, or run "
            "`python -m nltk.downloader wordnet` (without network: put corpora/wordnet.zip of nltk_data into a folder "
            "that the variable NLTK_DATA names)"
        )
    return None


def paper_meteor(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """`meteor`: the mean over pairs of captions, times 100.

    None without captions, and where `missing_requirement` says so; then `problems` is there too: {"meteor": why}.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references")
    missing = missing_requirement()
    if missing is not None:
        return {"meteor": None, "problems": {"meteor": missing}}
    if not predictions:
        return {"meteor": None}
    from nltk.translate.meteor_score import single_meteor_score

    wordnet = _wordnet()
    try:
        scores = [
            single_meteor_score(prediction.split(), reference.split(), wordnet=wordnet)
            for prediction, reference in zip(predictions, references, strict=True)
        ]
    except Exception as error:  # its files are read as words need them
        return {"meteor": None, "problems": {"meteor": _damaged(error)}}
    return {"meteor": 100 * sum(scores) / len(scores)}


def _damaged(error: Exception) -> str:
    return f"no METEOR of the paper: WordNet cannot be read, install it again ({type(error).__name__}: {error})"


@lru_cache(1)
def _wordnet() -> Any | None:
    """NLTK's reader of WordNet 3.0, of NLTK's data folder or of Debian's package; None where there is neither."""
    import nltk
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
        return wordnet
    except LookupError:
        pass
    if not (DEBIAN_WORDNET / "data.noun").is_file():
        return None
    nltk.data.path.append(str(DEBIAN_WORDNET))  # NLTK reads only below its data folders
    return _debian_reader()


def _debian_reader() -> Any:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class DebianWordNet(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            if file != "lexnames":
                return super().open(file)
            return io.StringIO("".join(f"{i:02d}\tfile{i}\t1\n" for i in range(_LEXICOGRAPHER_FILES)))

        def map_wn(self, version: str = "wordnet") -> None:
            """Between versions, for other languages: not needed."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that other languages are not there
        return DebianWordNet(str(DEBIAN_WORDNET), omw_reader=None)
