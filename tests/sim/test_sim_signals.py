"""Hindsight signals on hand-made readings."""

import numpy as np
import pytest

from wallwm_jax.sim.contacts import FREE, HINGE, SLIDE
from wallwm_jax.sim.signals import NOTHING_MOVED, episode_signals


def _readings(bodies, joints, **columns):
    """Readings of len(bodies) observations; columns default to nothing happening."""
    count = len(bodies)
    defaults = {"contact": [False] * count, "both_pads": [False] * count}
    return [
        {
            "contact": (defaults | columns)["contact"][t],
            "both_pads": (defaults | columns)["both_pads"][t],
            "gripper_opening": 0.5,
            "hand_position": np.full(3, float(t)),
            "goal_position": np.array([0.0, 0.8, 0.1]),
            "main_object": np.zeros(3),
            "body_positions": np.array(bodies[t], np.float64),
            "joint_positions": np.array(joints[t], np.float64).reshape(-1, 3),
        }
        for t in range(count)
    ]


STILL = [[0.0, 0.0, 0.0]]


def test_hold_needs_both_pads_and_a_closing_command():
    readings = _readings([STILL] * 4, [STILL] * 4, both_pads=[True, True, False, True])
    signals = episode_signals(readings, np.array([-1, 1, 1], np.float32), (FREE,))
    # The last observation is followed by no command and takes the one before it.
    np.testing.assert_array_equal(signals["hold"], [False, True, False, True])
    assert len(signals["gripper_command"]) == 3


def test_the_body_that_moves_most_is_the_object():
    bodies = [[[0, 0, 0], [1, 0, 0]], [[0, 0, 0.01], [1, 0.2, 0]], [[0, 0, 0], [1, 0, 0]]]
    joints = [[[0, 0, 0], [0, 0, 0]]] * 3
    signals = episode_signals(
        _readings(bodies, joints), np.zeros(2, np.float32), (SLIDE, HINGE)
    )
    np.testing.assert_allclose(signals["object_position"][:, 1], [0, 0.2, 0])
    assert signals["joint_kind"] == NOTHING_MOVED
    np.testing.assert_array_equal(signals["joint_position"], 0)


@pytest.mark.parametrize(
    "travel, kinds, kind, coordinate",
    [
        ((0.003, 0.04), (SLIDE, HINGE), NOTHING_MOVED, 0.0),  # both below their threshold
        ((0.005, 0.04), (SLIDE, HINGE), SLIDE, 0.005),
        ((0.005, 1.2), (SLIDE, HINGE), HINGE, 1.2),  # 24 thresholds against one and a bit
        ((0.2, 0.016), (FREE, SLIDE), FREE, 0.0),  # a mug carried past a button it brushes
    ],
)
def test_the_main_joint_is_the_one_that_goes_furthest(travel, kinds, kind, coordinate):
    joints = [np.zeros((2, 3)), [[travel[0], 0, 0], [travel[1], 0, 0]]]
    signals = episode_signals(_readings([STILL] * 2, joints), np.zeros(1, np.float32), kinds)
    assert signals["joint_kind"] == kind
    np.testing.assert_allclose(signals["joint_position"], [0, coordinate], rtol=1e-6)
