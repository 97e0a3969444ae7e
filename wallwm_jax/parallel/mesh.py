"""One mesh, one table from logical axis names to its axes.

A single device is just the smallest mesh: every run, from one core to a pod,
goes through the same code. Parameters and activations carry logical names
(given where they are made, in `models`); this table alone says where they go.

    data     whole copies of the model, each with its own examples
    fsdp     examples AND a slice of every large parameter (ZeRO-3)
    tensor   heads and hidden units of one layer
    context  tokens of one sequence
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context")

RULES: tuple[tuple[str, tuple[str, ...] | str | None], ...] = (
    # activations
    ("batch", ("data", "fsdp")),
    ("views", None),
    ("frames", "context"),
    ("tokens", None),
    ("actions", None),
    ("embed_act", None),
    # parameters
    ("layers", None),
    ("embed", "fsdp"),
    ("embed_out", None),
    ("heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("modulation", None),
    ("vocabulary", "tensor"),
    ("patch", None),
    ("text", None),
    ("frequency", None),
    ("action", None),
    ("state", None),
)
"""Logical axis name -> mesh axes; names that are not listed are refused."""


def make_mesh(sizes: dict[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Builds the mesh; one size may be -1, "all that is left".

    Args:
      sizes: size of each of AXES; axes that are left out are 1.
      devices: defaults to all devices of all processes.

    Raises:
      ValueError: unknown axis, or sizes that do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh axes {unknown} are unknown; use {AXES}")
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} does not match {len(devices)} devices; "
            "set one axis to -1 to take what is left"
        )
    return Mesh(np.asarray(devices).reshape(shape), AXES)


@contextlib.contextmanager
def activate(mesh: Mesh) -> Iterator[None]:
    """Makes `mesh` and RULES the ones that logical constraints refer to."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of parameters that carry logical axis names.

    Args:
      boxed: parameters (or their shapes) as Linen's `init` gives them.
      mesh: the run's mesh.

    Raises:
      ValueError: a parameter has an axis name that RULES does not list.
    """
    specs = nn.get_partition_spec(boxed)
    known = {name for name, _ in RULES}
    for path, spec in jax.tree_util.tree_leaves_with_path(
        specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    ):
        unknown = [name for name in spec if name is not None and name not in known]
        if unknown:
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has axes {unknown} that parallel.mesh.RULES does not list; add them"
            )
    return nn.logical_to_mesh_sharding(specs, mesh, RULES)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Shardings of the optimizer's state: buffers lie where their parameter lies.

    Args:
      optimizer: its `init` is only traced.
      params: plain parameters or their shapes.
      shardings: the parameters' shardings.
      mesh: for what belongs to no parameter (counters), which is replicated.
    """
    where = {path: sharding for path, sharding in _paths(shardings)}

    def place(path: tuple, leaf: Any) -> NamedSharding:
        # Buffers mirror the parameters: the end of their path is a parameter's.
        for start in range(len(path)):
            found = where.get(path[start:])
            if found is not None and leaf.ndim > 0:
                return found
        return replicated(mesh)

    state = jax.eval_shape(optimizer.init, params)
    leaves = [place(path, leaf) for path, leaf in _paths(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _paths(tree: Any) -> list[tuple[tuple, Any]]:
    """(path, leaf) pairs, paths as tuples of plain names."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
        for path, leaf in pairs
    ]
