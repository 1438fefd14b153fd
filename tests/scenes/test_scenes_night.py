"""The night style: the same things in other images; the default style does not change."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pixel_sail import scenes
from pixel_sail.errors import FileError

IMAGES, SEED, SIDE = 12, 5, 96


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("styles")
    scenes.generate(root / "day", IMAGES, SEED, SIDE, workers=1)
    scenes.generate(root / "night", IMAGES, SEED, SIDE, workers=1, style="night")
    return root / "day", root / "night"


def _read(folder, name):
    return json.loads((folder / name).read_text())


def _images(folder):
    return [np.asarray(Image.open(path), float) for path in sorted((folder / "images/train2014").glob("*.jpg"))]


def test_the_same_things_in_other_light(folders):
    day, night = (_read(folder, "refcoco/instances.json") for folder in folders)
    assert day["annotations"] == night["annotations"] and day["images"] == night["images"]
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*.json")} for folder in folders]
    assert {name for name in files[0] ^ files[1] if not name.startswith("reason_seg/")} == set()
    for light, dark in zip(*map(_images, folders), strict=True):
        assert dark.shape == light.shape and dark.mean() < 0.6 * light.mean()


def test_things_can_still_be_told_from_the_ground(folders):
    """Colours inside a mask and around it differ, for nearly all things."""
    night = folders[1]
    images, seen = _images(night), []
    for annotation in _read(night, "refcoco/instances.json")["annotations"]:
        image = images[annotation["image_id"] - 1]
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        x, y, w, h = (int(v) for v in annotation["bbox"])
        ring = np.zeros_like(mask)
        ring[max(0, y - 6) : y + h + 6, max(0, x - 6) : x + w + 6] = True
        ring &= ~mask
        seen.append(np.abs(image[mask].mean(0) - image[ring].mean(0)).max())
    assert np.mean(np.array(seen) > 6) > 0.9, sorted(seen)


def test_the_same_request_gives_the_same_bytes(folders, tmp_path):
    scenes.generate(tmp_path / "again", IMAGES, SEED, SIDE, workers=2, style="night")
    for path in sorted(folders[1].rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folders[1])).read_bytes(), path


def test_styles_are_not_taken_for_each_other(folders, tmp_path):
    assert "style" not in scenes.stored_request(
        folders[0]
    )  # folders from before there were styles are still recognised
    assert scenes.stored_request(folders[1])["style"] == "night"
    with pytest.raises(FileError, match="holds scenes of another request"):
        scenes.generate(folders[0], IMAGES, SEED, SIDE, workers=1, style="night")
    with pytest.raises(ValueError, match="a style of"):
        scenes.generate(tmp_path / "dusk", IMAGES, SEED, SIDE, workers=1, style="dusk")
