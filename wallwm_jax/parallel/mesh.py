"""One mesh, one table from logical axis names to its axes.

A single device is just the smallest mesh: every run, from one core to a pod,
goes through the same code. Parameters and activations carry logical names
(given where they are made, in `models`); this table alone says where they go.

    slice    whole copies, one per slice of a pod: only gradients cross the slow network
    data     whole copies of the model, each with its own examples
    fsdp     examples AND a slice of every large parameter (ZeRO-3)
    tensor   heads and hidden units of one layer
    context  latent frames of one sequence; attention trades them for heads
             (`models.sequence_parallel`). Weights are whole along it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("slice", "data", "fsdp", "tensor", "context")

BATCH_AXES = ("slice", "data", "fsdp")
"""Axes that cut a batch into sequences."""

RULES: tuple[tuple[str, tuple[str, ...] | str | None], ...] = (
    # activations
    ("batch", BATCH_AXES),
    ("lookup", ("slice", "data")),  # rows looked up in a table that fsdp slices
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
      sizes: size of each of AXES; axes that are left out are 1, but "slice",
        which is the number of slices the devices lie in.
      devices: defaults to all devices of all processes.

    Raises:
      ValueError: unknown axis, or sizes that do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh axes {unknown} are unknown; use {AXES}")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = [int(({"slice": slices} | sizes).get(axis, 1)) for axis in AXES]
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} does not match {len(devices)} devices; "
            "set one axis to -1 to take what is left"
        )
    return Mesh(_arranged(devices, shape, slices), AXES)


def _arranged(devices: Sequence[Any], shape: list[int], slices: int) -> np.ndarray:
    """The devices in the mesh's shape, neighbours in an axis near each other.

    TPU chips stand in a torus, where the order of their numbers is not the order of
    their links; several slices are joined by a network that only the first axis may use.
    """
    if slices > 1:
        if shape[0] != slices:
            raise ValueError(
                f"mesh axis slice is {shape[0]} but the devices lie in {slices} slices; leave config.mesh.slice "
                f"out, or set it to {slices}"
            )
        return mesh_utils.create_hybrid_device_mesh(
            (1, *shape[1:]),
            (slices, *[1] * (len(shape) - 1)),
            devices,
            allow_split_physical_axes=True,
        )
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(shape)


@contextlib.contextmanager
def activate(mesh: Mesh) -> Iterator[None]:
    """Makes `mesh` and RULES the ones that logical constraints refer to."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over the slices, the data and the fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts the sequences of a batch."""
    (axes,) = batch_sharding(mesh).spec
    return math.prod(mesh.shape[axis] for axis in axes)


def readers(mesh: Mesh) -> tuple[int, int]:
    """Which rows of a global batch this process has to read: (block, number of blocks).

    Processes whose devices share the rows (tensor or context axes that span
    processes) get the same block and read the same.

    Raises:
      ValueError: devices of a process hold rows that are no block, or blocks of
        unlike sizes.
    """
    return reader_of(held_rows(mesh.devices), jax.process_index())


def held_rows(devices: np.ndarray) -> dict[int, set[int]]:
    """Rows that the devices of every process hold, of a batch of one row per shard.

    Args:
      devices: in the mesh's shape.
    """
    axes = [AXES.index(axis) for axis in BATCH_AXES]
    held: dict[int, set[int]] = {}
    sizes = [devices.shape[axis] for axis in axes]
    for place, device in np.ndenumerate(devices):
        row = np.ravel_multi_index([place[axis] for axis in axes], sizes)
        held.setdefault(device.process_index, set()).add(int(row))
    return held


def reader_of(held: dict[int, set[int]], process: int) -> tuple[int, int]:
    """(block, number of blocks) of one process; see `readers`, which it raises as."""
    count, mine = 1 + max(map(max, held.values())), held[process]
    for other, rows in held.items():
        start, size = min(rows), len(rows)
        if size != len(mine) or start % size or rows != set(range(start, start + size)):
            raise ValueError(
                f"process {other} would read rows {sorted(rows)} of {count} and process {process} rows "
                f"{sorted(mine)}; choose a config.mesh whose data and fsdp axes give every process one "
                "block of equal size"
            )
    return min(mine) // len(mine), count // len(mine)


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


def shaped(shapes: Any, places: Any) -> Any:
    """A tree's shapes and dtypes as ShapeDtypeStructs that lie in `places`.

    Args:
      shapes: of arrays or ShapeDtypeStructs.
      places: the same tree of shardings.
    """
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


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
