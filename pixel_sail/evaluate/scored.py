"""The scores of an answer in its line of a predictions file; lines of a model without a score head have none."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from pixel_sail.serve.predictor import Answer

DIGITS = 5  # of a score, to which a float32 is about exact


def score_fields(answer: Answer) -> dict[str, Any]:
    """`presence`, and `score`: the mean of the scores of the masks, which a line unites; None without a mask."""
    if answer.scores is None or answer.presence is None:
        return {}
    score = round(fmean(answer.scores), DIGITS) if answer.scores else None
    return {"presence": round(answer.presence, DIGITS), "score": score}
