"""Sliced weights under a mesh: gathered once, gradients in slices, values as without one."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models.gathering import gathering, whole
from wallwm_jax.models.layers import dense

ROOT = Path(__file__).parents[2]

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, flax.linen as nn
from jax.sharding import NamedSharding, PartitionSpec as P
from wallwm_jax.models.layers import FeedForward
from wallwm_jax.parallel.collectives import collectives_of
from wallwm_jax.parallel.mesh import activate, make_mesh, param_shardings
layer = FeedForward(64, 32)
x = jax.random.normal(jax.random.key(0), (8, 5, 32))
boxed = layer.init(jax.random.key(1), x)["params"]
def loss(params, x):
    # Rematerialised, as in the towers: the backward pass gathers a second time.
    again = jax.checkpoint(lambda p: layer.apply({"params": p}, x))
    return jnp.mean(jnp.sin(again(params)))
plain = jax.value_and_grad(loss)(nn.meta.unbox(boxed), x)
mesh = make_mesh(dict(fsdp=-1))
places = param_shardings(boxed, mesh)
params = jax.device_put(nn.meta.unbox(boxed), places)
with activate(mesh):
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, places))
    x = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
    compiled = step.lower(params, x).compile()
    sliced = compiled(params, x)
for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(sliced), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)
kernel = 32 * 64 * 4
gathers = [c.total for c in collectives_of(compiled.as_text()) if c.kind == "all-gather"]
print(mesh.size, sum(total == kernel for total in gathers), max(gathers) == kernel)
"""


def test_on_four_devices_each_kernel_is_gathered_once_a_pass():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    devices, kernels, nothing_larger = done.stdout.split()
    # Two kernels, forward and backward; a compiler that finds both the same gathers once.
    assert (devices, nothing_larger) == ("4", "True") and 2 <= int(kernels) <= 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_derivative_is_that_of_a_cast(dtype):
    """Cotangents come back in the dtype the weight is stored in."""
    weight = jnp.linspace(-1, 1, 12).reshape(3, 4)
    y, back = jax.vjp(lambda w: whole(w, ("embed", "mlp"), dtype, "float32"), weight)
    want, plain = jax.vjp(lambda w: w.astype(dtype), weight)
    assert y.dtype == want.dtype and jnp.array_equal(y, want)
    np.testing.assert_array_equal(back(y)[0], plain(y)[0])
    assert back(y)[0].dtype == jnp.float32


def test_without_rules_nothing_but_the_dtypes_changes():
    x, kernel = jnp.ones((2, 3)), jnp.ones((3, 4))
    out = gathering("embed", "mlp")(x, kernel, None, dtype=jnp.bfloat16)
    assert [None if a is None else a.dtype.name for a in out] == ["bfloat16", "bfloat16", None]
    layer = dense(4, dtype=jnp.dtype("bfloat16"))
    assert layer.apply(layer.init(jax.random.key(0), x), x).dtype == jnp.bfloat16
