"""One table of rules; one device is the smallest mesh; eight give the same numbers."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from wallwm_jax.parallel.mesh import (
    AXES,
    RULES,
    batch_sharding,
    held_rows,
    make_mesh,
    param_shardings,
    reader_of,
)

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


def test_batches_split_over_slices_data_and_fsdp():
    assert batch_sharding(make_mesh({"fsdp": -1}, jax.devices()[:1])).spec == PartitionSpec(
        ("slice", "data", "fsdp")
    )


class Chip:
    """A device of some process."""

    platform = "cpu"

    def __init__(self, number: int, process: int):
        self.id, self.process_index = number, process


class Chips:
    """A mesh of devices that are not there, as far as `readers` looks."""

    def __init__(self, processes: list[int], sizes: dict[str, int]):
        chips = [Chip(i, p) for i, p in enumerate(processes)]
        shape = [sizes.get(axis, 1) for axis in AXES]
        self.devices = np.array(chips).reshape(shape)


@pytest.mark.parametrize(
    ("processes", "sizes", "blocks"),
    [
        ([0, 0, 1, 1], dict(fsdp=4), [(0, 2), (1, 2)]),
        ([0, 1, 2, 3], dict(data=2, fsdp=2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([1, 1, 0, 0], dict(fsdp=4), [(1, 2), (0, 2)]),  # the torus is not in order
        ([0, 1, 2, 3], dict(fsdp=2, tensor=2), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 1], dict(context=2), [(0, 1), (0, 1)]),
    ],
)
def test_processes_read_the_rows_their_devices_hold(processes, sizes, blocks):
    held = held_rows(Chips(processes, sizes).devices)
    assert [reader_of(held, p) for p in range(len(blocks))] == blocks


@pytest.mark.parametrize("processes", [[0, 1, 0, 1], [0, 1, 1, 1]])
def test_rows_that_are_no_block_are_refused(processes):
    with pytest.raises(ValueError, match="one block of equal size") as caught:
        reader_of(held_rows(Chips(processes, dict(fsdp=4)).devices), 0)
    assert "\n" not in str(caught.value)


SLICES = """
from wallwm_jax.parallel import aot
aot.prepare_process()
from jax.experimental import topologies
from wallwm_jax.parallel.mesh import batch_shards, make_mesh
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
mesh = make_mesh(dict(fsdp=-1, tensor=2), list(chips))
print(*mesh.devices.shape, batch_shards(mesh), [{c.slice_index for c in part.flat} for part in mesh.devices])
near = lambda a, b: sum(abs(x - y) for x, y in zip(a.coords, b.coords)) == 1
print(all(near(*pair) for part in mesh.devices for row in part[0] for pair in [row.ravel()]))
try:
    make_mesh(dict(slice=4, fsdp=-1), list(chips))
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="`make parity` brings libtpu"
)
def test_slices_are_the_outermost_axis_and_tensor_pairs_are_neighbours():
    done = subprocess.run(
        [sys.executable, "-c", SLICES], capture_output=True, text=True, cwd=ROOT, env=os.environ
    )
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("2 1 4 2 1 8 [{0}, {1}]", "True"), done.stderr[-2000:]
    assert "lie in 2 slices" in third


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
