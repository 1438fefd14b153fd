"""The process in which pycocoevalcap and its Java run: started by captions.py, imports nothing of pixel_sail.

    python caption_worker.py FOLDER

FOLDER/request.json: {"names": ["meteor", "cider"], "sets": [{"predictions": [text], "references": [[text]]}]}
FOLDER/reply.json: for each set {"scores": {name: number or null}, "problems": {name: text}}

Whoever starts it holds its standard input open. When that ends, so do this process and its Java, and FOLDER goes.
The package writes beside its jars and, in METEOR, waits for ever on a lock after any error: so it runs from links in
FOLDER, and this process ends without cleaning up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

SHOWN_CHARACTERS = 500  # of what Java wrote
_FIRST = "start"
_kept: list[Any] = []  # scorers after an error: METEOR's __del__ would wait for a lock that nobody releases


def main(folder: Path) -> None:
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    package = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, folder / "pycocoevalcap", copy_function=os.symlink, ignore=ignored)
    sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(sys.stderr):  # the package prints its progress
        scorers: dict[str, Any] = {}
        replies = [_score(one_set, request["names"], scorers) for one_set in request["sets"]]
    (folder / "reply.partial").write_text(json.dumps(replies), encoding="utf-8")
    (folder / "reply.partial").replace(folder / "reply.json")


def _score(captions: dict[str, Any], names: list[str], scorers: dict[str, Any]) -> dict[str, Any]:
    """`scorers`: those that other sets have used; METEOR's Java loads its tables for seconds."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predicted = {i: [text] for i, text in enumerate(captions["predictions"])}
    true = dict(enumerate(captions["references"]))
    reply: dict[str, Any] = {"scores": dict.fromkeys(names), "problems": {}}
    try:
        predicted, true = (_tokenized(PTBTokenizer(), texts) for texts in (predicted, true))
    except Exception as error:  # whatever the package and its Java do, the reply says it
        reply["problems"] = dict.fromkeys(names, _in_words("the PTB tokenizer", error))
        return reply
    for name in names:
        try:
            if name not in scorers:
                scorers[name] = _scorer(name)
            reply["scores"][name] = float(scorers[name].compute_score(true, predicted)[0])
        except Exception as error:
            scorer = scorers.pop(name, None)
            _kept.append(scorer)
            reply["problems"][name] = _in_words(name.upper(), error) + _errors_of(scorer)
    return reply


def _tokenized(tokenizer: Any, texts: dict[int, list[str]]) -> dict[int, list[str]]:
    """As the package does it, which does not notice that Java fails: a word in front must come back, and every line."""
    first = {-1: [{"caption": _FIRST}]}
    tokens = tokenizer.tokenize(first | {i: [{"caption": text} for text in own] for i, own in texts.items()})
    if tokens.pop(-1, None) != [_FIRST] or any(len(own) != len(tokens.get(i, ())) for i, own in texts.items()):
        raise RuntimeError("Java ended before it gave all lines")
    return tokens


def _errors_of(scorer: Any) -> str:
    """What METEOR's Java wrote to stderr."""
    process = getattr(scorer, "meteor_p", None)
    if process is None:
        return ""
    process.kill()
    text = process.stderr.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Picked up " not in line]
    return f": {' / '.join(lines)[-SHOWN_CHARACTERS:]}" if lines else ""


def _scorer(name: str) -> Any:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor

    return {"meteor": Meteor, "cider": Cider}[name]()


def _in_words(what: str, error: Exception) -> str:
    return f"{what} failed ({type(error).__name__}: {error})"


def _end_with_parent(folder: Path) -> None:
    """Waits for the end of standard input; then nobody wants the scores."""
    os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # Java, too: it is of this process's group


if __name__ == "__main__":
    status = 0
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    sys.stderr.flush()
    os._exit(status)
