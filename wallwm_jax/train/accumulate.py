"""Gradient accumulation: one update from k micro-batches, one after another.

The loss of a packed batch is a mean over its real elements, and micro-batches hold
unlike numbers of them. The mean of the micro-batches' means would count a sparse
sequence's elements for more, so every part of the loss is weighted:

    L = sum_m  n_m / N  L_m          n_m counted elements of micro-batch m, N of all

which is the masked mean over the whole batch, and so are the gradients' sums. A
loss may have several parts with divisors of their own (video and action); each is
weighted with its own count.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wallwm_jax.errors import UserError
from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.parallel.mesh import batch_shards
from wallwm_jax.train.objectives import Losses
from wallwm_jax.types import Params

Scalars = dict[str, Float[Array, ""]]


class AccumulateError(UserError):
    """A batch that cannot be cut into the wanted number of micro-batches."""


def check_divides(dims: list[BatchDims], parts: int, mesh: Mesh) -> None:
    """Raises AccumulateError unless every batch splits evenly over micro-batches and devices.

    Args:
      dims: sizes of the global batches of a run, one per bucket.
      parts: micro-batches per update.
      mesh: whose devices hold different sequences.
    """
    shards = batch_shards(mesh)
    if parts < 1:
        raise AccumulateError(
            f"accumulate is {parts}; give the micro-batches per update, 1 or more"
        )
    for size in dims:
        if size.sequences % (parts * shards):
            raise AccumulateError(
                f"a batch of {size.sequences} sequences does not divide into {parts} micro-batches over "
                f"{shards} devices; set config.pack.sequences to a multiple of {parts * shards}"
            )


def micro_batches(batch: Batch, parts: int) -> Batch:
    """Batch of leaves [B, ...] -> leaves [parts, B / parts, ...]; row i goes to part i % parts.

    Rows are dealt in turn: a device that holds a block of the rows then holds its
    share of every micro-batch, and nothing travels between devices.
    """

    def deal(x: Array) -> Array:
        dealt = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        return nn.with_logical_constraint(dealt, (None, "batch", *[None] * (x.ndim - 1)))

    return jax.tree.map(deal, batch)


def accumulated_gradients(
    objective: Callable[[Params, Batch, Array], Losses],
    counts: Callable[[Batch], Scalars],
    params: Params,
    batch: Batch,
    key: Array,
    parts: int,
) -> tuple[Losses, Params]:
    """What `jax.value_and_grad` gives for the whole batch, up to rounding, in parts.

    Micro-batch m draws its noise from fold_in(key, m), so the noise is another than
    without accumulation (of the same distribution); the losses of a resumed run are
    still those of the uninterrupted one.

    Args:
      objective: (params, batch, key) -> (loss, {name: its additive parts}).
      counts: number of elements that each part of the loss is a mean over.
      params: differentiated.
      batch: the whole batch, B sequences.
      key: of the update.
      parts: micro-batches; divides B.

    Returns:
      ((loss, parts of it), gradients in the dtypes of `params`).

    Raises:
      ValueError: a part of the loss whose elements `counts` does not know.
    """
    dealt = micro_batches(batch, parts)
    total = {name: jnp.maximum(n, 1) for name, n in counts(batch).items()}

    def share(params: Params, micro: Batch, key: Array) -> Losses:
        found = objective(params, micro, key)[1]
        if unknown := sorted(found.keys() - total.keys()):
            raise ValueError(f"parts {unknown} of the loss have no count; add them to `counts`")
        here = counts(micro)
        weighted = {name: x * (here[name] / total[name]) for name, x in found.items()}
        return sum(weighted.values()), weighted

    def one(carry: tuple, turn: tuple) -> tuple[tuple, None]:
        number, micro = turn
        found = jax.value_and_grad(share, has_aux=True)(
            params, micro, jax.random.fold_in(key, number)
        )
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, found), None

    first = jax.tree.map(lambda x: x[0], dealt)
    like = jax.eval_shape(jax.value_and_grad(share, has_aux=True), params, first, key)
    # Summed in float32: small gradients of late micro-batches must not round away.
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
    (losses, grads), _ = jax.lax.scan(one, zero, (jnp.arange(parts), dealt))
    return losses, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
