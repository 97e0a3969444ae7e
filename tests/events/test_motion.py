"""The small signal tools, on signals one can check by eye."""

import numpy as np

from wallwm_jax.events import motion


def _flags(text):
    return np.array([c == "x" for c in text])


def _text(flags):
    return "".join("x" if f else "." for f in flags)


def test_threshold_with_memory():
    signal = np.array([0.0, 3, 5, 3, 3, 1, 3])
    assert _text(motion.above(signal, 4.0, 2.0)) == "..xxx.."


def test_runs_tile_the_true_parts():
    flags = _flags("xx..x.xxx")
    assert motion.runs(flags) == [(0, 2), (4, 5), (6, 9)]
    assert motion.runs(_flags("....")) == []


def test_gaps_up_to_the_limit_close():
    assert _text(motion.close_gaps(_flags(".x..x...x."), 2)) == ".xxxx...x."
    assert _text(motion.close_gaps(_flags(".x..x...x."), 3)) == ".xxxxxxxx."


def test_last_entry_ignores_visits():
    assert motion.last_entry(_flags("xx..x.xx")) == 6
    assert motion.last_entry(_flags("xxxx")) == 0
    assert motion.last_entry(_flags("xxx.")) == 4


def test_speed_of_a_straight_line_is_its_slope():
    path = np.arange(20.0)[:, None] * np.array([[0.3, 0.4, 0.0]]) / 40
    np.testing.assert_allclose(motion.speed(path, 40.0)[2:-2], 0.5)


def test_smoothing_keeps_lines_and_halves_no_ends():
    line = np.arange(10.0)
    np.testing.assert_allclose(motion.smooth(line)[2:-2], line[2:-2])
    np.testing.assert_allclose(motion.smooth(np.full((5, 3), 7.0)), 7.0)
