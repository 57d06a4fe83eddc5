"""Whether maps mark what was forged: values computed by hand, and swaps whose forged part is known."""

import numpy as np
import pytest

from backend.evaluate.metrics.localisation import CELLS, cell_means, overlap_at_equal_area, pixel_auc, points_at_mask

SIDE = 4 * CELLS


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Return a mask (SIDE, SIDE) that is true within these cells."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[4 * top : 4 * bottom, 4 * left : 4 * right] = True
    return mask


@pytest.mark.parametrize(
    ("shown", "overlap"),
    [
        (rectangle(2, 6, 2, 6), 1.0),
        (rectangle(2, 6, 4, 8), 8 / 24),  # half of 16 cells is shared, so 24 belong to either
        (rectangle(10, 14, 10, 14), 0.0),
        (rectangle(0, 16, 0, 16), None),  # all cells alike: the first sixteen are taken, which are the first row
    ],
)
def test_the_overlap_of_equal_areas(shown: np.ndarray, overlap: float | None) -> None:
    mask = rectangle(2, 6, 2, 6)
    expected = 0.0 if overlap is None else overlap
    assert overlap_at_equal_area(shown.astype(float), mask) == pytest.approx(expected)
    assert overlap_at_equal_area(shown * 7.0 - 3, mask) == pytest.approx(expected)  # only the order counts


def test_a_cell_is_forged_where_half_of_it_is_and_a_picture_without_one_has_no_overlap() -> None:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[0:4, 0:2] = True  # half of the first cell
    mask[0:4, 5:6] = True  # a quarter of the second
    assert overlap_at_equal_area(rectangle(0, 1, 0, 1).astype(float), mask) == 1.0
    mask[:, 0:2] = False
    with pytest.raises(ValueError, match="No cell"):
        overlap_at_equal_area(np.zeros((SIDE, SIDE)), mask)


def test_the_area_under_the_curve_over_pixels() -> None:
    mask = rectangle(0, 8, 0, 16)
    assert pixel_auc(mask.astype(float), mask) == 1.0
    assert pixel_auc(-mask.astype(float), mask) == 0.0
    assert pixel_auc(np.zeros_like(mask, dtype=float), mask) == 0.5
    # A map that is high in a quarter of both halves says nothing either.
    assert pixel_auc(rectangle(0, 16, 0, 4).astype(float), mask) == 0.5


def test_the_highest_cell_decides_the_pointing_game_and_not_a_single_pixel() -> None:
    shown = np.zeros((SIDE, SIDE))
    shown[40:44, 40:44] = 1.0
    shown[0, 0] = 2.0  # one bright pixel; the mean of its cell is 0.125
    assert points_at_mask(shown, rectangle(10, 11, 10, 11))
    assert not points_at_mask(shown, rectangle(0, 1, 0, 1))


def test_means_of_cells() -> None:
    values = np.arange(SIDE * SIDE, dtype=float).reshape(SIDE, SIDE)
    means = cell_means(values)
    assert means.shape == (CELLS, CELLS)
    assert means[0, 0] == values[:4, :4].mean() and means[-1, 3] == values[-4:, 12:16].mean()
