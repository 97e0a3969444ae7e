"""Baselines and errors, by numbers a reader can check."""

import numpy as np
import pytest

from wallwm_jax.evaluate import actions
from wallwm_jax.evaluate.actions import ActionTruth


def line(length: int, far: float, gripper: float = -1.0) -> np.ndarray:
    """Straight in x from 0 to `far`."""
    out = np.zeros((length, 20))
    out[:, 0], out[:, 9] = np.linspace(0, far, length), gripper
    return out


MASK = np.isin(np.arange(20), [0, 1, 2, 9])


def truth(*trajectories: np.ndarray, labels=None, captions=None) -> ActionTruth:
    n = len(trajectories)
    return ActionTruth(
        actions=list(trajectories),
        masks=[MASK] * n,
        labels=labels or ["go"] * n,
        captions=captions or ["go on"] * n,
        last_gripper=[-1.0] * n,
    )


def test_resampling_a_straight_line_is_exact_at_any_length():
    np.testing.assert_allclose(actions.resample(line(7, 0.3), 13), line(13, 0.3), atol=1e-12)


def test_mean_trajectory_is_stretched_to_each_length():
    known = truth(line(5, 0.1), line(9, 0.3))
    means = actions.mean_trajectories(known, known.labels)
    (guess,) = actions.from_means(means, ["go"], truth(line(17, 0.5)))
    np.testing.assert_allclose(guess, line(17, 0.2), atol=1e-12)


def test_captions_tell_apart_what_labels_do_not():
    known = truth(line(5, 0.1), line(5, 0.3), captions=["near", "far"])
    held = truth(line(5, 0.1), line(5, 0.3), captions=["near", "far"])
    std = np.ones(20)
    by_label = actions.from_means(actions.mean_trajectories(known, known.labels), held.labels, held)
    by_caption = actions.from_means(
        actions.mean_trajectories(known, known.captions), held.captions, held
    )
    assert actions.mean_absolute_error(by_caption, held, std) == pytest.approx(0)
    assert actions.mean_absolute_error(by_label, held, std) > 0.01


def test_an_unknown_caption_gets_the_overall_mean():
    known = truth(line(3, 0.1), line(3, 0.3), captions=["near", "far"])
    means = actions.mean_trajectories(known, known.captions)
    (guess,) = actions.from_means(means, ["never seen"], truth(line(3, 0.0)))
    np.testing.assert_allclose(guess, line(3, 0.2), atol=1e-12)


def test_error_counts_existing_dimensions_in_deviations():
    """x off by 0.2 with deviation 0.1 is 2; three other dimensions are exact: mean 0.5."""
    held = truth(line(4, 0.0))
    guess = line(4, 0.0)
    guess[:, 0] += 0.2
    guess[:, 15] = 50.0  # an arm that does not exist
    std = np.full(20, 0.1)
    assert actions.mean_absolute_error([guess], held, std) == pytest.approx(0.5)
    assert actions.position_error_cm([guess], held) == pytest.approx(20.0)
    assert actions.gripper_error([guess], held) == pytest.approx(0.0)


def test_longer_events_weigh_by_their_steps():
    held = truth(line(2, 0.0), line(6, 0.0))
    guess = [line(2, 0.0) + MASK, line(6, 0.0)]
    assert actions.mean_absolute_error(guess, held, np.ones(20)) == pytest.approx(2 / 8)


def test_holding_keeps_position_and_gripper():
    (still,) = actions.holds(truth(line(4, 0.3, gripper=1.0)))
    assert np.all(still[:, :3] == 0) and np.all(still[:, 9] == -1)
