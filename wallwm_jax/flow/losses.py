"""Losses per example: masks, tube weights, the DCT term.

A loss is one number PER EXAMPLE with the number of elements behind it, never a
scalar: packed sequences hold very different amounts of real data, and whether
examples or elements count equally is the trainer's decision (`reduce_mean`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wallwm_jax.flow.corrupt import Level, expand


class PerExample(NamedTuple):
    """A mean per example and how many elements it averages (0: nothing real)."""

    mean: Float[Array, "*examples"]
    count: Float[Array, "*examples"]


def masked_mean(
    error: Float[Array, "..."],
    mask: Bool[Array, "..."] | None = None,
    *,
    weight: Level = 1.0,
    example_axes: int = 1,
) -> PerExample:
    """Weighted mean of `error` over the masked elements of each example.

    Args:
      error: error per element, `example_axes` leading axes of examples.
      mask: leading axes of `error` (sizes may be 1); True counts. None: all do.
      weight: factor per element, leading axes likewise. It scales the loss and
        NOT the divisor: lambda_mask of the tube, w(t), stay what they say.
      example_axes: axes kept, e.g. 2 for [K noise levels, B].

    Returns:
      PerExample; the mean is 0 where nothing is masked in. An element that is
      masked out may hold anything, NaN included.
    """
    keep = jnp.ones_like(error, bool) if mask is None else mask
    keep = jnp.broadcast_to(expand(keep, error), error.shape)
    axes = tuple(range(example_axes, error.ndim))
    total = jnp.sum(jnp.where(keep, error * expand(weight, error), 0), axis=axes)
    count = jnp.sum(keep, axis=axes, dtype=error.dtype)
    return PerExample(total / jnp.maximum(count, 1), count)


def flow_loss(
    prediction: Float[Array, "*data"],
    target: Float[Array, "*data"],
    mask: Bool[Array, "..."] | None = None,
    *,
    weight: Level = 1.0,
    example_axes: int = 1,
) -> PerExample:
    """Squared error of a prediction of any kind; arguments as `masked_mean`.

    L_V and L_A of the WALL-WM paper, in float32 whatever the towers' dtype.
    """
    # Masked elements are zeroed BEFORE squaring: their gradient would otherwise
    # be 0 * inf = NaN if the tower left something non-finite in the padding.
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    if mask is not None:
        difference = jnp.where(expand(mask, difference), difference, 0)
    return masked_mean(jnp.square(difference), mask, weight=weight, example_axes=example_axes)


def tube_weight(
    tube: Bool[Array, "*tokens"], lambda_mask: float
) -> Float[Array, "*tokens"]:
    """Weight lambda_mask inside the tube, 1 outside (L_V of method section 2)."""
    return jnp.where(tube, jnp.float32(lambda_mask), jnp.float32(1))


def reduce_mean(loss: PerExample, *, by: str = "element") -> Float[Array, ""]:
    """One number for the gradient: the mean over all elements or over examples.

    "element" lets every real element count alike; "example" every example that
    has any. Both are 0 when nothing is real. Raises ValueError otherwise.
    """
    if by not in ("element", "example"):
        raise ValueError(f"reduce_mean by={by!r}: unknown; use 'element' or 'example'")
    weight = loss.count if by == "element" else (loss.count > 0).astype(loss.mean.dtype)
    return jnp.sum(loss.mean * weight) / jnp.maximum(jnp.sum(weight), 1)


def packed_dct(
    x: Float[Array, "b a d"], segment: Int[Array, "b a"], index: Int[Array, "b a"]
) -> Float[Array, "b a d"]:
    """Orthonormal type-II DCT over each event of a packed sequence.

        X_j = c_j sum_k x_k cos(pi (k + 1/2) j / T),   c_0 = sqrt(1/T), else sqrt(2/T)

    T is the event's own length, so events packed side by side do not mix.

    Args:
      x: values per action slot (b sequences, a slots, d dimensions).
      segment: event of each slot, 0 for padding.
      index: step k of the slot inside its event.

    Returns:
      In the layout of `x`: the slot of step j holds X_j. Zero in the padding.
    """
    real = segment > 0
    same = (segment[:, :, None] == segment[:, None, :]) & real[:, :, None]  # [b, j, k]
    length = jnp.maximum(jnp.sum(same, axis=-1), 1)[:, :, None].astype(jnp.float32)
    j, k = index[:, :, None], index[:, None, :]
    scale = jnp.sqrt(jnp.where(j == 0, 1.0, 2.0) / length)
    basis = jnp.where(same, scale * jnp.cos(jnp.pi * (k + 0.5) * j / length), 0)
    return jnp.einsum("bjk,bkd->bjd", basis, x.astype(jnp.float32))


def dct_loss(
    prediction: Float[Array, "b a d"],
    actions: Float[Array, "b a d"],
    segment: Int[Array, "b a"],
    index: Int[Array, "b a"],
    sigma: Level,
    mask: Bool[Array, "b a d"],
) -> PerExample:
    """Frequency-weighted error of predicted clean actions (method section 3).

    (1 - sigma)^2 sum_j exp(-4 j / T) (DCT(a0_hat)_j - DCT(a0)_j)^2 per event: low
    frequencies, the path of the hand, weigh most, and only where the noise is low
    enough for a0_hat to mean something.

    Args:
      prediction, actions: clean actions a0_hat and a0.
      segment, index: as in `packed_dct`.
      sigma: level of each slot, leading axes of `actions`.
      mask: real slots and dimensions.
    """
    difference = jnp.where(mask, prediction - actions, 0)
    spectrum = packed_dct(difference, segment, index)
    length = jnp.sum(segment[:, :, None] == segment[:, None, :], axis=-1)
    decay = jnp.exp(-4.0 * index / length)[:, :, None]
    weight = decay * jnp.square(1 - expand(sigma, spectrum))
    return masked_mean(jnp.square(spectrum), mask, weight=weight)
