"""The way into lmms-eval, which asks the questions of MME, MMBench, SEED-Bench, MMStar and many more (docs/vqa.md).

lmms-eval finds `manifest` through the entry point of setup.py, and imports the model when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """`--model pixel_sail`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("pixel_sail", simple_class_path="pixel_sail.evaluate.lmms.model.PixelSailLmms")
