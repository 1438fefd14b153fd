import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pixel_sail.architecture import Architecture
from pixel_sail.data import image
from pixel_sail.data.image import image_size, load_image, resized_size, seen_size, to_patches
from pixel_sail.model.pixels import STATISTICS, normalize
from pixel_sail.types import BadSample


def test_sizes_are_those_of_the_research_code(golden):
    for case in json.loads((golden / "helpers/resize.json").read_text()):
        for patch in (16, 32):
            assert list(resized_size(tuple(case["size_wh"]), patch, 1024)) == case[f"patch{patch}"], case


def _assert_patches(path, image, recorded, patch):
    values = np.load(path)
    patches, grid = to_patches(Image.fromarray(values[image]), Architecture(patch_size=patch, mask_stride=patch))
    expected = values[recorded]  # (h, w, 3, P, P)
    assert grid == expected.shape[:2] and patches.dtype == torch.uint8
    np.testing.assert_allclose(normalize(patches).numpy().reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.parametrize("patch", [16, 32])
def test_patches_are_those_of_the_research_code(golden, patch):
    _assert_patches(golden / "helpers/image_patches.npz", "image", f"patches{patch}", patch)


def test_patches_of_a_large_image_are_those_of_the_research_code(shared):
    """5 MB of noise, which is made smaller: too large for the repository."""
    _assert_patches(shared / "golden/helpers/image_patches.npz", "image_big", "patches_big32", 32)


def test_size_rule_in_closed_form():
    assert resized_size((100, 60), 16, 1024) == (112, 80)  # 112 = 7 * 16; int(112 * 60 / 100) = 67 -> 80
    assert resized_size((60, 100), 16, 1024) == (80, 112)
    assert resized_size((4000, 3000), 16, 1024) == (1024, 768)
    with pytest.raises(ValueError, match="max_side 100 is not a multiple of the patch side 16"):
        resized_size((300, 20), 16, 100)


def test_size_by_area():
    """Worked out by hand: the sides times 800 / sqrt(width x height), rounded up to multiples of 32."""
    evev2 = Architecture(patch_size=32, max_side_px=800, resize_by="area")
    for size, seen in {
        (640, 480): (928, 704),  # 923.8 x 692.8
        (480, 640): (704, 928),
        (4000, 3000): (928, 704),
        (100, 100): (800, 800),  # also enlarged
        (1600, 400): (1600, 416),  # 1600 x 400
        (3000, 1): (20000, 32),  # not 43818: no side is longer than the area in one row of patches
        (1, 1): (800, 800),
    }.items():
        assert seen_size(size, evev2) == seen, size


def test_size_to_the_nearest_multiples():
    """Worked out by hand."""
    neo = Architecture(patch_size=32, max_side_px=1024, resize_by="nearest")
    for size, seen in {
        (640, 480): (640, 480),
        (500, 335): (512, 320),  # 15.6 and 10.5 patches; Python rounds a half to the even number
        (1920, 1080): (1344, 768),  # 1920 / sqrt(1920 x 1080) x 1024 is 1365.3, rounded down
        (100, 50): (384, 192),  # enlarged to 256 x 256: 362.04 x 181.02, rounded up
        (100, 100): (256, 256),
        (100_000, 1): (32768, 32),  # not 323,817: no side is longer than the area in one row of patches
        (1, 3000): (32, 3008),
        (1, 300): (32, 2048),
    }.items():
        assert seen_size(size, neo) == seen, size
    assert seen_size((10, 10), Architecture(patch_size=8, max_side_px=64, resize_by="nearest")) == (64, 64)


def test_filters_of_resizing():
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for name, method in {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}.items():
        patches, (h, w) = to_patches(pixels, Architecture(patch_size=8, max_side_px=64, resize_filter=name))
        resized = np.asarray(pixels.resize((8 * w, 8 * h), method))
        np.testing.assert_array_equal(patches[0].reshape(3, 8, 8).numpy(), resized[:8, :8].transpose(2, 0, 1))


def test_patches_are_rows_of_the_grid_and_channel_row_column_inside():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    # already a multiple of 8: not resized
    patches, grid = to_patches(Image.fromarray(pixels), Architecture(patch_size=8, max_side_px=64))
    assert grid == (2, 3) and patches.shape == (6, 192)
    block = patches[4].reshape(3, 8, 8).numpy()  # row 1, column 1
    np.testing.assert_array_equal(block, pixels[8:16, 8:16].transpose(2, 0, 1))


def test_an_image_one_pixel_high_has_one_row_of_patches():
    patches, grid = to_patches(Image.new("RGB", (200, 1), (255, 0, 0)), Architecture(max_side_px=128))
    assert grid == (1, 8) and patches.shape == (8, 768)
    assert patches[:, [0, 256, 512]].unique(dim=0).tolist() == [[255, 0, 0]]


def _file(tmp_path, image: Image.Image, name: str, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_every_mode_becomes_rgb(tmp_path):
    grey = Image.new("L", (9, 7), 100)
    assert load_image(_file(tmp_path, grey, "grey.jpg")).getpixel((3, 3)) == (100, 100, 100)
    assert load_image(_file(tmp_path, Image.new("1", (9, 7), 1), "bit.png")).getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("RGB", (9, 7), (10, 200, 30)).quantize(4)
    assert load_image(_file(tmp_path, palette, "palette.png")).getpixel((3, 3)) == (10, 200, 30)
    cmyk = load_image(_file(tmp_path, Image.new("CMYK", (9, 7), (0, 255, 255, 0)), "cmyk.jpg", quality=100))
    assert cmyk.mode == "RGB" and np.abs(np.subtract(cmyk.getpixel((3, 3)), (255, 0, 0))).max() < 6


def test_transparent_pixels_are_white_not_black(tmp_path):
    clear = _file(tmp_path, Image.new("RGBA", (9, 7), (255, 0, 0, 0)), "clear.png")
    half = _file(tmp_path, Image.new("RGBA", (9, 7), (0, 0, 0, 128)), "half.png")
    assert load_image(clear).getpixel((3, 3)) == (255, 255, 255)
    assert load_image(half).getpixel((3, 3)) == (127, 127, 127)
    keyed = _file(tmp_path, Image.new("L", (9, 7), 5), "keyed.png", transparency=5)
    assert load_image(keyed).getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    ramp = Image.fromarray(np.array([[0, 257 * 40, 65535]], dtype=np.uint16))
    loaded = load_image(_file(tmp_path, ramp, "deep.png"))
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 40, 255]


def test_exif_rotation_is_for_photos_and_not_for_datasets(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    stored = Image.new("RGB", (20, 10), "red")
    stored.paste("blue", (0, 0, 10, 10))
    path = _file(tmp_path, stored, "turned.png", exif=exif)
    as_stored, as_seen = load_image(path), load_image(path, orient=True)
    assert as_stored.size == (20, 10) and as_stored.getpixel((2, 5)) == (0, 0, 255)
    assert as_seen.size == (10, 20) and as_seen.getpixel((5, 2)) == (0, 0, 255)


def test_unreadable_files_are_bad_samples_that_name_the_file(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    contents = _file(tmp_path, noise, "whole.jpg").read_bytes()
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(BadSample, match="cannot decode the image .*torn.jpg: image file is truncated"):
        load_image(torn)
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    with pytest.raises(BadSample, match="cannot decode the image .*text.jpg"):
        load_image(text)
    with pytest.raises(BadSample, match="no image file .*absent.jpg"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(BadSample, match="cannot decode the image 3 bytes in memory"):
        load_image(b"abc")
    floating = _file(tmp_path, Image.new("F", (4, 4), 0.5), "float.tiff")
    with pytest.raises(BadSample, match="float.tiff: floating-point pixels have no fixed range"):
        load_image(floating)


def test_bytes_and_file_are_the_same_image(tmp_path):
    path = _file(
        tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)), "a.png"
    )
    assert load_image(path.read_bytes()).tobytes() == load_image(path).tobytes()
    assert load_image(io.BytesIO(path.read_bytes()).getvalue()).mode == "RGB"


def test_an_image_above_the_limit_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 80)
    path = _file(tmp_path, Image.new("RGB", (10, 9)), "large.png")
    for read in (load_image, lambda path: image_size(path, "a/1"), lambda path: image_size(path, "a/1", orient=True)):
        with pytest.raises(BadSample, match=r"large.png has more than 80 pixels; save a smaller copy"):
            read(path)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_patches_are_normalized_to_the_bit_as_whole_images_are(statistics):
    mean, std = (np.array(values, dtype=np.float32) for values in STATISTICS[statistics])
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    pixels[:16, :16, :] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)  # every value of every channel
    patches, (h, w) = to_patches(Image.fromarray(pixels), Architecture(patch_size=32, max_side_px=96))
    whole = (pixels.astype(np.float32) / 255 - mean) / std
    blocks = whole.reshape(h, 32, w, 32, 3).transpose(0, 2, 4, 1, 3).reshape(h * w, -1)
    normalized = normalize(patches, statistics)
    assert normalized.dtype == torch.float32 and torch.equal(normalized, torch.from_numpy(blocks))
    assert normalize(normalized) is normalized  # float patches are normalized
