"""Draws one image and chooses all its texts: expressions, captions, questions."""

from pathlib import Path

import numpy as np
from PIL import Image

from pixel_sail.data.masks import encode_mask
from pixel_sail.scenes.expressions import choose_grefs, choose_refs
from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.formats import IMAGES
from pixel_sail.scenes.grounded_texts import choose_grounded_texts
from pixel_sail.scenes.layout import Scene, draw_scene
from pixel_sail.scenes.lessons import choose_lessons
from pixel_sail.scenes.long_expressions import choose_long_refs
from pixel_sail.scenes.outline import object_polygons
from pixel_sail.scenes.panoptic import folder, write_png
from pixel_sail.scenes.region_items import choose_region_items
from pixel_sail.scenes.region_requests import choose_many_requests
from pixel_sail.scenes.render import render
from pixel_sail.scenes.types import ImageRecord, SceneObject

FOLDERS = (IMAGES, folder("train"), folder("val"))  # draw_image writes to them


def draw_image(
    out: Path, index: int, seed: int, long_side_px: int, style: str = "day", lessons: bool = False
) -> ImageRecord:
    """Draw image `index`, write its JPEG and panoptic PNG under `out`, and return its annotations.

    All randomness comes from (seed, index), so the result is the same in any process and for any number of images.
    """
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(index, long_side_px, rng)
    name = f"scenes_{index + 1:012d}.jpg"
    Image.fromarray(render(scene, rng, style)).save(out / IMAGES / name, quality=92, subsampling=0)
    objects = [_object(scene, i) for i in range(len(scene.things))]
    image = ImageFacts(objects, scene.width, scene.height, scene.split)
    # generators of their own: new kinds of text leave images and expressions unchanged
    region_rng = np.random.default_rng([seed, index, 1])
    grounded = choose_grounded_texts(image, np.random.default_rng([seed, index, 3]))
    return ImageRecord(
        image={"id": index + 1, "width": scene.width, "height": scene.height, "file_name": name},
        split=scene.split,
        objects=objects,
        refs=choose_refs(image, rng),
        grefs=choose_grefs(image, rng),
        long_refs=choose_long_refs(image, region_rng),
        regions=choose_region_items(image, scene.owner, index, region_rng),
        grounded=grounded,
        polygons=object_polygons(scene.owner, objects, grounded.reasoning),
        background=write_png(
            out / folder(scene.split) / name.replace(".jpg", ".png"),
            scene.owner,
            [thing.kind for thing in scene.things],
        ),
        many_requests=choose_many_requests(image, np.random.default_rng([seed, index, 9])),
        lessons=choose_lessons(image, seed, index) if lessons else {},
    )


def _object(scene: Scene, i: int) -> SceneObject:
    thing, mask = scene.things[i], scene.owner == i
    ys, xs = np.nonzero(mask)
    left, top = int(xs.min()), int(ys.min())
    return SceneObject(
        kind=thing.kind,
        colour=thing.colour,
        texture=thing.texture,
        size_class=thing.size_class,
        size_px=round(float(thing.size_px), 2),
        depth=i,
        bbox=(left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1),
        area=int(mask.sum()),
        visible_share=round(float(mask.sum() / thing.sprite.cover.sum()), 4),
        centroid=(round(float(xs.mean()) + 0.5, 3), round(float(ys.mean()) + 0.5, 3)),
        segmentation=encode_mask(mask),
    )
