"""The expert's wrapper: speed limit and noise."""

import numpy as np
import pytest

from wallwm_jax.sim import experts


@pytest.mark.parametrize("clip", [0.7, 0.3])
def test_translation_is_clipped(physics_env, clip):
    env = physics_env("window-open")
    env.reset(0)
    expert = experts.Expert("window-open", translation_clip=clip)
    moves = []
    for _ in range(20):
        desired, gripper = expert.act(env)
        moves.append(desired - env.target_position)
        assert -1 <= gripper <= 1
        env.step(desired, gripper)
    # Two simulator steps of at most clip centimetres; the limit is met on the way.
    assert np.abs(moves).max() == pytest.approx(2 * clip * 0.01)


def test_noise_is_constant_over_six_steps_and_seeded():
    draws = experts._piecewise_noise(0.2, seed=3)
    offsets = np.stack([next(draws) for _ in range(600 * 6)]).reshape(600, 6, 3)
    np.testing.assert_array_equal(offsets, offsets[:, :1].repeat(6, axis=1))
    assert len(np.unique(offsets[:, 0], axis=0)) == 600
    assert abs(offsets.std() - 0.2) < 0.01
    np.testing.assert_array_equal(next(experts._piecewise_noise(0.2, seed=3)), offsets[0, 0])
    assert not np.array_equal(next(experts._piecewise_noise(0.2, seed=4)), offsets[0, 0])


def test_no_noise_is_exactly_zero():
    np.testing.assert_array_equal(next(experts._piecewise_noise(0.0, seed=3)), 0)


def test_noise_cannot_exceed_the_simulators_range(physics_env):
    env = physics_env("window-open")
    env.reset(0)
    desired, _ = experts.Expert("window-open", noise=50.0, seed=1).act(env)
    assert np.abs(desired - env.target_position).max() <= 0.02 + 1e-12
