"""The names of files about a benchmark: its own name, without what Windows, archives or object stores refuse."""

from __future__ import annotations

import hashlib
import re

MAX_CHARACTERS = 80  # of a benchmark's part of a file name; file systems take 255 bytes in all
_PLAIN = re.compile(r"[A-Za-z0-9_]+\+?(:[A-Za-z0-9_]+)*")  # of every benchmark but those that carry a path
_SUFFIX = re.compile(r"(rank\d+\.|partial\.|verdicts\.|requests\.|replaced\.)?jsonl|manifest\.json|left_out\.txt")


def file_name(benchmark: str) -> str:
    """ "refcoco+:val" -> "refcocoplus_val". Any other name ends in a hash, because what it loses may tell two apart."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", benchmark.replace("+", "plus"))
    if _PLAIN.fullmatch(benchmark) and len(plain) <= MAX_CHARACTERS:
        return plain
    digits = hashlib.sha256(benchmark.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.removesuffix('.jsonl')[: MAX_CHARACTERS - 9]}-{digits}"


def earlier_file_name(benchmark: str) -> str:
    """As files of earlier versions are named: with the colons."""
    return benchmark.removesuffix(".jsonl").replace("/", "_")


def suffix_of(name: str, stem: str) -> str | None:
    """ "jsonl", "rank3.jsonl", ... if `name` is a file of predictions/ that begins with `stem`; else None."""
    suffix = name.removeprefix(f"{stem}.")
    return suffix if suffix != name and _SUFFIX.fullmatch(suffix) else None
