"""Carries out a plan: slices to owners, Newton-Schulz there, slices back.

For every stack, on every device, inside one `shard_map`:

    local slices of this replica's share, in one dtype     [share, m/r, n/c]
    -> placed by owner, zeros where there is none          [rounds, r c, m/r, n/c]
    -> one all-to-all over the mesh axes that cut m and n  [rounds, m, n]
    -> Newton-Schulz
    -> the same way back; replicas gather one another's results

Large matrices travel round by round: the next can come while one is worked on.

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
from functools import partial
from itertools import groupby, pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wallwm_jax.optim.matrices import from_matrices, to_matrices
from wallwm_jax.optim.plan import Leaf, Member, Plan, Stack

AT_ONCE = 1 << 24
"""Numbers that one batch of Newton-Schulz may have: small matrices are many to a
batch, one of 3072 x 3072 fills a chip by itself and is alone in its own, so that
temporaries stay below a few times this."""

UNROLLED = 8
"""So many batches are written out and exchanged one by one; more are a loop."""

Orthogonalise = Callable[[Array], Array]

Values = tuple[Float[Array, "..."], ...]
"""Arrays of one parameter, all of its shape and cut like it."""

Fold = Callable[[Member, Callable[[Array], Array]], Array]
"""(member, which of its layers) -> this device's slices of their matrices [s, m/r, n/c]."""


def orthogonalise_all(
    plan: Plan,
    leaves: Sequence[Leaf],
    values: Sequence[Values],
    orthogonalise: Orthogonalise,
    *,
    direction: Callable[..., Array],
    mesh: Mesh | None,
    dtype: DTypeLike,
    scale: Callable[[int, int], float],
) -> list[Float[Array, "..."]]:
    """Every matrix of every parameter, orthogonalised by its owner.

    Stacks whose owners have roles go together, as they share the time.

    Args:
      plan: of `leaves` on `mesh`.
      leaves: descriptions of the parameters.
      values: what each parameter's direction is made of.
      orthogonalise: [k, m, n] -> [k, m, n], in its argument's dtype.
      direction: (*values of a parameter) -> what is orthogonalised, element by
        element; it is made when its stack's turn has come.
      mesh: where the values lie; None: on one device.
      dtype: of what is exchanged and given to `orthogonalise`.
      scale: (m, n) -> factor of the result.

    Returns:
      float32 arrays in the shapes, and cut as the plan says, of the parameters.
    """

    def folded(values: Sequence[Values], member: Member, some: Callable) -> Array:
        x = direction(*map(some, values[member.leaf])).astype(dtype)
        x = to_matrices(x, leaves[member.leaf].axes)
        x = x.reshape(-1, *x.shape[-2:])
        return jnp.swapaxes(x, -2, -1) if member.transposed else x

    def local(values: tuple[Values, ...]) -> tuple[Array, ...]:
        results: dict[int, Array] = {}
        fold = partial(folded, values)
        for group in _groups(plan):
            whole = [_to_owners(plan.stacks[stack], plan, fold) for stack in group]
            whole = _by_role(plan, group, whole, orthogonalise)
            for stack, y in zip(group, whole, strict=True):
                results |= _from_owners(plan.stacks[stack], plan, y)
        return tuple(
            from_matrices(
                results[i].astype(jnp.float32) * scale(*leaf.axes.matrix_shape(leaf.shape)),
                leaf.axes,
                x[0].shape,
            )
            for i, (leaf, x) in enumerate(zip(leaves, values))
        )

    values = tuple(values)
    if mesh is None or mesh.size == 1:
        return list(local(values))
    specs = tuple(PartitionSpec(*(names or None for names in cuts)) for cuts in plan.specs)
    # check_vma: that gathered replicas are equal cannot be told from their types.
    exchange = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)
    return list(exchange(values))


def _groups(plan: Plan) -> list[list[int]]:
    """Numbers of the stacks that go together, group after group."""
    together = [number for number, stack in enumerate(plan.stacks) if stack.roles]
    alone = [[number] for number, stack in enumerate(plan.stacks) if not stack.roles]
    return ([together] if together else []) + alone


def _pieces(stack: Stack) -> list[tuple[int, int]]:
    """(first round, one past the last) of what is exchanged and orthogonalised at once."""
    batch = _batch(stack.shape)
    looped = stack.rounds // batch * batch if stack.rounds > UNROLLED * batch else 0
    edges = [0, looped] if looped else [0]
    edges += [*range(looped + batch, stack.rounds, batch), stack.rounds]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def _batch(shape: tuple[int, int]) -> int:
    """Matrices of this shape that make one batch of Newton-Schulz."""
    return max(1, AT_ONCE // math.prod(shape))


def _to_owners(stack: Stack, plan: Plan, fold: Fold) -> list[Float[Array, "_k m n"]]:
    """The matrices of a stack that this device owns, piece by piece; zeros in places not taken."""
    r, c = (_size(plan, names) for names in (stack.rows, stack.cols))
    placed = _placed(_share(stack, plan, fold), stack)

    def whole(x: Array) -> Array:
        if r * c > 1:
            x = lax.all_to_all(x, stack.rows + stack.cols, 1, 1)
        rounds, _, rows, cols = x.shape
        x = x.reshape(rounds, r, c, rows, cols).transpose(0, 1, 3, 2, 4)
        return x.reshape(rounds, *stack.shape)

    return [whole(placed[first:last]) for first, last in _pieces(stack)]


def _from_owners(
    stack: Stack, plan: Plan, pieces: Sequence[Float[Array, "_k m n"]]
) -> dict[int, Float[Array, "s _r _c"]]:
    """The way back: leaf number -> this device's slices of its matrices."""
    r, c = (_size(plan, names) for names in (stack.rows, stack.cols))
    m, n = stack.shape

    def slices(y: Array) -> Array:
        y = y.reshape(-1, r, m // r, c, n // c).transpose(0, 1, 3, 2, 4)
        y = y.reshape(-1, r * c, m // r, n // c)
        return lax.all_to_all(y, stack.rows + stack.cols, 1, 1) if r * c > 1 else y

    return _together(stack, plan, _taken(jnp.concatenate([slices(y) for y in pieces]), stack))


def _share(stack: Stack, plan: Plan, fold: Fold) -> Float[Array, "share _r _c"]:
    """This device's slices of the matrices that its replica takes.

    Of every member an equal number of layers, then of what is left over of all.
    Nothing else is copied: the whole stack would need as much as all replicas.
    """
    replicas = _size(plan, stack.replicas)
    mine = lax.axis_index(stack.replicas) if replicas > 1 else 0
    parts, left = [], []
    for member in stack.members:
        each, _ = member.each(replicas)
        if each == member.layers:
            parts.append(fold(member, lambda x: x))
        elif each:
            parts.append(fold(member, partial(_layers, first=mine * each, count=each)))
        if over := member.layers - each * replicas:
            left.append(fold(member, partial(_layers, first=each * replicas, count=over)))
    if left:
        rest = stack.share - sum(map(len, parts))
        filling = rest * replicas - sum(map(len, left))
        left.append(jnp.zeros((filling, *left[0].shape[1:]), left[0].dtype))
        parts.append(lax.dynamic_slice_in_dim(jnp.concatenate(left), mine * rest, rest))
    return jnp.concatenate(parts)


def _layers(x: Array, first: Array | int, count: int) -> Array:
    """`count` indices of the leading axis; a parameter that has no layers is left whole."""
    whole = isinstance(first, int) and first == 0
    return x if whole else lax.dynamic_slice_in_dim(x, first, count)


def _together(
    stack: Stack, plan: Plan, y: Float[Array, "share _r _c"]
) -> dict[int, Float[Array, "s _r _c"]]:
    """Inverse of `_share`: every replica gets the others' matrices, one member after another."""
    replicas = _size(plan, stack.replicas)
    gather = lambda x: lax.all_gather(x, stack.replicas, tiled=True) if replicas > 1 else x  # noqa: E731
    each = [member.each(replicas)[1] for member in stack.members]
    left = gather(y[sum(each) :]) if stack.share > sum(each) else None
    found, begin, used = {}, 0, 0
    for member, count in zip(stack.members, each, strict=True):
        parts = [gather(y[begin : begin + count])] if count else []
        begin += count
        if over := member.matrices - count * replicas:
            parts.append(left[used : used + over])
            used += over
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        found[member.leaf] = jnp.swapaxes(x, -2, -1) if member.transposed else x
    return found


def _runs(stack: Stack) -> list[tuple[bool, int]]:
    """(taken, length) of the runs of places, round by round."""
    return [(bool(t), len(list(run))) for t, run in groupby(stack.places().reshape(-1))]


def _placed(x: Float[Array, "share r c"], stack: Stack) -> Float[Array, "k o r c"]:
    """Matrices in their order -> their places, zeros in the others."""
    pieces, first = [], 0
    for taken, length in _runs(stack):
        pieces.append(
            x[first : first + length] if taken else jnp.zeros((length, *x.shape[1:]), x.dtype)
        )
        first += length * taken
    return jnp.concatenate(pieces).reshape(stack.rounds, -1, *x.shape[1:])


def _taken(x: Float[Array, "k o r c"], stack: Stack) -> Float[Array, "share r c"]:
    """Inverse of `_placed`."""
    x, pieces, first = x.reshape(-1, *x.shape[2:]), [], 0
    for taken, length in _runs(stack):
        pieces += [x[first : first + length]] if taken else []
        first += length
    return jnp.concatenate(pieces)


def _by_role(
    plan: Plan,
    group: list[int],
    whole: list[list[Float[Array, "_k _m _n"]]],
    orthogonalise: Orthogonalise,
) -> list[list[Float[Array, "_k _m _n"]]]:
    """Orthogonalises what this device's role says of a group of stacks; zeros elsewhere."""
    roles = [tuple(role[stack] for stack in group) for role in plan.roles]
    acts = [lambda x, role=role: _act(role, x, orthogonalise) for role in roles]
    if len(set(roles)) == 1:
        return acts[0](whole)
    mine = jnp.asarray(np.asarray(plan.role_of, np.int32))[lax.axis_index(tuple(plan.mesh))]
    # No collectives in a branch: devices of other roles would wait for ever.
    return lax.switch(mine, acts, whole)


def _act(
    role: tuple[int, ...],
    whole: list[list[Float[Array, "_k _m _n"]]],
    orthogonalise: Orthogonalise,
) -> list[list[Float[Array, "_k _m _n"]]]:
    """The first `role` matrices of each stack, piece after piece.

    Each piece waits for the one before: side by side they would need all their
    temporaries at once (1.6 GB a v5p chip for 0.4, Wan2.2-TI2V-5B), and gain nothing.
    """
    done: list[list[Array]] = []
    last = None
    for count, pieces in zip(role, whole, strict=True):
        done.append([])
        for x in pieces:
            mine = min(count, len(x))
            count -= mine
            if mine:
                x, last = lax.optimization_barrier((x, last))
                last = _in_batches(x[:mine], orthogonalise)
            done[-1].append(
                jnp.concatenate([last, jnp.zeros_like(x[mine:])]) if mine else jnp.zeros_like(x)
            )
    return done


def _in_batches(x: Float[Array, "k m n"], orthogonalise: Orthogonalise) -> Float[Array, "k m n"]:
    """Orthogonalises in a loop over batches, the last one maybe smaller."""
    batch = _batch(x.shape[1:])
    if len(x) <= batch:
        return orthogonalise(x)
    looped = len(x) // batch * batch
    y = lax.map(orthogonalise, x[:looped].reshape(-1, batch, *x.shape[1:]))
    y = y.reshape(looped, *x.shape[1:])
    return y if looped == len(x) else jnp.concatenate([y, orthogonalise(x[looped:])])


def _size(plan: Plan, names: Sequence[str]) -> int:
    return math.prod(plan.mesh[name] for name in names)
