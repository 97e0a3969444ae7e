"""Noise levels: literals of the paper and identities of the shift map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.flow import schedule


def test_anchor_of_the_paper():
    # t = 1 - 45/50 = 0.1; 5 * 0.1 / (1 + 4 * 0.1) = 0.5 / 1.4
    assert float(schedule.s_star_sigma(45, 50, 5)) == pytest.approx(0.357, abs=5e-4)
    np.testing.assert_allclose(schedule.s_star_sigma(jnp.array([0, 50])), [1, 0])


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_shift_round_trip_and_ends(shift):
    t = jnp.linspace(0, 1, 33)
    sigma = schedule.shift_time(t, shift)
    np.testing.assert_allclose(schedule.unshift(sigma, shift), t, atol=1e-6)
    np.testing.assert_allclose(sigma[jnp.array([0, -1])], [0, 1])
    assert np.all(np.diff(sigma) > 0) and np.all(sigma >= t - 1e-6)


def test_full_schedule_without_shift_is_uniform():
    np.testing.assert_allclose(schedule.sigmas(4, shift=1), [1, 0.75, 0.5, 0.25, 0], atol=1e-7)


def test_stopping_early_keeps_the_levels_before():
    end = schedule.s_star_sigma(45, 50)
    full, early = schedule.sigmas(50), schedule.sigmas(45, end=end)
    np.testing.assert_allclose(early, full[:46], atol=1e-6)
    late = schedule.sigmas(5, start=end)
    np.testing.assert_allclose(late, full[45:], atol=1e-6)
    one = schedule.sigmas(1, end=end)
    np.testing.assert_allclose(one, [1, 0.5 / 1.4], atol=1e-6)


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps=0"):
        schedule.sigmas(0)


def test_sampled_levels_are_the_shift_of_a_uniform():
    sigma = schedule.sample_sigma(jax.random.key(0), (20000,), 5.0)
    t = np.sort(schedule.unshift(sigma, 5.0))
    # Kolmogorov distance to the uniform law: about 1.6 / sqrt(n) at 1 %.
    assert np.abs(t - (np.arange(20000) + 0.5) / 20000).max() < 0.0115


def test_anchor_jitter_stays_in_its_window():
    sigma = schedule.sample_s_star(jax.random.PRNGKey(0), (4000,), step=45, window=2)
    low, high = schedule.s_star_sigma(47), schedule.s_star_sigma(43)
    assert low <= sigma.min() < low + 0.005 and high - 0.005 < sigma.max() <= high
    edge = schedule.sample_s_star(jax.random.key(1), (4000,), step=50, window=2)
    assert edge.min() == 0  # clipped to the schedule
