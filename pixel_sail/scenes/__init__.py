"""The drawn world: a dataset with exact masks and unambiguous texts, and the training of a small expert on it.

Read `types.py` first: the nouns. Then, in the order in which an image comes to be:

1. `kinds.py`, `sprite.py`, `colours.py`: the shape and the colour of one object.
   `layout.py`: which objects stand where. `render.py`, `night.py`: the pixels, by day and by night.
2. `resolver.py`: which objects a query picks, with margins. `facts.py`: what is surely true of an image.
   `language.py`, `descriptions.py`: queries and facts as text.
3. The texts of an image. `expressions.py`, `long_expressions.py`: referring expressions.
   `region_items.py`: texts about regions, from `multiple_choice.py`, `region_requests.py`, `conversations.py`.
   `lessons.py`: many requests of one kind.
   `grounded_texts.py`: captions with masks, and reasoning.
   `two_option_questions.py`, `image_pairs.py`: pairs of images that differ in one property.
4. `draw.py`: one image and its record with all these texts. `dataset.py`: all images, the folder, the splits.
5. `write.py` calls the writers: `write_references.py`, `write_regions.py`, `write_grounded.py`, `write_pixmmvp.py`,
   `write_image_text.py`,
   `knowledge.py` (scenes.json). `formats.py`, `panoptic.py`, `outline.py` (polygons) serve them.

`expert_*.py` train a small Mask2Former on panoptic annotations, an expert to distil from (tools/train_expert.py).
"""

from pixel_sail.scenes.dataset import LONG_SIDES_PX, generate, stored_request
from pixel_sail.scenes.render import STYLES

__all__ = ["LONG_SIDES_PX", "STYLES", "generate", "stored_request"]
