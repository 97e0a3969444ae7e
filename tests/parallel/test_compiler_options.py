"""Options of the compiler: whose they are, and that sliced weights travel beside the products."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from wallwm_jax.parallel.compiler_options import (
    COMPILER_OPTIONS,
    CompilerOptionsError,
    compiled,
    options_for,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", COMPILER_OPTIONS)
def test_what_the_environment_sets_is_left_to_it(kind):
    given, *others = COMPILER_OPTIONS[kind]
    assert set(options_for(kind, {})) == {given, *others}
    for text in (f"--{given}=false --xla_other=1", f"--xla_other=1 --{given}"):
        assert list(options_for(kind, {"LIBTPU_INIT_ARGS": text})) == others
    # A name that only begins like one of ours is another option.
    assert given in options_for(kind, {"LIBTPU_INIT_ARGS": f"--{given}_more=1"})


def test_other_devices_get_none_and_the_compiler_takes_that():
    options = options_for(jax.devices()[0].device_kind)
    assert options == {}
    assert compiled(jax.jit(lambda x: x + x).lower(jnp.ones(())), options)(jnp.ones(())) == 2


def test_an_option_that_the_compiler_does_not_know_is_named():
    lowered = jax.jit(lambda x: x + x).lower(jnp.ones(()))
    with pytest.raises(CompilerOptionsError, match="no option xla_of_tomorrow.*async_collectives"):
        compiled(lowered, {"xla_of_tomorrow": "true"})
    with pytest.raises(jax.errors.JaxRuntimeError):  # anything else stays what it is
        compiled(lowered, {"xla_backend_optimization_level": "high"})


LAYERS = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from wallwm_jax.models.gathering import whole
from wallwm_jax.parallel import aot
from wallwm_jax.parallel.collectives import asynchronous_share, collectives_of
from wallwm_jax.parallel.compiler_options import options_for
from wallwm_jax.parallel.mesh import activate, batch_sharding, make_mesh
aot.prepare_process()
mesh = make_mesh(dict(data=-1, fsdp=16), aot.topology_devices(sys.argv[1]))
AXES = dict(up=("embed", "mlp"), down=("mlp", "embed"))
SIZES = dict(up=(2048, 8192), down=(8192, 2048))
def sliced(name):
    spec = P(None, *["fsdp" if axis == "embed" else None for axis in AXES[name]])
    return jax.ShapeDtypeStruct((4, *SIZES[name]), jnp.float32, sharding=NamedSharding(mesh, spec))
def layer(x, weights):
    up, down = (whole(weights[k], AXES[k], "bfloat16", "float32") for k in ("up", "down"))
    return x + jnp.tanh(x @ up) @ down, None
def loss(weights, x):
    y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
    return jnp.mean(jnp.square(y.astype(jnp.float32)))
weights = {name: sliced(name) for name in AXES}
x = jax.ShapeDtypeStruct((mesh.size, 4096, 2048), jnp.bfloat16, sharding=batch_sharding(mesh))
with activate(mesh):
    step = jax.jit(jax.grad(loss), out_shardings={k: w.sharding for k, w in weights.items()})
    lowered = step.lower(weights, x)
text = lowered.compile(options_for(mesh.devices.flat[0].device_kind)).as_text()
large = [c for c in collectives_of(text) if c.bytes > 1 << 24]
print(json.dumps([sorted(c.kind for c in large), asynchronous_share(large)]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="not compiled for TPU: pip install 'jax[tpu]' brings libtpu",
)
def test_sliced_weights_travel_while_products_are_computed():
    """Four layers of a hidden layer at realistic widths; without the options none do."""
    done = subprocess.run(
        [sys.executable, "-c", LAYERS, "v5p:4x4x4"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds, asynchronous = json.loads(done.stdout)
    # Two kernels, gathered for the forward and again for the backward pass, scattered once.
    assert kinds == ["all-gather"] * 4 + ["reduce-scatter"] * 2
    # A layer's first gather has nothing of its own layer to hide behind, in either pass.
    assert asynchronous >= 4 / 6
