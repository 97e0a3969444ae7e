"""One table of rules; one device is the smallest mesh; eight give the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from wallwm_jax.parallel.mesh import AXES, RULES, batch_sharding, make_mesh, param_shardings

ROOT = Path(__file__).parents[2]


def test_one_axis_takes_what_is_left():
    mesh = make_mesh({"fsdp": -1}, jax.devices()[:1])
    assert dict(mesh.shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"data": 3}, "does not match 1 devices"), ({"model": 1}, "'model'.*unknown")],
)
def test_meshes_that_do_not_fit_are_one_line(sizes, words):
    with pytest.raises(ValueError, match=words) as caught:
        make_mesh(sizes, jax.devices()[:1])
    assert "\n" not in str(caught.value)


def test_every_logical_axis_of_the_towers_is_in_the_table():
    names = {name for name, _ in RULES}
    assert {"embed", "heads", "mlp", "layers", "batch"} <= names
    assert all(
        axis in AXES
        for _, axes in RULES
        for axis in ([axes] if isinstance(axes, str) else axes or [])
    )


def test_an_unknown_name_is_refused_by_path():
    boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((2, 2)), ("embed", "flavour"))}
    with pytest.raises(ValueError, match="'w'.*flavour"):
        param_shardings(boxed, make_mesh({"fsdp": -1}, jax.devices()[:1]))


def test_batches_split_over_data_and_fsdp():
    assert batch_sharding(make_mesh({"fsdp": -1}, jax.devices()[:1])).spec == PartitionSpec(
        ("data", "fsdp")
    )


PROGRAM = """
import sys
from pathlib import Path
from toy_run import toy_config
from wallwm_jax.train.loop import initial_state, train
from wallwm_jax.train.run import build_run
import jax, json
config = toy_config(Path(sys.argv[1]))
config.stage = "video"
config.stages.video.steps = 3
config.stages.video.save_every = 3
config.pack.sequences = 4
config.mesh.update(dict(data=2, fsdp=2, tensor=2, context=1) if len(jax.devices()) == 8 else dict(data=1, fsdp=-1))
run = build_run(config)
state, _ = initial_state(run)
kernel = state.opt_state
up = state.params["video"]["blocks"]["wan"]["ffn"]["up"]["kernel"]
buffers = [x for x in jax.tree.leaves(state.opt_state) if x.shape == up.shape]
print("SPEC", up.sharding.spec, len(up.sharding.device_set), all(b.sharding == up.sharding for b in buffers), len(buffers))
train(run)
"""


def test_eight_simulated_devices_give_the_losses_of_one(tmp_path):
    """FSDP, tensor and data axes at once; optimizer buffers lie where parameters lie."""
    import json
    import shutil

    from toy_run import make_data, toy_config

    losses = {}
    for devices in (1, 8):
        folder = tmp_path / str(devices)
        if devices == 1:
            make_data(toy_config(folder))
        else:
            shutil.copytree(tmp_path / "1", folder)
            shutil.rmtree(folder / "video")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ
            | {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'train'}",
            },
        )
        assert done.returncode == 0, done.stderr[-2000:]
        spec = next(line for line in done.stdout.splitlines() if line.startswith("SPEC"))
        assert f" {devices} True " in spec
        assert not spec.endswith(" 0")
        if devices == 8:
            assert "'fsdp', 'tensor'" in spec
        lines = (folder / "video" / "metrics.jsonl").read_text().splitlines()
        losses[devices] = [json.loads(line)["loss"] for line in lines]
    assert losses[1] == pytest.approx(losses[8], rel=2e-5)
