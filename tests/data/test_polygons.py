import numpy as np
import pytest
from opencv_rasters import OPENCV

from pixel_sail.data.polygons import outlined_polygon


def _rows(mask):
    return ["".join(".#"[int(pixel)] for pixel in row) for row in mask]


@pytest.mark.parametrize("corners", OPENCV)
def test_rasters_are_those_of_opencv(corners):
    expected = OPENCV[corners]
    assert _rows(outlined_polygon(corners, (len(expected), len(expected[0])))) == expected


def test_every_raster_is_that_of_opencv_where_it_is_installed():
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    rng = np.random.default_rng(0)
    for low, high in ((0, 1), (-0.3, 1.3), (-3, 4)):
        for corners in (1, 2, 3, 5, 12, 40):
            for _ in range(30):
                height, width = (int(side) for side in rng.integers(1, 60, 2))
                points = [tuple(int(v) for v in rng.uniform(low, high, 2) * (width, height)) for _ in range(corners)]
                expected = np.zeros((height, width), dtype=np.uint8)
                cv2.polylines(expected, np.array([points], dtype=np.int32), True, 1, 1)
                cv2.fillPoly(expected, np.array([points], dtype=np.int32), 1)
                np.testing.assert_array_equal(outlined_polygon(points, (height, width)), expected.astype(bool))
