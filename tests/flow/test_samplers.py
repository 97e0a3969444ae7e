"""The Euler sampler on flows whose solution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.flow import corrupt, samplers
from wallwm_jax.flow.schedule import s_star_sigma, sigmas

euler = jax.jit(samplers.euler, static_argnums=0, static_argnames="trajectory")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("kind", corrupt.KINDS[:2])
@pytest.mark.parametrize("steps", [1, 7])
def test_straight_path_is_exact_in_any_number_of_steps(kind, steps):
    """One data point: the true velocity is constant along the path, so Euler is exact."""
    z0, eps = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    truth = corrupt.target(z0, eps, kind)
    velocity = lambda z, sigma: corrupt.to_velocity(truth, z, sigma, kind)
    got = euler(velocity, eps, sigmas(steps))
    np.testing.assert_allclose(got.z, z0, atol=1e-5)
    assert got.trajectory is None


def test_stops_at_the_anchor_and_resumes():
    z0, eps = draw(5), draw(5, seed=1)
    # Optimal x-prediction for data N(z0, 0.3^2): a flow that is not straight.
    def velocity(z, sigma):
        gain = (1 - sigma) * 0.09 / ((1 - sigma) ** 2 * 0.09 + sigma**2)
        return corrupt.to_velocity(z0 + gain * (z - (1 - sigma) * z0), z, sigma, "x")

    anchor = s_star_sigma(45)
    whole = euler(velocity, eps, sigmas(50), trajectory=True)
    half = euler(velocity, eps, sigmas(45, end=anchor))
    rest = euler(velocity, half.z, sigmas(5, start=anchor))
    assert whole.trajectory.shape == (51, 5)
    np.testing.assert_array_equal(whole.trajectory[0], eps)
    np.testing.assert_array_equal(whole.trajectory[-1], whole.z)
    np.testing.assert_allclose(half.z, whole.trajectory[45], atol=1e-5)
    np.testing.assert_allclose(rest.z, whole.z, atol=1e-5)


def test_error_falls_with_the_step():
    """dz/dsigma = z from 1 to 0 ends at z/e; Euler is of first order."""
    z = jnp.ones(3)
    errors = []
    for steps in (20, 40, 80):
        got = euler(lambda x, _: x, z, sigmas(steps, shift=1.0))
        errors.append(float(jnp.abs(got.z - jnp.exp(-1.0)).max()))
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.1)


def test_levels_per_event_and_frozen_frames():
    z0, eps = draw(2, 4, 3), draw(2, 4, 3, seed=1)
    start = jnp.array([[1.0, 1.0, 0.6, 0.6], [0.3, 0.3, 0.3, 1.0]])
    table = start * sigmas(4, shift=1.0)[:, None, None]
    frozen = jnp.array([[True, False, False, False], [False, False, False, False]])
    z = corrupt.corrupt(z0, eps, start)
    got = euler(lambda *_: eps - z0, z, table, frozen=frozen)
    np.testing.assert_array_equal(got.z[0, 0], z[0, 0])
    moving = ~np.asarray(frozen)
    np.testing.assert_allclose(np.asarray(got.z)[moving], np.asarray(z0)[moving], atol=1e-5)


def test_is_one_scan():
    run = lambda z: samplers.euler(lambda x, s: x * s, z, sigmas(50)).z
    jaxpr = jax.make_jaxpr(run)(jnp.ones(2))
    names = [equation.primitive.name for equation in jaxpr.jaxpr.eqns]
    assert names.count("scan") == 1 and "while" not in names


def test_dtype_of_the_state_is_kept():
    half = lambda z, _: z.astype(jnp.bfloat16)
    assert euler(half, jnp.ones(2), sigmas(3)).z.dtype == jnp.float32
    assert euler(half, jnp.ones(2, jnp.bfloat16), sigmas(3)).z.dtype == jnp.bfloat16


def test_single_level_is_refused():
    with pytest.raises(ValueError, match="fewer than two levels"):
        euler(lambda z, _: z, jnp.ones(2), jnp.ones(1))
