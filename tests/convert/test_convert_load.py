"""Loading: every kind of entry, every float type, aliases, shardings, memory."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_family import DTYPES, FAMILY, Toy, tensors, write

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.files import Weights, read_config_file
from wallwm_jax.convert.load import load_family
from wallwm_jax.convert.plan import leaves
from wallwm_jax.convert.table import Entry

ROOT = Path(__file__).parents[2]


def load(folder, **options):
    return load_family(FAMILY, folder, read_config_file(folder), **options)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_leaf_holds_its_tensors(tmp_path, source, dtype, shards):
    theirs = tensors(source)
    module, params = load(write(tmp_path / "toy", theirs, shards=shards), dtype=dtype)
    assert module == Toy(param_dtype=dtype)
    want = {
        "stem": theirs["stem.weight"].T,
        "query": np.stack([theirs[f"blocks.{i}.q.weight"].T.reshape(6, 2, 3) for i in range(3)]),
        "gain": np.stack([theirs[f"blocks.{i}.gain"] for i in range(3)]),
        "temperature": theirs["temperature"],
        "words": theirs["shared.weight"],
    }
    assert params.keys() == want.keys()
    for name, value in want.items():
        kept = name in ("gain", "temperature")  # the module holds these in float32
        expected = jnp.float32 if kept else jnp.dtype(dtype)
        assert params[name].dtype == expected
        np.testing.assert_array_equal(params[name], value.astype(expected))


@pytest.mark.parametrize(
    "held", [("shared.weight",), ("copy.weight",), ("shared.weight", "copy.weight")]
)
def test_a_tied_tensor_under_any_of_its_names(tmp_path, held, monkeypatch):
    monkeypatch.setattr("wallwm_jax.convert.files.ROWS_BYTES", 100)  # two rows at once
    content = tensors()
    value = content.pop("shared.weight")
    _, params = load(write(tmp_path / "toy", content | {name: value.copy() for name in held}))
    np.testing.assert_array_equal(params["words"], value)


def test_tied_tensors_must_be_equal(tmp_path):
    content = tensors()
    other = content["shared.weight"].copy()
    other[-1, -1] += 1
    with pytest.raises(ConvertError, match="copy.weight must be the same as shared.weight"):
        load(write(tmp_path / "toy", content | {"copy.weight": other}))


def test_each_tensor_is_read_once(tmp_path, monkeypatch):
    read = []
    for method in ("read", "parts"):
        whole = getattr(Weights, method)
        monkeypatch.setattr(
            Weights, method, lambda self, name, whole=whole: read.append(name) or whole(self, name)
        )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    folder = write(tmp_path / "toy", tensors())
    for shardings in (None, here):
        read.clear()
        load(folder, shardings=shardings)
        # A scalar has no rows, so its `parts` is its `read`.
        assert set(read) == set(tensors())
        assert all(read.count(n) == 1 for n in read if "gain" not in n and n != "temperature")


def test_a_table_that_misses_a_leaf_is_our_mistake():
    short = dataclasses.replace(FAMILY, table=lambda module: FAMILY.table(module)[1:])
    twice = dataclasses.replace(FAMILY, table=lambda m: [*FAMILY.table(m), Entry("stem", "x")])
    for family in (short, twice):
        with pytest.raises(ValueError, match="disagree on stem"):
            leaves(family, Toy())


def test_unknown_dtype_and_unfit_shardings(tmp_path):
    folder = write(tmp_path / "toy", tensors())
    with pytest.raises(ValueError, match="'float16'.*float32.*bfloat16"):
        load(folder, dtype="float16")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match="do not fit the parameters at gain"):
        load(folder, shardings={"stem": here})


SHARDED = """
import sys
sys.path[:0] = ["tests/convert"]
import jax
import numpy as np
from pathlib import Path
from toy_family import FAMILY
from wallwm_jax.convert.files import Weights, read_config_file
from wallwm_jax.convert.load import load_family
from wallwm_jax.parallel.mesh import make_mesh, param_shardings

read = []
whole = Weights.read
Weights.read = lambda self, name: read.append(name) or whole(self, name)
folder = Path(sys.argv[1])
config = read_config_file(folder)
mesh = make_mesh({"fsdp": 3, "tensor": 2})
one = load_family(FAMILY, folder, config)[1]
read.clear()
many = load_family(FAMILY, folder, config, shardings=lambda boxed: param_shardings(boxed, mesh))[1]
assert sorted(read) == sorted(set(read)), read
for name in one:
    np.testing.assert_array_equal(one[name], many[name])
assert tuple(many["query"].sharding.spec) == (None, "fsdp", "tensor", None)
assert many["query"].addressable_shards[0].data.shape == (3, 2, 1, 3)
# Layers on different devices: each device's layers are read for it alone.
stages = jax.sharding.Mesh(np.asarray(jax.devices()[:3]), ("stage",))
split = jax.sharding.NamedSharding(stages, jax.sharding.PartitionSpec("stage"))
whole_ = jax.sharding.NamedSharding(stages, jax.sharding.PartitionSpec())
read.clear()
tree = {name: split if name in ("query", "gain") else whole_ for name in one}
many = load_family(FAMILY, folder, config, shardings=tree)[1]
assert sum("q.weight" in name for name in read) == 3, read
for name in one:
    np.testing.assert_array_equal(one[name], many[name])
print("fits")
"""


def test_leaves_go_straight_to_their_shards(tmp_path):
    folder = write(tmp_path / "toy", tensors())
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=6",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "fits", done.stderr[-2000:]
