"""Weights that are brought together once, in the compute dtype, where they are used.

Under ZeRO-3 a device holds a slice of every large weight. A layer needs the
whole of it; which slice goes where and how often is left to the compiler only
as far as it does well by itself. It gathers a weight again for every product it
enters and in float32 if that is how it is stored. So a weight is cast first,
gathered once, and that one value serves the forward, what is computed again,
and the gradient of the input:

    forward   w [sliced, float32] -> cast -> gather over "embed"
    backward  dw [whole, partial sums] -> reduce-scatter, in the compute dtype -> cast

The transpose of a constraint is the same constraint, which would all-reduce the
gradient; hence a derivative of its own. Without logical rules (one device, no
mesh) it is the plain cast.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

SLICED = "embed"
"""Logical axis along which `parallel` slices weights."""

Axes = tuple[str | None, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def whole(
    weight: Float[Array, "*shape"], axes: Axes, dtype: str, stored: str
) -> Float[Array, "*shape"]:
    """The weight in `dtype`, whole along SLICED.

    Args:
      weight: a parameter.
      axes: its logical axis names.
      dtype, stored: what it is wanted in, and what it is in.
    """
    del stored
    weight = nn.with_logical_constraint(weight.astype(dtype), axes)
    return nn.with_logical_constraint(weight, tuple(None if a == SLICED else a for a in axes))


def _forward(weight: Array, axes: Axes, dtype: str, stored: str) -> tuple[Array, None]:
    return whole(weight, axes, dtype, stored), None


def _backward(axes: Axes, dtype: str, stored: str, _: None, gradient: Array) -> tuple[Array]:
    del dtype
    return (nn.with_logical_constraint(gradient, axes).astype(stored),)


whole.defvjp(_forward, _backward)


def gathering(*axes: str | None) -> Callable[..., tuple]:
    """How a linear map of these kernel axes brings its operands to one dtype.

    Goes where Flax's layers take `promote_dtype`.
    """

    def promote(x: Array, kernel: Array, bias: Array | None, *, dtype: DTypeLike | None) -> tuple:
        if dtype is None or not nn.get_logical_axis_rules():
            return tuple(promote_dtype(x, kernel, bias, dtype=dtype))
        x, bias = promote_dtype(x, bias, dtype=dtype)
        name = lambda kind: jnp.dtype(kind).name  # noqa: E731
        return x, whole(kernel, axes, name(dtype), name(kernel.dtype)), bias

    return promote
