"""Who orthogonalises which matrix: pure arithmetic over shapes, nothing is computed.

Newton-Schulz needs whole matrices, a sharded run holds slices of all of them.
Every matrix gets one OWNER: the device that is sent its slices, orthogonalises
it once for everybody and sends the slices of the result back. The plan says

- which matrices travel together (`Stack`): those of equal m x n that are cut in
  the same way, whatever parameter, layer or head they come from. Tall matrices
  are transposed, square ones so that the same mesh axis cuts their rows; a
  query [in, heads, dim] and an output kernel [heads, dim, in] then share a
  stack.
- how many matrices of each stack every owner gets (`Stack.counts`). If all get
  equally many (the last ones zeros), all run one program. If that wastes more
  than SLACK, as with 240 squares and 60 wides on 256 chips, owners have ROLES:
  dealt longest first, each to the owner that has least to do (Graham 1969: at
  most 4/3 of the best), and a device only does what its role says.

Axes of the mesh take three parts for a stack: the ones that cut rows or columns
EXCHANGE slices; the ones that cut another axis of the parameter (heads, say)
hold different matrices and stay to themselves ("apart"); over the rest
parameters are REPLICAS, which take an equal share of the matrices each and share
the results. Owners are numbered within a replica: all replicas do the same.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import PartitionSpec

from wallwm_jax.errors import UserError
from wallwm_jax.optim.matrices import MatrixAxes

SLACK = 0.05
"""Share of the busiest device's work that roles must save to be worth a branch."""

SMALL = 0.02
"""A stack that gives a device less than this share of the mean load has no roles:
it could not even out the others, and every stack with roles may double their number."""


Cuts = tuple[tuple[str, ...], ...]
"""The mesh axes that cut each axis of an array."""


MAX_ROLES = 6
"""Every role is a copy of Newton-Schulz in the program, to be compiled."""


class PlanError(UserError):
    """A parameter that cannot be cut into matrices on this mesh."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter: its path, shape, matrix axes and the mesh axes that cut it."""

    path: str
    shape: tuple[int, ...]
    axes: MatrixAxes
    spec: PartitionSpec = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Member:
    """A parameter in a stack.

    Attributes:
      leaf: its number in the list of parameters.
      transposed: whether its matrices are.
      matrices: how many of them a device holds a slice of.
      layers: size of the leading axis if every index of it is whole matrices, else 1.
    """

    leaf: int
    transposed: bool
    matrices: int
    layers: int

    def each(self, replicas: int) -> tuple[int, int]:
        """(layers, matrices) that every one of so many replicas takes; the rest is left over."""
        layers = self.layers // replicas
        return layers, layers * (self.matrices // self.layers)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Matrices that travel together.

    Attributes:
      shape: (m, n) of a whole matrix, m <= n.
      rows, cols: mesh axes that cut its rows and its columns.
      apart: mesh axes along which devices hold different matrices.
      replicas: mesh axes along which devices hold the same slices.
      members: where the matrices come from, in their order in the stack.
      share: matrices that each replica takes, the last ones maybe fewer.
      counts: matrices that each owner gets of them; owners are numbered over
        (rows, cols), the last axis fastest.
      roles: whether devices do no more than their count.
    """

    shape: tuple[int, int]
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    apart: tuple[str, ...]
    replicas: tuple[str, ...]
    members: tuple[Member, ...]
    share: int = 0
    counts: tuple[int, ...] = ()
    roles: bool = False

    @property
    def matrices(self) -> int:
        """How many a device holds a slice of."""
        return sum(member.matrices for member in self.members)

    @property
    def rounds(self) -> int:
        """Places for matrices that every owner has."""
        return max(self.counts)

    def places(self) -> np.ndarray:
        """bool [rounds, owners]: the places that are taken, by the matrices in their order."""
        return np.arange(self.rounds)[:, None] < np.asarray(self.counts)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Stacks, and what every device does.

    Attributes:
      mesh: size of each axis of the mesh.
      specs: how each parameter is cut, as far as its axes divide.
      stacks: all matrices, each in one stack.
      roles: matrices of each stack that a device orthogonalises, by role.
      role_of: role of every device, devices in the order of the mesh.
      load: work of the busiest device, in the unit of the cost.
      mean_load: work of all matrices over the number of devices.
    """

    mesh: dict[str, int]
    specs: tuple[Cuts, ...]
    stacks: tuple[Stack, ...]
    roles: tuple[tuple[int, ...], ...]
    role_of: tuple[int, ...]
    load: float
    mean_load: float


Cost = Callable[[int, int], float]


def make_plan(leaves: Sequence[Leaf], mesh: dict[str, int], cost: Cost) -> Plan:
    """Deals the matrices of all parameters over the devices of a mesh.

    Args:
      leaves: the parameters.
      mesh: size of each mesh axis; {} is one device.
      cost: (m, n) -> work of one matrix.

    Raises:
      PlanError: a parameter's parts are cut by the mesh.
    """
    specs = tuple(_dividing(leaf, mesh) for leaf in leaves)
    stacks = _stacks(leaves, specs, mesh)
    total = sum(cost(*s.shape) * s.matrices * _size(mesh, s.apart) for s in stacks)
    mean = total / math.prod(mesh.values())
    even = [dataclasses.replace(s, counts=_even(s.share, _owners(s, mesh))) for s in stacks]
    plan = _finish(even, mesh, specs, cost, mean)
    for heaviest in range(2, len(stacks) + 1):
        dealt = _finish(_deal(even, mesh, cost, mean, heaviest), mesh, specs, cost, mean)
        if len(dealt.roles) <= MAX_ROLES and dealt.load < (1 - SLACK) * plan.load:
            plan = dealt
    return plan


def _finish(
    stacks: Sequence[Stack], mesh: dict[str, int], specs: tuple[Cuts, ...], cost: Cost, mean: float
) -> Plan:
    """The plan of stacks whose counts are known."""
    per_device = np.zeros((math.prod(_shape(mesh)), len(stacks)), int)
    for number, stack in enumerate(stacks):
        per_device[:, number] = _by_device(stack, mesh).ravel() if stack.roles else stack.rounds
    roles, role_of = np.unique(per_device, axis=0, return_inverse=True)
    costs = np.array([cost(*s.shape) for s in stacks])
    return Plan(
        mesh=dict(mesh),
        specs=specs,
        stacks=tuple(stacks),
        roles=tuple(tuple(int(n) for n in role) for role in roles),
        role_of=tuple(int(role) for role in role_of.reshape(-1)),
        load=float((roles @ costs).max(initial=0)),
        mean_load=mean,
    )


def _dividing(leaf: Leaf, mesh: dict[str, int]) -> Cuts:
    """The leaf's spec without mesh axes of size 1 and those that do not divide its axis."""
    entries = []
    for axis, size in enumerate(leaf.shape):
        entry = leaf.spec[axis] if axis < len(leaf.spec) else None
        names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        kept = tuple(name for name in names if mesh.get(name, 1) > 1)
        entries.append(kept if size % _size(mesh, kept) == 0 else ())
    return tuple(entries)


def _stacks(leaves: Sequence[Leaf], specs: Sequence[Cuts], mesh: dict[str, int]) -> list[Stack]:
    """Sorts the parameters' matrices into stacks, in order of first appearance."""
    found: dict[tuple, list[Member]] = {}
    for number, (leaf, spec) in enumerate(zip(leaves, specs, strict=True)):
        shape, spec = _cut_parts(leaf, spec, mesh)
        _, axes, _ = leaf.axes.cut(leaf.shape)
        batch, *sides = axes.resolve(len(shape))
        rows, cols = (tuple(n for axis in side for n in spec[axis]) for side in sides)
        m, n = leaf.axes.matrix_shape(leaf.shape)
        apart = tuple(name for axis in batch for name in spec[axis])
        transposed = (m, _side_order(mesh, rows)) > (n, _side_order(mesh, cols))
        if transposed:
            m, n, rows, cols = n, m, cols, rows
        matrices = math.prod(shape[a] for a in batch) // _size(mesh, apart)
        uncut = len(shape) == len(leaf.shape) and not spec[0]
        layers = shape[0] if 0 in batch and uncut else 1
        key = (m, n), rows, cols, apart
        found.setdefault(key, []).append(Member(number, transposed, matrices, layers))
    return [_stack(mesh, key, tuple(members)) for key, members in found.items()]


def _stack(mesh: dict[str, int], key: tuple, members: tuple[Member, ...]) -> Stack:
    """A stack whose owners are not known yet."""
    shape, rows, cols, apart = key
    replicas = tuple(name for name in mesh if name not in rows + cols + apart)
    matrices = sum(member.matrices for member in members)
    share = -(-matrices // _size(mesh, replicas))
    return Stack(shape, rows, cols, apart, replicas, members, share)


def _side_order(mesh: dict[str, int], names: tuple[str, ...]) -> tuple[int, ...]:
    """Sort key that puts the side cut by earlier mesh axes first and an uncut side last."""
    order = list(mesh)
    return tuple(order.index(name) for name in names) or (len(order),)


def _cut_parts(leaf: Leaf, spec: Cuts, mesh: dict[str, int]) -> tuple[tuple[int, ...], Cuts]:
    """Shape and spec of a leaf whose parts are axes of their own.

    Raises:
      PlanError: the mesh cuts through a part.
    """
    shape, _, origin = leaf.axes.cut(leaf.shape)
    entries = []
    for position, axis in enumerate(origin):
        first = position == 0 or origin[position - 1] != axis
        is_parts = first and origin.count(axis) == 2
        if is_parts and shape[position] % _size(mesh, spec[axis]):
            raise PlanError(
                f"Muon: {leaf.path} {leaf.shape} has {shape[position]} parts along axis {axis}, which "
                f"mesh axes {spec[axis]} cut into {_size(mesh, spec[axis])}; give the parts an axis of "
                "their own or leave that axis uncut"
            )
        entries.append(spec[axis] if first else ())
    return shape, tuple(entries)


def _even(matrices: int, owners: int) -> tuple[int, ...]:
    """The same number for all owners but for the last round."""
    return tuple(matrices // owners + (owner < matrices % owners) for owner in range(owners))


def _deal(
    stacks: list[Stack], mesh: dict[str, int], cost: Cost, mean: float, heaviest: int
) -> list[Stack]:
    """Of the heaviest stacks, longest first, each matrix to the owner that has least to do.

    What stands apart, or in another replica, does the same as its neighbours, so one
    program serves it: a matrix is dealt to all of them, and the busiest of them counts.
    """
    work = [s.rounds * cost(*s.shape) for s in stacks]
    least = max(sorted(work)[-heaviest], SMALL * mean)
    small = [w < least for w in work]
    load = np.zeros(_shape(mesh))
    load += sum(s.rounds * cost(*s.shape) for s, even in zip(stacks, small, strict=True) if even)
    dealt = list(stacks)
    for number in sorted(range(len(stacks)), key=lambda i: -cost(*stacks[i].shape)):
        if small[number]:
            continue
        stack = stacks[number]
        view = _owner_view(stack, mesh, load)  # writes through to load
        counts = np.zeros(view.shape[0], int)
        for _ in range(stack.share):
            owner = int(view.max(1).argmin())
            view[owner] += cost(*stack.shape)
            counts[owner] += 1
        load = _device_view(stack, mesh, view)
        counts = tuple(int(n) for n in counts)
        dealt[number] = dataclasses.replace(stack, counts=counts, roles=True)
    return dealt


def _owner_view(stack: Stack, mesh: dict[str, int], per_device: np.ndarray) -> np.ndarray:
    """[devices of the mesh ...] -> [owners, the others]."""
    order = [list(mesh).index(name) for name in owner_axes(stack) + _other_axes(stack)]
    return per_device.transpose(order).reshape(_owners(stack, mesh), -1).copy()


def _device_view(stack: Stack, mesh: dict[str, int], per_owner: np.ndarray) -> np.ndarray:
    """Inverse of `_owner_view`."""
    names = owner_axes(stack) + _other_axes(stack)
    order = [names.index(name) for name in mesh]
    return per_owner.reshape([mesh[name] for name in names]).transpose(order)


def _by_device(stack: Stack, mesh: dict[str, int]) -> np.ndarray:
    """Matrices of the stack that each device orthogonalises."""
    others = _size(mesh, _other_axes(stack))
    return _device_view(stack, mesh, np.repeat(np.asarray(stack.counts)[:, None], others, 1))


def owner_axes(stack: Stack) -> tuple[str, ...]:
    """The mesh axes that number the owners, the last one fastest."""
    return stack.rows + stack.cols


def _other_axes(stack: Stack) -> tuple[str, ...]:
    """The mesh axes along which owners of the same number do the same."""
    return stack.replicas + stack.apart


def _owners(stack: Stack, mesh: dict[str, int]) -> int:
    return _size(mesh, owner_axes(stack))


def _size(mesh: dict[str, int], names: Sequence[str]) -> int:
    return math.prod(mesh[name] for name in names)


def _shape(mesh: dict[str, int]) -> tuple[int, ...]:
    return tuple(mesh.values())
