"""Border mask: only black that touches an edge, in every frame."""

import numpy as np
import pytest

from wallwm_jax.input.border import visible_cells


def picture():
    return np.full((3, 16, 16, 3), 90, np.uint8)


def test_a_plain_picture_is_visible():
    assert visible_cells(picture(), (4, 4)).all()


def test_letterbox_bars_hide_the_cells_they_touch():
    frames = picture()
    frames[:, :3] = 0  # three black rows: inside the first row of cells
    frames[:, :, 11:] = 1  # nearly black columns: the last cell and part of the one before
    want = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(visible_cells(frames, (4, 4)), want)


def test_black_content_stays_visible():
    inside, briefly, partly = picture(), picture(), picture()
    inside[:, 5:9] = 0
    briefly[1, :4] = 0
    partly[:, :4, :15] = 0
    for frames in (inside, briefly, partly):
        assert visible_cells(frames, (4, 4)).all()


def test_a_grid_must_divide_the_picture():
    with pytest.raises(ValueError, match="3x4 latent grid"):
        visible_cells(picture(), (3, 4))
