"""The memory plan: exact where it claims to be, near the compiler's own where it estimates."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from wallwm_jax.parallel.planner import Plan, bytes_per_device, kept_bytes, least_traffic

ROOT = Path(__file__).parents[2]
MESH = AbstractMesh((4, 16, 1, 1), ("data", "fsdp", "tensor", "context"))


def shape(*size: int, spec: tuple = (), dtype: str = "float32", mesh=MESH) -> jax.ShapeDtypeStruct:
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(size, jnp.dtype(dtype), sharding=place)


def test_a_device_holds_its_slices_and_whole_what_is_not_cut():
    tree = {"cut": shape(32, 8, spec=("fsdp",)), "both": shape(64, spec=(("data", "fsdp"),))}
    assert bytes_per_device(tree) == 2 * 8 * 4 + 4
    assert bytes_per_device([shape(5, 3, dtype="bfloat16"), shape()]) == 30 + 4


@pytest.mark.parametrize("keeps, values", [(False, 1), (True, 2)], ids=["inputs", "and a name"])
def test_what_the_backward_keeps_is_counted_to_the_byte(keeps, values):
    """Six layers over [3, 40]: a rematerialised one keeps its input, and what it names."""
    layers, size = 6, 3 * 40 * 4
    policy = jax.checkpoint_policies.save_only_these_names("hidden" if keeps else "no such name")

    @functools.partial(jax.checkpoint, policy=policy)
    def layer(x, w):
        y = checkpoint_name(x @ w, "hidden")
        return jnp.sin(jnp.tanh(y)), None

    def loss(weights, x):
        # The last cosine belongs to the sum's argument and is no layer's.
        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    arguments = shape(layers, 40, 40), shape(3, 40)
    assert kept_bytes(loss, *arguments) == layers * values * size


def test_arguments_are_not_counted_as_kept():
    loss = lambda w, x: jnp.sum(w * x)  # noqa: E731
    assert kept_bytes(loss, shape(7), shape(7)) == 0


def test_the_least_traffic_by_hand():
    """A weight of n scalars: 2 n bytes each way; again if not kept; a 16th over the copies."""
    cut, table = shape(64, 10, spec=("fsdp",)), shape(64, spec=())
    frozen = shape(32, 5, spec=(None, "fsdp"))
    found = least_traffic({"a": cut, "b": table}, [frozen], [cut], MESH)
    assert found == {
        "all-gather": 2 * (2 * 640 + 160),
        "reduce-scatter": 2 * 640,
        "all-reduce": 2 * 640 // 16,
    }
    alone = AbstractMesh((4, 1, 1, 1), ("data", "fsdp", "tensor", "context"))
    whole = shape(64, 10, spec=("fsdp",), mesh=alone)
    assert set(least_traffic([whole], [], [], alone).values()) == {0}


def test_the_larger_phase_decides():
    sizes = dict(resident={"weights": 10}, backward={"kept": 7, "gradients": 3}, update={"new": 9})
    plan = Plan(**sizes, limit=20)
    assert (plan.temporaries, plan.peak, plan.fits) == (10, 20, True)
    tight = Plan(**sizes, limit=19)
    assert not tight.fits and tight.to_json()["fits"] is False
    assert Plan(**sizes).fits  # a device we know nothing of
    assert "no" in tight.table().splitlines()[-1] and "weights" in tight.table()


FIVE_B = """
import json
from configs.wan22_ti2v_5b import get_config
from experiments.aot import planned
from wallwm_jax.parallel import aot
aot.prepare_process()
config, plans = get_config(), []
config.video.remat, config.stages.video.optimizer = "selective", "adamw"
plans.append(planned(config, "v5p:4x4x4", "video", per_chip=4).to_json())
config.video.remat, config.stages.video.optimizer, config.mesh.data = "attention", "muon", 16
plans.append(planned(config, "v6e:16x16", "video", per_chip=2).to_json())
print(json.dumps(plans))
"""

COMPILED = [(7.16e9, 67.49e9), (5.64e9, 16.94e9)]
"""(arguments, temporaries) of these two as libtpu 0.0.42.1 planned them with full effort.
That takes minutes to half an hour each, so not here; of the first a slightly older program."""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="not compiled for TPU: pip install 'jax[tpu]' brings libtpu",
)
def test_plans_of_5b_steps_are_near_the_compilers():
    done = subprocess.run([sys.executable, "-c", FIVE_B], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    plans = json.loads(done.stdout.splitlines()[-1])
    for plan, (arguments, temporaries) in zip(plans, COMPILED, strict=True):
        assert sum(plan["resident"].values()) == pytest.approx(arguments, rel=0.01)
        assert plan["peak_bytes"] == pytest.approx(arguments + temporaries, rel=0.15)
        assert plan["fits"]
    # By hand: 14.7 values of [4158, 3072] in 30 layers, four sequences.
    kept = 30 * 4 * 4158 * 3072 * 2 * (1 + 3 + 1 + 3 + 1 + 14336 / 3072 + 1)
    assert plans[0]["backward"]["kept for the backward"] == pytest.approx(kept, rel=0.1)
    assert [plan["limit_bytes"] // 10**9 for plan in plans] == [102, 33]
