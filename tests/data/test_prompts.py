import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pixel_sail.data.image import resized_size
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.prompts import prompt_ids
from pixel_sail.types import BadSample, UnseenRegion


def _pixel(height, width, row, column):
    mask = np.zeros((height, width), dtype=bool)
    mask[row, column] = True
    return mask


def _cells(length_px, cells, pixel):
    """Brute force: the cells that share more than a point with the pixel, in exact integer arithmetic."""
    return [j for j in range(cells) if pixel * cells < (j + 1) * length_px and (pixel + 1) * cells > j * length_px]


@pytest.mark.parametrize("size", [(75, 97), (2000, 1500), (5, 3), (1, 200), (33, 200)])
def test_a_patch_is_prompted_exactly_when_a_pixel_reaches_into_it(size):
    height, width = size
    new_w, new_h = resized_size((width, height), 16, 1024)
    h, w = new_h // 16, new_w // 16
    rng = np.random.default_rng(0)
    for _ in range(10):
        row, column = int(rng.integers(height)), int(rng.integers(width))
        expected = torch.full((h, w), -1)
        for i in _cells(height, h, row):
            for j in _cells(width, w, column):
                expected[i, j] = 3
        ids = prompt_ids({3: encode_mask(_pixel(height, width, row, column))}, size, (h, w), "key")
        assert ids.dtype == torch.int64
        torch.testing.assert_close(ids, expected.flatten())


@pytest.mark.parametrize("size", [(75, 97), (5, 3), (1, 200), (33, 200), (64, 64)])
def test_a_region_of_any_shape_is_pooled_over_its_cells(size):
    """Noise, a rectangle, everything: as torch pools their pixels."""
    rng = np.random.default_rng(1)
    rectangle = np.zeros(size, dtype=bool)
    rectangle[size[0] // 3 : size[0] // 2 + 1, size[1] // 4 :] = True
    for region in (rng.random(size) < 0.01, rng.random(size) < 0.5, rectangle, np.ones(size, dtype=bool)):
        if not region.any():
            continue
        for grid in ((1, 1), (3, 4), (5, 13)):
            pooled = F.adaptive_max_pool2d(torch.from_numpy(region)[None].float(), grid)[0].bool()
            ids = prompt_ids({3: encode_mask(region)}, size, grid, "key")
            assert torch.equal(ids == 3, pooled.flatten())


def test_no_pixel_of_a_large_image_is_lost():
    for row, column in [(0, 0), (2999, 3999), (1500, 2000), (46, 62), (47, 63)]:
        rle = encode_mask(_pixel(3000, 4000, row, column))
        assert (prompt_ids({0: rle}, (3000, 4000), (48, 64), "key") == 0).sum() >= 1


def test_every_patch_of_the_research_code_is_prompted(golden):
    values = np.load(golden / "helpers/mask_patches.npz")
    for i in range(6):
        mask = values[f"mask{i}"]
        for patch in (16, 32):
            width, height = resized_size(mask.shape[::-1], patch, 1024)
            grid = (height // patch, width // patch)
            recorded = values[f"mask{i}_patches{patch}"]
            ids = prompt_ids({2: encode_mask(mask)}, mask.shape, grid, "key").numpy().reshape(grid) == 2
            assert recorded.shape == grid and not (recorded & ~ids).any(), (i, patch)
            assert ids.any() == mask.any()


def test_smaller_regions_win_whatever_the_order():
    large, small = np.ones((32, 32), dtype=bool), np.zeros((32, 32), dtype=bool)
    small[:16, :16] = True
    expected = [[1, 5], [5, 5]]
    for order in ((1, 5), (5, 1)):
        prompts = {k: encode_mask(small if k == 1 else large) for k in order}
        assert prompt_ids(prompts, (32, 32), (2, 2), "key").reshape(2, 2).tolist() == expected
        swapped = {k: encode_mask(small if k == 5 else large) for k in order}
        assert prompt_ids(swapped, (32, 32), (2, 2), "key").reshape(2, 2).tolist() == [[5, 1], [1, 1]]


def test_no_region_loses_its_last_patch_while_another_can_spare_one():
    large, left, corner = (np.zeros((32, 32), dtype=bool) for _ in range(3))
    large[:, :] = left[:, :16] = corner[20:, 20:] = True
    large[:16, 16:] = False  # the two smaller ones cover all the patches that it reaches
    prompts = {4: encode_mask(large), 2: encode_mask(left), 3: encode_mask(corner)}
    assert prompt_ids(prompts, (32, 32), (2, 2), "key").reshape(2, 2).tolist() == [[4, -1], [2, 3]]
    points = {k: encode_mask(_pixel(32, 32, 1, k)) for k in (0, 1)}
    message = "key: the region of <Prompt1> cannot be seen: other regions cover every patch"
    with pytest.raises(UnseenRegion, match=message) as raised:
        prompt_ids(points, (32, 32), (2, 2), "key")
    again = pickle.loads(pickle.dumps(raised.value))  # as a process of workers hands it on
    assert raised.value.prompt == again.prompt == 1 and str(again) == str(raised.value)


def test_unprompted_is_minus_one():
    assert prompt_ids({}, (32, 32), (2, 3), "key").tolist() == [-1] * 6


def test_bad_regions_are_bad_samples_with_the_key():
    empty, full = np.zeros((8, 8), dtype=bool), np.ones((8, 8), dtype=bool)
    with pytest.raises(BadSample, match="key: the region of <Prompt4> is empty"):
        prompt_ids({4: encode_mask(empty)}, (8, 8), (1, 1), "key")
    with pytest.raises(BadSample, match="key: there is no <Prompt15>; prompts are numbered 0 to 14"):
        prompt_ids({15: encode_mask(full)}, (8, 8), (1, 1), "key")
    with pytest.raises(BadSample, match="key: the region of <Prompt0> is .8, 8., the image .8, 9. pixels"):
        prompt_ids({0: encode_mask(full)}, (8, 9), (1, 1), "key")
