import numpy as np
import pytest
from PIL import Image

from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.types import BadSample

MASK = np.zeros((6, 8), dtype=bool)
MASK[1:3, 2:7] = True


def _layer(colour, alpha_inside=255):
    layer = np.zeros((*MASK.shape, 4), dtype=np.uint8)
    layer[MASK] = (*colour, alpha_inside)
    return Image.fromarray(layer)


def _palette(transparent_ground):
    image = Image.fromarray(MASK.astype(np.uint8)).convert("P")
    image.putpalette([200, 200, 200, 128, 0, 0] if transparent_ground else [0, 0, 0, 128, 0, 0])
    return image


FILES = {
    "8 bit, 255": (lambda: Image.fromarray(MASK.astype(np.uint8) * 255), {}),
    "8 bit, 1": (lambda: Image.fromarray(MASK.astype(np.uint8)), {}),
    "1 bit": (lambda: Image.fromarray(MASK), {}),
    "16 bit, 1": (lambda: Image.fromarray(MASK.astype(np.uint16)), {}),
    "16 bit, 255": (lambda: Image.fromarray(MASK.astype(np.uint16) * 255), {}),
    "RGBA, white on a transparent ground": (lambda: _layer((255, 255, 255)), {}),
    "RGBA, red on a transparent ground": (lambda: _layer((255, 0, 0)), {}),
    "RGBA, black on a transparent ground": (lambda: _layer((0, 0, 0)), {}),
    "LA on a transparent ground": (lambda: _layer((255, 255, 255)).convert("LA"), {}),
    "palette": (lambda: _palette(False), {}),
    "palette, transparent ground": (lambda: _palette(True), {"transparency": 0}),
}


@pytest.mark.parametrize("name", FILES)
def test_masks_of_all_kinds_are_the_same_region(tmp_path, name):
    make, options = FILES[name]
    make().save(tmp_path / "mask.png", **options)
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask.png", "--mask"), MASK)


def test_a_mask_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "mask.png").write_text("no image")
    with pytest.raises(BadSample, match=r"^--mask: cannot decode the mask file .*mask.png"):
        read_mask_file(tmp_path / "mask.png", "--mask")
    with pytest.raises(BadSample, match=r"^--mask: no mask file"):
        read_mask_file(tmp_path / "none.png", "--mask")
