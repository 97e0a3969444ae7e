"""Moving average of parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from wallwm_jax.optim.ema import ema_decay, ema_update


def test_decay_literals():
    got = [float(ema_decay(t)) for t in (0, 1, 90, 10**9)]
    np.testing.assert_allclose(got, [0.1, 2 / 11, 0.91, 0.9999], rtol=1e-6)


def test_matches_the_definition_by_hand():
    ema, want = {"w": jnp.zeros(2)}, np.zeros(2)
    for step, value in enumerate([1.0, 3.0, -2.0]):
        ema = ema_update(ema, {"w": jnp.full(2, value)}, step, decay=0.15)
        keep = min(0.15, (1 + step) / (10 + step))
        want = keep * want + (1 - keep) * value
    np.testing.assert_allclose(ema["w"], want, rtol=1e-6)


def test_constant_parameters_are_a_fixed_point_in_any_dtype():
    params = {"w": jnp.asarray([0.1, -3.3], jnp.bfloat16)}
    ema = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    after = jax.jit(ema_update)(ema, params, 7)
    assert after["w"].dtype == jnp.float32
    np.testing.assert_array_equal(after["w"], ema["w"])
