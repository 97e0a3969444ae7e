"""Conversions between predictions: every pair is a round trip."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.flow import corrupt

convert = jax.jit(corrupt.convert, static_argnames=("source", "to"))
PAIRS = list(itertools.product(corrupt.KINDS, corrupt.KINDS))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Z0, EPS = draw(2, 5, 3), draw(2, 5, 3, seed=1)
SIGMA = jnp.asarray(np.random.default_rng(2).uniform(0.05, 0.95, size=(2, 5)), jnp.float32)


@pytest.mark.parametrize("source, to", PAIRS)
def test_truth_of_one_kind_converts_to_truth_of_another(source, to):
    z = corrupt.corrupt(Z0, EPS, SIGMA)
    truth = corrupt.target(Z0, EPS, source)
    got = convert(truth, z, SIGMA, source=source, to=to)
    np.testing.assert_allclose(got, corrupt.target(Z0, EPS, to), atol=5e-5)


@pytest.mark.parametrize("source, to", PAIRS)
def test_any_prediction_survives_the_round_trip(source, to):
    z, guess = corrupt.corrupt(Z0, EPS, SIGMA), draw(2, 5, 3, seed=3)
    there = convert(guess, z, SIGMA, source=source, to=to)
    back = convert(there, z, SIGMA, source=to, to=source)
    np.testing.assert_allclose(back, guess, atol=2e-4)


def test_velocity_is_the_slope_of_the_path():
    early, late = corrupt.corrupt(Z0, EPS, 0.25), corrupt.corrupt(Z0, EPS, 0.75)
    np.testing.assert_allclose((late - early) / 0.5, corrupt.target(Z0, EPS), atol=1e-6)


def test_ends_of_the_path():
    np.testing.assert_array_equal(corrupt.corrupt(Z0, EPS, 0.0), Z0)
    np.testing.assert_array_equal(corrupt.corrupt(Z0, EPS, 1.0), EPS)


@pytest.mark.parametrize("kind", corrupt.KINDS)
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_velocities_are_finite_at_both_ends(kind, sigma):
    z = corrupt.corrupt(Z0, EPS, sigma)
    velocity = corrupt.to_velocity(draw(2, 5, 3, seed=4), z, sigma, kind)
    assert np.all(np.isfinite(velocity))


def test_levels_lead_the_data():
    latents = draw(2, 3, 4, 2, 2, 5)  # [B, V, F, h, w, C]
    sigma = SIGMA[:, None, :4]  # [B, 1, F]
    z = corrupt.corrupt(latents, jnp.zeros_like(latents), sigma)
    np.testing.assert_allclose(z[1, 2, 3], (1 - SIGMA[1, 3]) * latents[1, 2, 3], rtol=1e-6)
    with pytest.raises(ValueError, match=r"level \(2, 5\) does not lead data \(2, 3, 4"):
        corrupt.expand(SIGMA, latents)


def test_observed_is_clean_and_the_tube_is_noise():
    sigma = jnp.full((2, 1), 0.5)
    clean = jnp.array([[True, False, True]])
    tube = jnp.array([[False, True, True], [False, False, False]])
    got = corrupt.levels(sigma, clean=clean, noise=tube)
    np.testing.assert_array_equal(got, [[0, 1, 1], [0, 0.5, 0]])


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(ValueError, match="'score': unknown.*'v', 'x', 'eps'"):
        corrupt.target(Z0, EPS, "score")
