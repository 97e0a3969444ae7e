"""Carries out a plan: slices to owners, Newton-Schulz there, slices back.

For every stack, on every device, inside one `shard_map`:

    local slices of all parameters, in one dtype           [matrices, m/r, n/c]
    -> placed by owner, zeros where there is none          [rounds, owners, m/r, n/c]
    -> this replica's owners alone                         [rounds, r c, m/r, n/c]
    -> one all-to-all over the mesh axes that cut m and n  [rounds, m, n]
    -> Newton-Schulz
    -> the same way back; replicas gather one another's results

r and c are the numbers of pieces of rows and columns. The exchange is written
out because the compiler, asked for another sharding, gathers whole parameters.
Where a mesh axis has size 1 its collectives are not there, so one device runs
the same code without any.

Rows that several axes of a parameter are folded from may arrive permuted (all
in the same way), which does no harm: Newton-Schulz of a row-permuted matrix is
the row-permuted result, and the way back undoes it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wallwm_jax.optim.matrices import from_matrices, to_matrices
from wallwm_jax.optim.plan import Leaf, Plan, Stack

AT_ONCE = 1 << 24
"""Numbers that one batch of Newton-Schulz may have: small matrices are many to a
batch, one of 3072 x 3072 fills a chip by itself and is alone in its own, so that
temporaries stay below a few times this."""

UNROLLED = 8
"""So many batches are written out one by one; more are a loop."""

Orthogonalise = Callable[[Array], Array]


def orthogonalise_all(
    plan: Plan,
    leaves: Sequence[Leaf],
    values: Sequence[Float[Array, "..."]],
    orthogonalise: Orthogonalise,
    *,
    mesh: Mesh | None,
    dtype: DTypeLike,
    scale: Callable[[int, int], float],
) -> list[Float[Array, "..."]]:
    """Every matrix of every parameter, orthogonalised by its owner.

    Args:
      plan: of `leaves` on `mesh`.
      leaves: descriptions of `values`.
      values: the parameters' directions.
      orthogonalise: [k, m, n] -> [k, m, n], in its argument's dtype.
      mesh: where the values lie; None: on one device.
      dtype: of what is exchanged and given to `orthogonalise`.
      scale: (m, n) -> factor of the result.

    Returns:
      float32 arrays in the shapes, and cut as the plan says, of `values`.
    """

    def local(*values: Array) -> tuple[Array, ...]:
        folded = [to_matrices(x.astype(dtype), leaf.axes) for x, leaf in zip(values, leaves)]
        whole = [_to_owners(stack, plan, folded) for stack in plan.stacks]
        whole = _by_role(plan, whole, orthogonalise)
        results: dict[int, Array] = {}
        for stack, y in zip(plan.stacks, whole, strict=True):
            results |= _from_owners(stack, plan, y, folded)
        return tuple(
            from_matrices(
                results[i].astype(jnp.float32) * scale(*leaf.axes.matrix_shape(leaf.shape)),
                leaf.axes,
                x.shape,
            )
            for i, (leaf, x) in enumerate(zip(leaves, values))
        )

    if mesh is None or mesh.size == 1:
        return list(local(*values))
    specs = tuple(PartitionSpec(*(names or None for names in cuts)) for cuts in plan.specs)
    # check_vma: that gathered replicas are equal cannot be told from their types.
    return list(
        jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)(*values)
    )


def _to_owners(stack: Stack, plan: Plan, folded: Sequence[Array]) -> Float[Array, "k m n"]:
    """The matrices of a stack that this device owns; zeros in places that are not taken."""
    parts = []
    for member in stack.members:
        x = folded[member.leaf]
        x = jnp.swapaxes(x, -2, -1) if member.transposed else x
        parts.append(x.reshape(-1, *x.shape[-2:]))
    x = _placed(jnp.concatenate(parts), stack)
    replicas, r, c = (_size(plan, names) for names in (stack.replicas, stack.rows, stack.cols))
    rounds, _, rows, cols = x.shape
    if replicas > 1:
        x = x.reshape(rounds, replicas, r * c, rows, cols)
        x = lax.dynamic_index_in_dim(x, lax.axis_index(stack.replicas), 1, keepdims=False)
    if r * c > 1:
        x = lax.all_to_all(x, stack.rows + stack.cols, 1, 1)
    x = x.reshape(rounds, r, c, rows, cols).transpose(0, 1, 3, 2, 4)
    return x.reshape(rounds, *stack.shape)


def _from_owners(
    stack: Stack, plan: Plan, y: Float[Array, "k m n"], folded: Sequence[Array]
) -> dict[int, Array]:
    """Inverse of `_to_owners`: leaf number -> this device's slices of its matrices."""
    replicas, r, c = (_size(plan, names) for names in (stack.replicas, stack.rows, stack.cols))
    rounds, (m, n) = len(y), stack.shape
    y = y.reshape(rounds, r, m // r, c, n // c).transpose(0, 1, 3, 2, 4)
    y = y.reshape(rounds, r * c, m // r, n // c)
    if r * c > 1:
        y = lax.all_to_all(y, stack.rows + stack.cols, 1, 1)
    if replicas > 1:
        y = lax.all_gather(y, stack.replicas, axis=1)
    y = _taken(y.reshape(rounds, -1, m // r, n // c), stack)
    found, first = {}, 0
    for member in stack.members:
        x = y[first : first + member.matrices]
        first += member.matrices
        x = jnp.swapaxes(x, -2, -1) if member.transposed else x
        found[member.leaf] = x.reshape(folded[member.leaf].shape)
    return found


def _runs(stack: Stack) -> list[tuple[bool, int]]:
    """(taken, length) of the runs of places, round by round."""
    return [(bool(t), len(list(run))) for t, run in groupby(stack.places().reshape(-1))]


def _placed(x: Float[Array, "s r c"], stack: Stack) -> Float[Array, "k o r c"]:
    """Matrices in their order -> their places, zeros in the others."""
    pieces, first = [], 0
    for taken, length in _runs(stack):
        pieces.append(
            x[first : first + length] if taken else jnp.zeros((length, *x.shape[1:]), x.dtype)
        )
        first += length * taken
    return jnp.concatenate(pieces).reshape(stack.rounds, -1, *x.shape[1:])


def _taken(x: Float[Array, "k o r c"], stack: Stack) -> Float[Array, "s r c"]:
    """Inverse of `_placed`."""
    x, pieces, first = x.reshape(-1, *x.shape[2:]), [], 0
    for taken, length in _runs(stack):
        pieces += [x[first : first + length]] if taken else []
        first += length
    return jnp.concatenate(pieces)


def _by_role(
    plan: Plan, whole: list[Float[Array, "_k _m _n"]], orthogonalise: Orthogonalise
) -> list[Float[Array, "_k _m _n"]]:
    """Orthogonalises what this device's role says; zeros elsewhere."""
    acts = [lambda x, role=role: _act(role, x, orthogonalise) for role in plan.roles]
    if len(acts) == 1:
        return acts[0](whole)
    mine = jnp.asarray(np.asarray(plan.role_of, np.int32))[lax.axis_index(tuple(plan.mesh))]
    # No collectives in a branch: devices of other roles would wait for ever.
    return lax.switch(mine, acts, whole)


def _act(
    role: tuple[int, ...], whole: list[Float[Array, "_k _m _n"]], orthogonalise: Orthogonalise
) -> list[Float[Array, "_k _m _n"]]:
    """The first `role` matrices of each stack, batch after batch.

    Each batch waits for the one before: side by side they would need all their
    temporaries at once, and gain nothing.
    """
    done: list[Array] = []
    last = None
    for count, x in zip(role, whole, strict=True):
        batch = max(1, AT_ONCE // (x.shape[1] * x.shape[2]))
        looped = count // batch * batch if count > UNROLLED * batch else 0
        pieces = []
        if looped:
            x, last = lax.optimization_barrier((x, last))
            shape = looped // batch, batch, *x.shape[1:]
            last = lax.map(orthogonalise, x[:looped].reshape(shape))
            pieces.append(last.reshape(looped, *x.shape[1:]))
        for start in range(looped, count, batch):
            x, last = lax.optimization_barrier((x, last))
            last = orthogonalise(x[start : min(start + batch, count)])
            pieces.append(last)
        done.append(jnp.concatenate([*pieces, jnp.zeros_like(x[count:])]))
    return done


def _size(plan: Plan, names: Sequence[str]) -> int:
    return math.prod(plan.mesh[name] for name in names)
