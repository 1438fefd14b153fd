import numpy as np
import pytest
from PIL import Image

from pixel_sail.serve.visualize import MAX_LINES, Card, SheetRow, cards, colour, contact_sheet, overlay, paint

GREY = Image.new("RGB", (400, 300), (100, 100, 100))


def _box(left, top, right, bottom):
    mask = np.zeros((300, 400), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_mask_is_tinted_inside_its_contour_and_nothing_changes_outside():
    mask = _box(100, 100, 200, 200)
    pixels = np.asarray(paint(GREY, [mask])).astype(int)
    assert (pixels[~mask] == 100).all()
    np.testing.assert_allclose(pixels[150, 150], 0.55 * 100 + 0.45 * np.array(colour(0)), atol=1)
    assert tuple(pixels[100, 150]) == colour(0) and tuple(pixels[101, 150]) == (255, 255, 255)


def test_neighbouring_colours_are_far_apart():
    for i in range(12):
        assert np.abs(np.subtract(colour(i), colour(i + 1))).max() > 90


def test_overlay_adds_a_strip_that_grows_with_the_captions():
    masks = [_box(10, 10, 60, 60), _box(200, 100, 300, 250)]
    short = overlay(GREY, masks[:1], ["the cup"])
    long = overlay(GREY, masks, ["the cup", "a caption so long that it cannot stand on one line " * 2])
    assert short.width == long.width and short.width % 400 == 0 and long.height > short.height
    assert overlay(GREY, [], []).size == (short.width, short.width * 3 // 4)
    painted = np.asarray(long)[: short.width * 3 // 4]
    assert not (painted == 100).all() and overlay(Image.new("RGB", (3, 1)), [], ["tiny"]).height > 1


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"mask 0 is \(400, 300\), the image \(300, 400\)"):
        paint(GREY, [_box(0, 0, 9, 9).T])


def test_contact_sheet_shows_image_truth_and_prediction_side_by_side():
    mask = _box(0, 0, 400, 300)
    sheet = contact_sheet(
        [SheetRow(GREY, "all", mask, None), SheetRow(GREY, "none", None, None)], across=1, cell_px=100
    )
    pixels = np.asarray(sheet).astype(int)
    row = pixels[sheet.height // 2 - 40]  # through the images of the first row
    assert tuple(row[58]) == (100, 100, 100) and tuple(row[266]) == (100, 100, 100)  # image; no prediction
    np.testing.assert_allclose(row[162], 0.55 * 100 + 0.45 * np.array(colour(1)), atol=1)  # ground truth
    with pytest.raises(ValueError, match="no images"):
        contact_sheet([])


def test_a_page_stays_small_whatever_the_answer_and_the_image():
    texts = ["word " * 50_000, "x" * 200_000, "a\n" * 100_000, "half \ud800 a character, \x00 and <img src=x>"]
    for text in texts:
        assert cards([Card(GREY, (text, text, text))]).height < 3 * MAX_LINES * 30
        assert overlay(GREY, [], [text]).height < 480 + (MAX_LINES + 2) * 40
        contact_sheet([SheetRow(GREY, text, None, None)])
    line = Image.new("RGB", (2, 20_000))
    assert cards([Card(line, ("",))]).height < 1000 and contact_sheet([SheetRow(line, "", None, None)]).height < 1200
