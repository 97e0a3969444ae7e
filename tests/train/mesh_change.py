"""A command: saves on a 4x2 mesh of eight simulated devices and restores on others.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/train/mesh_change.py FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from toy_state import META, toy_state

from wallwm_jax.train.checkpoint import Checkpoints
from wallwm_jax.train.seal import CheckpointError


def placed(state, rows: int, columns: int):
    """The state over a mesh: matrices cut on both axes, the rest whole."""
    devices = np.asarray(jax.devices()[: rows * columns]).reshape(rows, columns)
    mesh = Mesh(devices, ("fsdp", "tensor"))

    def place(x):
        cut = x.shape == (64, 24)
        spec = PartitionSpec("fsdp", "tensor") if cut else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def main(folder: Path) -> dict:
    """Which meshes gave equal bits, and how a mesh that does not fit is refused."""
    saved, equal = toy_state(5), []
    on_mesh = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), saved, placed(saved, 4, 2))
    with Checkpoints(folder / "checkpoints", every=1) as checkpoints:
        checkpoints.save(on_mesh, {}, META)
        checkpoints.settle()
        for rows, columns in ((4, 2), (2, 2), (1, 4), (2, 1), (1, 1), (8, 1), (1, 8)):
            restored = checkpoints.restore(placed(saved, rows, columns), META).state
            kernel = restored.params["video"]["kernel"]
            assert len(kernel.sharding.device_set) == rows * columns
            jax.tree.map(np.testing.assert_array_equal, restored, saved)
            equal.append(f"{rows}x{columns}")
        try:
            checkpoints.restore(placed(saved, 3, 1), META)
        except CheckpointError as error:
            return {"equal": equal, "refused": str(error).split(", which")[0]}
    raise AssertionError("a mesh of three was not refused")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
