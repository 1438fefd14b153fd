"""One decoder-only transformer that reads image patches and text together and answers in text and masks.

    from pixel_sail import Predictor

    predictor = Predictor.from_pretrained("data/models/tiny")

The two names below are imported at first use, so that `import pixel_sail` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixel_sail.model.pixel_sail import PixelSail
    from pixel_sail.serve.predictor import Predictor

__version__ = "0.2.0"
__all__ = ["PixelSail", "Predictor", "__version__"]

_MODULES = {"PixelSail": "pixel_sail.model.pixel_sail", "Predictor": "pixel_sail.serve.predictor"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
