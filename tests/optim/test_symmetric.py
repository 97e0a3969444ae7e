"""The kernel for x x^T against the dense product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.optim.newton_schulz import dense_product, newton_schulz
from wallwm_jax.optim.symmetric import LEAST_ROWS, pick_product, symmetric_product


@pytest.mark.parametrize("shape", [(128, 256), (2, 384, 128), (256, 640)])
def test_equals_the_dense_product(shape):
    """Tiles of 128 and 256, one and several of them, one and several blocks summed."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.bfloat16)
    got = symmetric_product(x, interpret=True)
    exact = np.einsum("...ik,...jk->...ij", np.asarray(x, np.float64), np.asarray(x, np.float64))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())
    np.testing.assert_array_equal(got, np.swapaxes(got, -2, -1))  # mirrored, not computed


def test_newton_schulz_with_the_kernel_is_newton_schulz():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(128, 256)), jnp.float32)
    kernel = pick_product("pallas", "cpu")
    for route in ("direct", "gram"):
        want = jax.jit(lambda x, route=route: newton_schulz(x, route=route))(x)
        got = jax.jit(lambda x, route=route: newton_schulz(x, route=route, product=kernel))(x)
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_sizes_without_tiles_are_refused_and_auto_leaves_them_dense():
    x = jnp.zeros((130, 256), jnp.bfloat16)
    with pytest.raises(ValueError, match="130 x 256: both must divide by 128"):
        symmetric_product(x)
    with pytest.raises(ValueError, match="'cuda': unknown"):
        pick_product("cuda", "gpu")
    assert pick_product("auto", "cpu") is dense_product is pick_product("xla", "tpu")


@pytest.mark.parametrize(
    "shape, dtype, kernel",
    [
        ((LEAST_ROWS, 2048), jnp.bfloat16, True),
        ((LEAST_ROWS, 2050), jnp.bfloat16, False),
        ((512, 2048), jnp.bfloat16, False),
        ((LEAST_ROWS, 2048), jnp.float32, False),
    ],
)
def test_auto_takes_the_kernel_on_tpu_where_it_pays(shape, dtype, kernel):
    product = pick_product("auto", "tpu")
    x = jax.ShapeDtypeStruct(shape, dtype)
    assert ("pallas_call" in str(jax.make_jaxpr(product)(x))) == kernel
